"""What a build without a network lacks is found out before anything runs, and nobody is asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from engine.errors import DiskError
from engine.graph import (
    ArchiveSource,
    Copy,
    FetchedSource,
    GitSource,
    Graph,
    HttpSource,
    ImageLayer,
    ImageSource,
    LayerSource,
    Merge,
    Mkdir,
    Op,
    Result,
    Scratch,
    Vertex,
    vertex,
)
from engine.offline.missing import Missing
from engine.offline.needs import Needs
from engine.offline.nobody import NoRegistry, NoRepositories, NoWeb, Refused
from engine.output import Output
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote
from storage.digest import Digest, sha256
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.packing import PackedBlob
from storage.interfaces.parts import LayerParts
from storage.parts.lookup import Tree
from storage.reference import parse_reference
from tests.engine.attest.test_scan import Layer as Files

HOST = Provider.of("r.example", "base")
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", sha256(b"blob"), 7)
LAYER = ImageLayer(sha256(b"layer"), BLOB)
COMMIT = "c" * 40


@dataclass
class Here:
    """A root that has the blobs in `stored`, and `laid_out` layers, which cannot be read."""

    stored: set[Digest] = field(default_factory=set)
    laid_out: set[str] = field(default_factory=set)

    @property
    def kept(self) -> Here:
        return self

    @property
    def blobs(self) -> Here:
        return self

    @property
    def snapshots(self) -> Here:
        return self

    def mountable(self, layer: Layer) -> bool:
        return layer.name in self.laid_out

    def lower(self, layer: Layer) -> Path:
        return Path(layer.name)

    def here(self, layer: Layer) -> bool:
        return layer.blob is not None and layer.blob.digest in self.stored

    def has(self, _name: str) -> bool:
        return False

    def size(self, digest: Digest) -> int | None:
        return 1 if digest in self.stored else None


class Packed:
    def packed(self, _name: str, _epoch: int | None, _compression: str) -> PackedBlob | None:
        return None


@dataclass
class Parts:
    found: Tree | None

    def tree(self, _lower: Path) -> Tree:
        if self.found is None:
            raise OSError(5, "Input/output error")
        return self.found


@dataclass
class Sources:
    blobs: BlobStore

    async def is_here(self, _op: FetchedSource) -> bool:
        return False


def lacking(
    *vertices: Vertex, here: Here | None = None, known: Mapping[Digest, Remote] | None = None,
    outputs: tuple[Output, ...] = (), tree: Tree | None = None,
) -> list[Missing]:  # fmt: skip
    root: Any = here or Here()
    needs = Needs(
        cast("Materializer", root), NoRegistry(), Packed(), cast("LayerParts", Parts(tree)),
        lambda: Sources(root.blobs),
    )  # fmt: skip
    graph = Graph(vertices, (Result(vertices[-1].digest, "linux/amd64", {}),))
    run = [one for one in vertices if one.digest not in (known or {})]
    return asyncio.run(needs.lacking(graph, run, known or {}, outputs=outputs))


def step(op: Op, *inputs: Vertex, name: str = "step") -> Vertex:
    return vertex(op, tuple(one.digest for one in inputs), name)


IMAGE = step(ImageSource("base", sha256(b"manifest"), "linux/amd64", HOST, (LAYER,)), name="FROM base")
FILE = step(LayerSource(LAYER, 1), name="a.tar")


@pytest.mark.parametrize(
    ("op", "kind", "name"),
    [
        (HttpSource("https://h.example/f?signature=1", "f", digest=sha256(b"f")), "url", "https://h.example/f"),
        (GitSource("https://h.example/r.git", "main", commit=COMMIT), "git", "https://h.example/r.git#main"),
        (ArchiveSource("https://h.example/a.tar", sha256(b"a")), "archive", "https://h.example/a.tar"),
        (ArchiveSource("", sha256(b"a")), "archive", sha256(b"a")),
    ],
)
def test_a_source_that_was_not_kept_is_missing(op: Op, kind: str, name: str) -> None:
    (found,) = lacking(step(op, name="ADD it"))
    assert (found.kind, found.name, found.needed_by) == (kind, name, ("ADD it",))


def test_an_archive_that_is_stored_can_be_unpacked() -> None:
    assert lacking(step(ArchiveSource("", sha256(b"a"))), here=Here({sha256(b"a")})) == []


@pytest.mark.parametrize("source", [IMAGE, FILE, step(Merge(), IMAGE, name="merge"), step(Merge(), FILE, IMAGE)])
def test_a_step_needs_the_layers_of_what_it_stands_on(source: Vertex) -> None:
    graph = [IMAGE, FILE, source] if source not in (IMAGE, FILE) else [source]
    (found,) = lacking(*graph, step(Mkdir("/a"), source, name="WORKDIR /a"))
    assert (found.kind, found.name, found.size) == ("layer", str(BLOB.digest), 7)
    assert found.needed_by == ("WORKDIR /a",)
    assert lacking(*graph, step(Mkdir("/a"), source), here=Here({BLOB.digest})) == []


def test_what_is_copied_is_looked_for_from_the_top() -> None:
    copy = Copy(("/x",), "/", from_context=False, link=True)
    (found,) = lacking(IMAGE, step(copy, IMAGE, IMAGE, name="COPY"))
    assert found.name == str(BLOB.digest)
    assert lacking(IMAGE, step(copy, IMAGE, IMAGE), here=Here({BLOB.digest})) == []


@pytest.mark.parametrize(
    ("link", "chown", "lacks"),
    [(False, "", True), (True, "", False), (True, "0:0", False), (True, "app", True), (True, "0:app", True)],
)
def test_a_linked_copy_needs_what_it_stands_on_for_names_of_owners_only(link: bool, chown: str, lacks: bool) -> None:
    nothing = step(Scratch(), name="FROM scratch")
    copied = step(Copy(("/x",), "/", link=link, chown=chown), IMAGE, nothing)
    assert [one.name for one in lacking(IMAGE, nothing, copied)] == ([str(BLOB.digest)] if lacks else [])


def test_a_result_that_nobody_else_has_is_missing_to_an_archive_and_none_to_a_push() -> None:
    made = step(Mkdir("/a"), IMAGE)
    known = {made.digest: Remote("b0-a-1", (Layer(snapshot="b0-a-1"),)), IMAGE.digest: Remote("base", ())}
    archive = Output("oci", dest="a.tar")
    (found,) = lacking(IMAGE, made, known=known, outputs=(archive,))
    assert (found.name, found.elsewhere, found.needed_by) == ("b0-a-1", (), ("--output type=oci,dest=a.tar",))
    assert "only the step that made it can make it again" in found.detail
    assert lacking(IMAGE, made, known=known, outputs=(Output("image"),)) == []


def test_a_stored_blob_is_enough_for_an_archive() -> None:
    here = Here(stored={BLOB.digest})
    assert lacking(IMAGE, here=here, known={IMAGE.digest: Remote("r", (Layer(LAYER.diff_id, BLOB),))}, outputs=(
        Output("oci", dest="a.tar"),
    )) == []  # fmt: skip


TWO = step(ImageSource("two", sha256(b"two"), "linux/amd64", HOST, (LAYER, ImageLayer(sha256(b"top"), BLOB))))


def test_a_pattern_that_is_none_is_the_steps_to_tell() -> None:
    here = Here(laid_out={str(sha256(b"top"))})
    copied = step(Copy(sources=("/[",), dest="/"), step(Scratch()), TWO)
    assert lacking(step(Scratch()), TWO, copied, here=here, tree=Files({"a": b""})) == []


def test_layers_that_cannot_be_looked_into_are_the_disks_fault() -> None:
    here = Here(laid_out={str(sha256(b"top"))})
    copied = step(Copy(sources=("/a",), dest="/"), step(Scratch()), TWO)
    with pytest.raises(DiskError, match="looking into layers"):
        lacking(step(Scratch()), TWO, copied, here=here)


async def _blob() -> None:
    async with NoRegistry().blob(HOST, BLOB):
        pass


QUESTIONS = {
    "resolve": lambda: NoRegistry().resolve(parse_reference("r.example/base")),
    "manifest": lambda: NoRegistry().manifest(HOST, BLOB.digest),
    "blob": _blob,
    "exists": lambda: NoRegistry().exists(HOST, BLOB.digest),
    "mount": lambda: NoRegistry().mount(HOST, BLOB.digest, HOST),
    "upload": lambda: NoRegistry().upload(HOST, BLOB, lambda: cast("Any", None)),
    "put_manifest": lambda: NoRegistry().put_manifest(HOST, "latest", "", b""),
    "get": lambda: NoWeb().get("https://h.example/f?signature=1", lambda: cast("Any", None)),
    "resolve of a repository": lambda: NoRepositories().resolve("https://h.example/r.git", "main"),
    "checkout": lambda: NoRepositories().checkout("https://h.example/r.git", COMMIT, cast("Any", None)),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_is_asked_anything(question: str) -> None:
    with pytest.raises(Refused, match=r"^[^?]*offline: [^?]*$"):
        asyncio.run(cast("Any", QUESTIONS[question])())
