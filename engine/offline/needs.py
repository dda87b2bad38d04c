"""What a plan needs on this disk and does not have: found out before anything runs, without fetching.

A RUN, a WORKDIR and the base of a COPY need all layers; the source of a COPY only those that answer for what is copied,
looked for as engine/refs/asked.py does; an export the blobs, or (type=local) the files. What a cache mount begins with
is left out: whether it is needed is known when the step runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.errors import DiskError, InputError
from engine.graph import (
    ArchiveSource,
    Copy,
    FetchedSource,
    GitSource,
    Graph,
    HttpSource,
    ImageSource,
    LayerSource,
    Merge,
    Mkdir,
    Run,
    Vertex,
)
from engine.offline.missing import Missing, blob_name
from engine.ops.rules import asked_of
from engine.ops.users import names_nobody
from engine.output import Output
from engine.record import changed
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote, of_image, of_layer
from engine.refs.search import Search
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore
from storage.interfaces.packing import LayerTars, PackedBlob
from storage.interfaces.parts import LayerParts, LayerTree
from storage.interfaces.registry import RegistrySource
from storage.reference import LAYOUT_REGISTRY
from storage.threads import in_thread


class Here(Protocol):
    """Which fetched sources are here. See engine/ops/sources.py."""

    blobs: BlobStore

    async def is_here(self, op: FetchedSource) -> bool:
        """Was it fetched?"""
        ...


class Packed(Protocol):
    """See engine.exporters.transfer.Catalog."""

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedBlob | None:
        """The blob that a snapshot was packed into."""
        ...


@dataclass(slots=True)
class Needs:
    """Answers for one build."""

    materializer: Materializer
    registry: RegistrySource
    catalog: Packed
    parts: LayerParts
    sources: Callable[[], Here]
    tars: LayerTars | None = None

    async def lacking(
        self,
        graph: Graph,
        run: Sequence[Vertex],
        known: Mapping[Digest, Remote],
        *,
        outputs: Sequence[Output] = (),
        epoch: int | None = None,
    ) -> list[Missing]:
        """What is missing to `run` these vertices on the results `known`, and then to write `outputs`."""
        found = _Found()
        stack = _Stack(graph, known)
        for vertex in run:
            op = vertex.op
            if isinstance(op, HttpSource | GitSource | ArchiveSource):
                if (lack := await source_lack(self.sources(), op)) is not None:
                    found.add(lack, vertex.name)
                continue
            for layer in await self._of_step(vertex, stack):
                if not await self._obtainable(layer):
                    found.add_layer(layer, vertex.name)
        for output in outputs:
            if output.kind == "image":
                continue  # a push needs nothing here that its target can mount or be sent
            needed_by = f"--output {output.written}"
            for result in graph.results:
                for layer in stack.layers(result.vertex):
                    why = await self._to_write(layer, output, epoch)
                    if why is not None:
                        found.add_layer(layer, needed_by, why, passing=bool(why))
        return list(found.items.values())

    async def _of_step(self, vertex: Vertex, stack: _Stack) -> Sequence[Layer]:
        match vertex.op:
            case Run(mounts=mounts):
                shown = [vertex.inputs[mount.input] for mount in mounts if mount.input > 0 and mount.kind != "cache"]
                return [layer for digest in (vertex.inputs[0], *shown) for layer in stack.layers(digest)]
            case Mkdir():
                return stack.layers(vertex.inputs[0])
            case Copy() as op:
                alone = op.link and (not op.chown or names_nobody(op.chown))
                base = () if alone else stack.layers(vertex.inputs[0])
                taken = [digest for digest in vertex.inputs[1:] if stack.complete([digest])]
                source = [layer for digest in taken for layer in stack.layers(digest)]
                return [*base, *await self._asked(op, source)]
        return ()

    async def _asked(self, op: Copy, layers: Sequence[Layer]) -> Sequence[Layer]:
        """Those of `layers` that are not here and that what `op` takes cannot be told without: the first of them."""
        kept = self.materializer.kept
        if all(map(kept.mountable, layers)):
            return ()
        above = layers[::-1]
        trees: list[LayerTree | None] = [None] * len(above)
        search = Search(trees, lambda index: 0 if kept.mountable(above[index]) else 1, looks=op.parents)

        def look() -> Sequence[Layer]:
            steps = search.run(asked_of(op))
            while (needed := next(steps, None)) is not None:
                lacking = [above[index] for index in needed if not kept.mountable(above[index])]
                if lacking:
                    return lacking
                for index in needed:
                    trees[index] = self.parts.tree(kept.lower(above[index]))
            return ()

        try:
            return await in_thread(look)
        except InputError:
            return ()  # a malformed pattern: the step itself says in which line
        except OSError as error:
            raise DiskError.of(error, "looking into layers") from error

    async def _obtainable(self, layer: Layer) -> bool:
        """Is `layer` mountable, or can it be made so from this disk?"""
        return self.materializer.here(layer) or await self._blob_is_here(layer)

    async def _blob_is_here(self, layer: Layer) -> bool:
        if layer.blob is None:
            return False
        if self.materializer.blobs.size(layer.blob.digest) is not None:
            return True
        layouts = [provider for provider in layer.providers if provider.registry == LAYOUT_REGISTRY]
        return any([await self.registry.exists(provider, layer.blob.digest) for provider in layouts])

    async def _to_write(self, layer: Layer, output: Output, epoch: int | None) -> str | None:
        """Why `layer` cannot be written to `output` from what is here, "" for nothing to add; None: it can."""
        if output.of_files:
            return None if await self._obtainable(layer) else ""
        if layer.snapshot:
            packed = self.catalog.packed(layer.snapshot, epoch, output.form.compression.written)
            packed_here = packed is not None and self.materializer.blobs.size(packed.blob.digest) is not None
            if packed_here or self.materializer.snapshots.has(layer.snapshot):
                return None
        if await self._blob_is_here(layer):
            return None
        if self.tars is not None and layer.diff_id is not None and self.tars.has(layer.diff_id):
            return None
        if self.materializer.kept.mountable(layer):
            return f"its files are here, but type={output.kind} takes the blob as its registry has it"
        return ""


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers below and in each vertex, as far as they are there before anything runs."""

    graph: Graph
    known: Mapping[Digest, Remote]
    _made: dict[Digest, tuple[Layer, ...]] = field(default_factory=dict)

    def layers(self, digest: Digest) -> tuple[Layer, ...]:
        """Bottom first."""
        if digest not in self._made:
            self._made[digest] = self._layers(digest)
        return self._made[digest]

    def complete(self, digests: Sequence[Digest]) -> bool:
        """Are these results there before anything runs?"""
        vertices = [self.graph.by_digest[digest] for digest in digests if digest not in self.known]
        return all(
            isinstance(vertex.op, ImageSource | LayerSource)
            or (isinstance(vertex.op, Merge) and self.complete(vertex.inputs))
            for vertex in vertices
        )

    def _layers(self, digest: Digest) -> tuple[Layer, ...]:
        if digest in self.known:
            return self.known[digest].layers
        vertex = self.graph.by_digest[digest]
        match vertex.op:
            case ImageSource(layers=layers, provider=provider):
                return of_image(layers, provider).layers
            case LayerSource(layer=layer, created=created):
                return of_layer(layer, created).layers
            case Merge():
                return tuple(layer for item in vertex.inputs for layer in self.layers(item))
            case Run() | Copy() | Mkdir():
                return self.layers(vertex.inputs[0])  # and one that it makes
        return ()


