"""I8: what a disk or a person damaged in a root is found before it is used, said in the log, and had again: the image
is the one that an undamaged root gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage.interfaces.log import Event
from storage.layers.erofs.header import SEAL
from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess
from tools.roots import read_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
DOCKERFILE = """\
FROM {base}
RUN echo one > /one && mkdir /d && echo deep > /d/deep
COPY file /copied
RUN cat /one /copied /d/deep > {last}
"""


@dataclass(frozen=True)
class Warm:
    """A root in which DOCKERFILE was built with `--snapshotter` `kind`, and the digests that it gives."""

    directory: Path
    kind: str
    dockerfile: str
    other: str
    digests: dict[str, str]


@dataclass
class Copy:
    """A copy of a warm root."""

    builder: Builder
    warm: Warm

    def build(self, dockerfile: str, *args: str) -> Any:
        """The digest of the image, as an archive."""
        out = self.builder.context.parent / "out.tar"
        export = args or ("-o", f"type=oci,dest={out}")
        self.builder.must_build(dockerfile, "--snapshotter", self.warm.kind, *export, env=EPOCH)
        assert self.builder.leftovers() == []
        return self.events("Exported")[-1].data["digest"]

    def events(self, *types: str) -> list[Event]:
        """All events of `types`, read from the log."""
        with read_root(self.builder.root) as (log, _):
            return list(log.read(types=frozenset(types)))

    def last(self, kind: str) -> list[dict[str, Any]]:
        """Data of the events `kind` of the last build."""
        build = self.events("BuildStarted")[-1].build
        return [event.data for event in self.events(kind) if event.build == build]

    def lost(self) -> list[tuple[str, str]]:
        """What the log says is lost: kind and name."""
        return [(event.data["kind"], event.data["name"]) for event in self.events("LocalLost")]

    def ran(self) -> list[str]:
        """Steps that the last build ran."""
        names = [data["name"] for data in self.last("VertexCompleted")]
        return [name.partition("] ")[2] for name in names if "] RUN" in name or "] COPY" in name]


def copied(warm: Warm, directory: Path) -> Copy:
    builder = Builder(directory)
    builder.write({"file": "content\n"})
    subprocess.run(["cp", "-a", warm.directory / "root", builder.root], check=True)
    return Copy(builder, warm)


@pytest.fixture(scope="module", params=["erofs", "directory"])
def warm(request: pytest.FixtureRequest, registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Warm:
    kind = str(request.param)
    directory = tmp_path_factory.mktemp(f"warm-{kind}")
    base = base_image(registry, f"damage/{kind}", size=20_000, layers=2)
    first, other = (DOCKERFILE.format(base=base["reference"], last=last) for last in ("/all", "/sum"))
    made = Warm(directory, kind, first, other, {})
    builder = Builder(directory)
    builder.write({"file": "content\n"})
    made.digests[first] = Copy(builder, made).build(first)
    untouched = copied(made, tmp_path_factory.mktemp("untouched"))
    made.digests[other] = untouched.build(other)
    assert untouched.lost() == []
    assert untouched.ran() == ["RUN cat /one /copied /d/deep > /sum"]
    return made


@pytest.fixture
def root(warm: Warm, tmp_path: Path) -> Copy:
    return copied(warm, tmp_path)


def flip(path: Path) -> None:
    """One bit in the middle."""
    flip_at(path, path.stat().st_size // 2)


def flip_at(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Path], None]] = {"flip": flip, "truncate": halve, "remove": remove}


def a_file(top: Path) -> Path:
    """`top`, or the largest file of the tree in it."""
    if top.is_file():
        return top
    return max((path for path in (top / "fs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_layer_is_fetched_again(root: Copy, damage: str) -> None:
    for layer in (root.builder.root / "layers").iterdir():
        DAMAGE[damage](a_file(layer))
    assert root.build(root.warm.other) == root.warm.digests[root.warm.other]
    assert root.ran() == ["RUN cat /one /copied /d/deep > /sum"]
    gone = damage == "remove" and root.warm.kind == "erofs"  # nobody can tell that from a layer that never came
    assert sorted(kind for kind, _ in root.lost()) == ([] if gone else ["layer", "layer"])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_made_again_with_what_stands_on_it(root: Copy, damage: str) -> None:
    remove(root.builder.root / "blobs")  # else they would be laid out from there
    for snapshot in (root.builder.root / "snapshots").iterdir():
        DAMAGE[damage](a_file(snapshot))
    assert root.build(root.warm.other) == root.warm.digests[root.warm.other]
    assert root.ran() == [
        "RUN echo one > /one && mkdir /d && echo deep > /d/deep", "COPY file /copied",
        "RUN cat /one /copied /d/deep > /sum",
    ]  # fmt: skip
    assert {kind for kind, _ in root.lost()} == {"snapshot"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_laid_out_from_the_blob_it_was_packed_into(root: Copy, damage: str) -> None:
    for snapshot in (root.builder.root / "snapshots").iterdir():
        DAMAGE[damage](a_file(snapshot))
    assert root.build(root.warm.other) == root.warm.digests[root.warm.other]
    assert root.ran() == ["RUN cat /one /copied /d/deep > /sum"]
    assert {kind for kind, _ in root.lost()} == {"snapshot"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_blob_is_packed_again(root: Copy, damage: str) -> None:
    packed = [event.data["digest"] for event in root.events("BlobCreated")]
    for digest in packed:
        DAMAGE[damage](Path(root.builder.root, "blobs", *digest.split(":")))
    assert root.build(root.warm.dockerfile) == root.warm.digests[root.warm.dockerfile]
    assert root.ran() == []
    assert sorted(root.lost()) == sorted(("blob", digest) for digest in packed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_when_blob_and_result_are_damaged_the_step_runs_again(root: Copy, damage: str) -> None:
    for event in root.events("BlobCreated"):
        DAMAGE[damage](Path(root.builder.root, "blobs", *event.data["digest"].split(":")))
    for snapshot in (root.builder.root / "snapshots").iterdir():
        DAMAGE[damage](a_file(snapshot))
    assert root.build(root.warm.dockerfile) == root.warm.digests[root.warm.dockerfile]
    assert len(root.ran()) == 3
    assert {kind for kind, _ in root.lost()} <= {"blob", "snapshot"}
    assert "snapshot" in {kind for kind, _ in root.lost()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_small_blobs_are_fetched_or_put_again(root: Copy, damage: str) -> None:
    """Manifest, config, graph, Dockerfile, listing, plaintext keys: all that are not layers."""
    packed = {event.data["digest"] for event in root.events("BlobCreated")}
    small = [path for path in root.builder.root.glob("blobs/sha256/*") if f"sha256:{path.name}" not in packed]
    before = {path: path.read_bytes() for path in small}
    assert len(small) >= 6
    for path in small:
        DAMAGE[damage](path)
    assert root.build(root.warm.dockerfile) == root.warm.digests[root.warm.dockerfile]
    assert root.ran() == []
    again = [path for path in small if path.exists() and path.read_bytes() == before[path]]
    (defined,), (resolved,) = root.last("GraphDefined"), root.last("SourceResolved")
    names = {defined["graph"], resolved["manifest"], resolved["config"]}
    assert names <= {f"sha256:{path.name}" for path in again}
    if damage != "remove":
        assert ("blob", resolved["config"]) in root.lost()


def test_debris_in_the_place_of_a_layer_or_a_result_is_removed(root: Copy) -> None:
    remove(root.builder.root / "blobs")
    places = [*(root.builder.root / "layers").iterdir(), *(root.builder.root / "snapshots").iterdir()]
    for path in places:
        if path.is_file():
            path.write_bytes(b"")
        elif path.parent.name == "layers":
            shutil.rmtree(path / "fs")
        else:
            shutil.rmtree(path)
            path.write_text("a file")
    assert root.build(root.warm.other) == root.warm.digests[root.warm.other]
    lost = {name.removeprefix("sha256:") for _, name in root.lost()}
    assert len(lost) >= 3
    now = [path for path in places if path.exists() and path.name.removesuffix(".erofs") in lost]
    assert [path for path in now if path.is_file() and not path.stat().st_size] == []
    assert [path for path in now if not path.is_file() and not (path / "fs").is_dir()] == []


def test_a_result_that_rotted_under_its_seal_is_found_when_it_is_packed(root: Copy) -> None:
    remove(root.builder.root / "blobs")
    images = list((root.builder.root / "snapshots").glob("*.erofs"))
    for image in images:
        flip_at(image, image.read_bytes().index(b"content\n"))
        os.utime(image, ns=(SEAL, SEAL))
    assert root.build(root.warm.dockerfile) == root.warm.digests[root.warm.dockerfile]
    assert [kind for kind, _ in root.lost() if kind == "snapshot"] == ["snapshot"] * len(images)
    assert root.ran() == (["COPY file /copied", "RUN cat /one /copied /d/deep > /all"] if images else [])


def test_a_damaged_result_is_made_again_before_it_is_written_to_a_directory(root: Copy, tmp_path: Path) -> None:
    remove(root.builder.root / "blobs")
    for snapshot in (root.builder.root / "snapshots").iterdir():
        flip(a_file(snapshot))
    root.build(root.warm.dockerfile, "-o", f"type=local,dest={tmp_path}/files")
    assert (tmp_path / "files/all").read_text() == "one\ncontent\ndeep\n"
    assert (tmp_path / "files/d/deep").read_text() == "deep\n"


def test_what_is_read_only_says_so_and_is_left_alone(root: Copy) -> None:
    (started,), (defined,) = root.events("BuildStarted"), root.last("GraphDefined")
    path = Path(root.builder.root, "blobs", *defined["graph"].split(":"))
    flip(path)
    damaged = path.read_bytes()
    assert root.builder.run("show", str(started.build)).code == 0  # the log says all that it tells
    done = root.builder.run("why", str(started.build))
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    assert f"the stored blob is not {defined['graph']} any more" in done.err
    assert path.read_bytes() == damaged


def test_a_damaged_stage_is_made_again_before_a_copy_counts_its_files(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    base = base_image(registry, repository, size=20_000, layers=2)["reference"]
    stages = f"FROM {base} AS tools\nRUN echo tool > /tool\nFROM scratch\nCOPY --from=tools /tool /{{}}\n"
    builder = Builder(tmp_path)
    builder.must_build(stages.format("one"))
    (tool,) = builder.root.glob("snapshots/*/fs/tool")
    tool.write_text("fool\n")
    for name in ("two", "one"):
        builder.must_build(stages.format(name), "-o", f"type=local,dest={tmp_path}/{name}")
        assert (tmp_path / name / name).read_text() == "tool\n"
    assert [event["data"]["kind"] for event in builder.events("LocalLost")] == ["snapshot"]
