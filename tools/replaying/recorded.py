"""A build to be replayed, from this root or from a bundle: one view of what is known of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.graph import Graph, Vertex
from engine.ops.keep import restore
from engine.refs.ref import Layer
from projections.fields import BAD_EVENT
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from storage.bundle.form import Member
from storage.bundle.reading import Bundle, read_bundle
from storage.digest import Digest
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.blobs import BlobStore, BlobWriter
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.log import EventLog
from storage.layers.tars import regular_files
from storage.tar.filelist import FileFact, load
from tools import roots
from tools.replaying.story import Story, as_packed, layers_of, learn_results, read_graph, read_story


@dataclass(slots=True)
class Recorded:
    """`log`: where its events are; `blobs`: what the bundle brought, None for a build of this root; `bundled`: layers
    by name, as the bundle has them, `pointed` what it knows of all; `source`: the bundle's digest, "" for none."""

    story: Story
    graph: Graph | None
    log: EventLog
    dockerfile: str
    blobs: BlobStore | None = None
    bundled: Mapping[str, Layer] = field(default_factory=dict)
    pointed: Mapping[str, Layer] = field(default_factory=dict)
    kept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, list[FileFact]] = field(default_factory=dict)
    withheld: Sequence[Mapping[str, str]] = ()
    source: str = ""

    def layers(self, ref: str, providers: Callable[[Digest], Sequence[Provider]]) -> tuple[Layer, ...]:
        """The layers of `ref`, each with all that is known of it. Raises InputError."""
        return tuple(self._known(layer, providers) for layer in layers_of(self.story, ref))

    def _known(self, layer: Layer, providers: Callable[[Digest], Sequence[Provider]]) -> Layer:
        layer = as_packed(self.story, self.pointed.get(layer.name, layer))
        if layer.blob is None:
            return layer
        return replace(layer, providers=tuple(dict.fromkeys((*layer.providers, *providers(layer.blob.digest)))))

    def epoch(self) -> int | None:
        """SOURCE_DATE_EPOCH of the build."""
        options = self.story.started.get("options", {})
        text = options.get("epoch", options.get("args", {}).get("SOURCE_DATE_EPOCH"))
        return int(text) if str(text).isdecimal() and len(str(text)) < 20 else None

    def name(self, vertex: Digest) -> str:
        """A step's name."""
        return self.graph.by_digest[vertex].name if self.graph else str(vertex)


@contextmanager
def of_root(root: roots.Root, build: str) -> Iterator[Recorded]:
    """The build whose id begins with `build`. Raises InputError, VerificationError."""
    root.views.catch_up(root.log)  # it may have been found to be interrupted just now
    record = History(root.views).get(build)
    if record.status == "running":
        raise InputError(f"build {record.id} has not ended", hint="replay it when it has")
    story = read_story(root.log, record)
    blobs = roots.read_blobs(root.path)
    graph = _graph(story, blobs.get)
    yield Recorded(story, graph, root.log, _text(story, blobs.get))


@contextmanager
def of_bundle(root: roots.Root, path: Path, owner: str) -> Iterator[Recorded]:
    """The build in a bundle, whose blobs lie in the root's scratch directory as long as the context lasts; the log of
    the root stays its own. Raises InputError, VerificationError, DiskError."""
    place = root.tmp / f"{owner}-{'0' * 16}"
    store = roots.scratch_blobs(place, owner)
    try:
        bundle = _whole(read_bundle(path, _taker(store, shutil.disk_usage(root.tmp).free // 2, path)))
        views = Views(None, STANDARD)
        try:
            views.catch_up(bundle.log)
            records = [record for record in History(views).list() if record.id == bundle.index.build]
        finally:
            views.close()
        if not records:
            raise VerificationError(f"the bundle has no event of build {bundle.index.build}", where=str(path))
        story = read_story(bundle.log, records[0])
        for data in bundle.small.values():
            store.put(data)
        yield _of(bundle, story, store)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _whole(bundle: Bundle) -> Bundle:
    if bundle.damage is not None:
        raise bundle.damage
    return bundle


def _taker(store: BlobStore, room: int, path: Path) -> Callable[[Member], BlobWriter | None]:
    """Stores layers and packs, at most `room` bytes: a small file may say that it holds any number."""
    left = room

    def take(member: Member) -> BlobWriter | None:
        nonlocal left
        if member.role not in {"layer", "pack"}:
            return None
        left -= member.size
        if left < 0:
            raise DiskError(
                f"what the bundle holds is more than half of the free {2 * room} bytes", where=str(path),
                hint="free some space, or set REFLEDGER_ROOT to a larger disk",
            )  # fmt: skip
        return store.writer()

    return take


def _of(bundle: Bundle, story: Story, store: BlobStore) -> Recorded:
    bundled, pointed = {}, {}
    try:
        for name, said in bundle.index.layers.items():
            pointed[name] = Layer.from_json(said)
            if "bundled" in said:
                blob = Descriptor.from_json(said["bundled"])
                bundled[name] = Layer(diff_id=blob.digest, blob=blob)
        files = {ref: load(bundle.small[Digest(listing)]) for ref, listing in bundle.index.files.items()}
    except BAD_EVENT as error:
        raise VerificationError(f"the index is damaged: {error!r}", where=str(bundle.path)) from error
    return Recorded(
        story, _graph(story, store.get), bundle.log, _text(story, store.get), store, bundled, pointed,
        bundle.index.kept, files, bundle.index.withheld, str(bundle.digest),
    )  # fmt: skip


def _graph(story: Story, blob: Callable[[Digest], bytes]) -> Graph | None:
    graph = read_graph(story, blob)
    if graph is not None:
        learn_results(story, graph)
    return graph


def _text(story: Story, blob: Callable[[Digest], bytes]) -> str:
    try:
        return blob(Digest(story.definition)).decode("utf-8", "replace") if story.definition else ""
    except FileNotFoundError:
        return ""


# ---------------------------------------------------------------- contexts


def restore_contexts(
    recorded: Recorded,
    steps: Sequence[Vertex],
    place: Path,
    blobs: BlobStore,
    lower: Callable[[Layer], Path | None],
) -> None:
    """Make in `place` the files that `steps` took from contexts, in a directory called by the hex of each context's
    vertex. `lower`: the files of a layer, None when it is not here. Blocking. Raises VerificationError, DiskError."""
    for step in steps:
        for context, listing in recorded.story.listings.get(str(step.digest), ()):
            directory = place / Digest(context).hex
            with ExitStack() as stack:
                packs = [*map(Digest, recorded.kept.get(listing, ()))]
                layers = []
                for kept in () if recorded.blobs else recorded.story.kept.get(listing, ()):
                    packs += kept.packs
                    layers.append(kept.layer)
                found = [stack.enter_context(blobs.open(pack)) for pack in packs if blobs.size(pack) is not None]
                lowers = [path for layer in layers if layer and (path := lower(layer)) is not None]
                try:
                    restore(blobs.get(Digest(listing)), lowers, map(regular_files, found), directory)
                except FileNotFoundError as error:
                    raise VerificationError(
                        f"what {step.name} took of its context is not known here: {listing}",
                        hint="it was left out of the bundle, or collected",
                    ) from error
                except VerificationError as error:
                    error.where = error.where or step.name
                    raise
                except OSError as error:
                    raise DiskError.of(error, f"restoring what {step.name} took of its context") from error