@dataclass(frozen=True, slots=True)
class _Found:
    """What is missing, by name, with all that need it."""

    items: dict[str, Missing] = field(default_factory=dict)

    def add(self, lack: Missing, needed_by: str) -> None:
        """`lack` is missing to step or export `needed_by`."""
        before = self.items.get(lack.name, lack)
        needed = tuple(dict.fromkeys((*before.needed_by, needed_by)))
        passing = before.passing and lack.passing
        self.items[lack.name] = changed(
            before, needed_by=needed, detail=before.detail or lack.detail, passing=passing
        )

    def add_layer(self, layer: Layer, needed_by: str, detail: str = "", *, passing: bool = False) -> None:
        """`layer` is missing to step or export `needed_by`."""
        elsewhere = tuple(map(str, layer.providers)) if layer.blob else ()
        if not elsewhere and not detail:
            detail = "nobody is known to have it: only the step that made it can make it again"
        size = layer.blob.size if layer.blob else 0
        self.add(Missing("layer", blob_name(layer), size, (), elsewhere, detail, passing), needed_by)


async def source_lack(sources: Here, op: FetchedSource) -> Missing | None:
    """What is missing of a pinned source; None when it is here."""
    if await sources.is_here(op):
        return None
    match op:
        case HttpSource():
            return unknown_url(op.url, f"its content is not here: {op.digest}")
        case GitSource():
            return unknown_ref(op, f"its files are not here: commit {op.commit}")
        case _:  # an ArchiveSource
            if sources.blobs.size(Digest(op.digest)) is not None:
                return None
            return changed(unknown_url(op.url or op.digest, f"its content is not here: {op.digest}"), kind="archive")


def unknown_url(url: str, detail: str) -> Missing:
    """A file of the web."""
    return Missing("url", url.partition("?")[0], detail=detail)  # a query may hold a signature


def unknown_ref(op: GitSource, detail: str) -> Missing:
    """A ref of a repository."""
    return Missing("git", op.remote + (f"#{op.ref}" if op.ref else ""), detail=detail)
