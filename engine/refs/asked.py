"""Only what is asked: layers that together answer for some paths, without fetching the layers that do not matter.

A layer that carries a table of contents is looked into there, and only the asked files of it are read, by range
(storage/parts/toc.py, storage/parts/trees.py); where that fails it is fetched whole, like any other. I2 holds for every
part: what is asked next is in the log before a byte of it moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.clock import Clock
from engine.errors import DiskError, VerificationError
from engine.events import (
    MaterializationRequested,
    Materialized,
)
from engine.ledger import Facts
from engine.refs.materializer import Materializer
from engine.refs.ranged import RangeReader, Request
from engine.refs.ref import Layer, Ref
from engine.refs.search import Search
from engine.together import together
from storage.digest import Digest
from storage.interfaces.images import Descriptor
from storage.interfaces.parts import LayerParts, LayerTree, PartReader, Toc
from storage.interfaces.registry import RegistrySource
from storage.threads import in_thread

SMALL = 128 * 1024
"""Bytes of a layer up to which it is fetched whole: a few requests cost more than that."""
WHOLE_SHARE = 2
"""When more than 1/2 of a layer is asked for, all of it comes: it can be used again then."""
_KEPT = 16
"""Tables of contents that are kept for the next COPY."""


@dataclass(slots=True)
class AskedPaths:
    """Answers for paths of refs. One per process and root, beside the materializer."""

    materializer: Materializer
    parts: LayerParts
    registry: RegistrySource
    facts: Facts
    clock: Clock
    small: int = SMALL
    _tocs: dict[Digest, Toc] = field(default_factory=dict)

    @asynccontextmanager
    async def paths(
        self, ref: Ref, sources: Sequence[str], *, vertex: str | None, needed_by: str, looks: bool = False
    ) -> AsyncIterator[tuple[Path, ...]]:
        """Overlay lowers, bottom first, that have at `sources` (paths and patterns, see engine.ops.select) what all
        layers of `ref` have; they may lack everything else. `looks`: also how directories on the way look.

        Raises MaterializationError, DiskError, and InputError for a malformed pattern. What is laid out for this only
        is gone when the context ends."""
        asking = _Asking(self, ref, tuple(sources), vertex, needed_by, looks)
        try:
            yield await asking.lowers()
        finally:
            await in_thread(asking.discard)

    def toc(self, blob: Descriptor) -> Toc | None:
        """The table of contents of `blob`, if it was read before."""
        return self._tocs.get(blob.digest)

    def keep(self, blob: Descriptor, toc: Toc) -> None:
        """Remember the table of contents of `blob`, for some time."""
        self._tocs[blob.digest] = toc
        while len(self._tocs) > _KEPT:
            del self._tocs[next(iter(self._tocs))]


class _Asking:
    """One question. Layers are counted from the top, as in Search."""

    def __init__(
        self, owner: AskedPaths, ref: Ref, sources: Sequence[str], vertex: str | None, needed_by: str, looks: bool
    ) -> None:
        self._owner = owner
        self._materializer = owner.materializer
        self._ref = ref
        self._sources = sources
        self._vertex = vertex
        self._needed_by = needed_by
        self._looks = looks
        self._layers = ref.layers[::-1]
        self._trees: list[LayerTree | None] = [None] * len(self._layers)
        self._tocs: dict[int, Toc] = {}
        self._readers: dict[int, PartReader] = {}
        self._lowers: dict[int, Path] = {}
        self._came: dict[int, int] = {}
        """Bytes that came of a layer which is not here whole."""
        self._request: Request | None = None
        self._ranged = RangeReader(
            owner.parts, owner.registry, owner.facts, owner.clock, ref.id, vertex,
            asyncio.Semaphore(owner.materializer.fetcher.parallel), owner.materializer.fetcher,
        )  # fmt: skip
        self._by_range = {index for index, layer in enumerate(self._layers) if self._has_toc(layer)}

    async def lowers(self) -> tuple[Path, ...]:
        """See AskedPaths.paths."""
        try:
            while True:
                search = Search(self._trees, self._cost, looks=self._looks)
                await self._run(search)
                if await self._take_parts(search):
                    break
            await self._conclude()
            used = [index for index in range(len(self._layers)) if search.part(index).seen]
        except OSError as error:
            raise DiskError.of(error, self._needed_by) from error
        return tuple(self._lowers[index] for index in reversed(used))

    def discard(self) -> None:
        """Remove what was laid out for this question."""
        while self._readers:
            self._readers.popitem()[1].discard()

    # ---------------------------------------------------------------- the search

    def _has_toc(self, layer: Layer) -> bool:
        blob = layer.blob
        return (
            blob is not None
            and blob.size > self._owner.small
            and next(self._materializer.fetcher.providers(layer), None) is not None
            and not self._materializer.kept.mountable(layer)
            and self._materializer.blobs.size(blob.digest) is None
            and self._owner.parts.toc(blob) is not None
        )

    def _cost(self, index: int) -> int:
        if self._materializer.kept.mountable(self._layers[index]):
            return 0
        return 1 if index in self._by_range else 2

    async def _open(self, index: int) -> None:
        """Look into a layer that is mountable here."""
        layer = self._layers[index]
        lower = self._lowers[index] = await in_thread(lambda: self._materializer.kept.lower(layer))
        self._trees[index] = await in_thread(lambda: self._owner.parts.tree(lower))

    async def _run(self, search: Search) -> None:
        steps = search.run(self._sources)
        while (needed := await in_thread(lambda: next(steps, None))) is not None:
            await self._look_into(needed)

    async def _look_into(self, needed: Sequence[int]) -> None:
        """Make it possible to look into the layers `needed`, by their tables of contents where they have them."""
        here = [index for index in needed if await self._materializer.kept.usable(self._layers[index], self._vertex)]
        for index in here:
            self._by_range.discard(index)
            await self._open(index)
        ranged = [index for index in needed if index in self._by_range]
        whole = [index for index in needed if index not in self._by_range and index not in here]
        unread = [index for index in ranged if not self._known(index)]
        if whole or unread:
            request = await self._ask([*unread, *whole], sum(self._size(index) for index in whole))
            *read, _ = await together(
                [*(self._read_toc(index, request) for index in unread), self._fetch(whole, request)]
            )
            failed = [index for index, toc in zip(unread, read, strict=True) if toc is None]
            if failed:
                await self._whole(failed)

    def _known(self, index: int) -> bool:
        blob = self._layers[index].blob
        toc = self._owner.toc(blob) if blob is not None else None
        if toc is not None:
            self._trees[index] = self._tocs[index] = toc
        return toc is not None

    async def _whole(self, indexes: Sequence[int]) -> None:
        """Fetch layers whole after all."""
        self._by_range.difference_update(indexes)
        for index in indexes:
            self._tocs.pop(index, None)
        await self._look_into(indexes)

    async def _fetch(self, indexes: Sequence[int], request: Request) -> None:
        layers = [self._layers[index] for index in indexes]
        count, request.waited = await self._materializer.fetch(
            self._ref, layers, vertex=self._vertex, cause=request.seq, needed_by=self._needed_by
        )
        request.bytes += count
        for index in indexes:
            await self._open(index)

    # ---------------------------------------------------------------- by range

    async def _take_parts(self, search: Search) -> bool:
        """Lay out the asked files of layers with a table of contents; False when one of them came whole instead, and
        the search must look into that."""
        await in_thread(self.discard)
        whole = []
        for index, toc in self._tocs.items():
            part = search.part(index)
            if not part.seen:
                continue  # pragma: no cover - a lying table above it led here, and what came whole does not
            try:
                reader = self._readers[index] = await in_thread(lambda: toc.part(part))  # noqa: B023 - awaited here
            except VerificationError as error:
                provider = next(self._materializer.fetcher.providers(self._layers[index]))
                self._ranged.failed(self._layers[index], self._blob(index), provider, error, 0, self._request)
                whole.append(index)
            else:
                if _length(reader) * WHOLE_SHARE > self._size(index):
                    whole.append(index)
        if whole:
            await self._whole(whole)
            return False
        reading = [index for index, reader in self._readers.items() if reader.ranges]
        request = self._request
        if reading:
            request = await self._ask(reading, sum(_length(self._readers[index]) for index in reading))
        done = await together(self._take_part(index, request) for index in self._readers)
        failed = [index for index, laid_out in zip(self._readers, done, strict=True) if not laid_out]
        if failed:
            await self._whole(failed)
        return not failed

    async def _read_toc(self, index: int, request: Request) -> Toc | None:
        blob = self._blob(index)
        found = await self._ranged.toc(self._layers[index], blob, request)
        if found is None:
            return None
        toc, self._came[index] = found
        self._trees[index] = self._tocs[index] = toc
        self._owner.keep(blob, toc)
        return toc

    async def _take_part(self, index: int, request: Request | None) -> bool:
        reader = self._readers[index]
        if not reader.ranges or request is None:
            self._lowers[index] = await in_thread(reader.lay_out)
            return True
        came = self._came.get(index, 0)
        found = await self._ranged.part(self._layers[index], self._blob(index), reader, came, request)
        if found is None:
            return False  # pragma: no cover - as in RangeReader.part
        self._lowers[index], count = found
        self._came[index] = came + count
        return True

    # ---------------------------------------------------------------- the log

    async def _ask(self, indexes: Sequence[int], expected: int) -> Request:
        """Put the next request in the log; the one before it is answered."""
        await self._answer()
        layers = tuple(str(self._layers[index].blob.digest) for index in indexes if self._layers[index].blob)  # type: ignore[union-attr]  # just asked
        seq = await self._owner.facts.record(
            MaterializationRequested(
                ref=self._ref.id, reason="copy", layers=layers, bytes=expected,
                snapshotter=self._materializer.layers.name,
            ),
            vertex=self._vertex,
        )  # fmt: skip
        self._request = Request(seq, self._owner.clock.monotonic(), layers)
        return self._request

    async def _answer(self, unfetched: Mapping[str, int] | None = None) -> None:
        """The open request's Materialized; `unfetched` (layer → bytes) with the last one."""
        request, self._request = self._request, None
        if request is None:
            return
        missing = unfetched or {}
        whole = unfetched is not None and all(map(self._materializer.kept.mountable, self._layers))
        await self._owner.facts.record(
            Materialized(
                ref=self._ref.id,
                bytes=request.bytes,
                seconds=round(self._owner.clock.monotonic() - request.started, 6),
                waited=request.waited,
                whole=whole,
                avoided=sum(missing.values()),
                unfetched=tuple({"digest": name, "bytes": count} for name, count in missing.items()),
            ),
            vertex=self._vertex,
            cause=request.seq,
        )

    async def _conclude(self) -> None:
        unfetched: dict[str, int] = {}
        for index, layer in enumerate(self._layers):
            if layer.blob is None or self._materializer.kept.mountable(layer):
                continue
            if self._materializer.blobs.size(layer.blob.digest) is None:
                name = str(layer.blob.digest)
                unfetched[name] = max(unfetched.get(name, layer.blob.size) - self._came.get(index, 0), 0)
        if unfetched and self._request is None:
            await self._ask([], 0)  # what is here answers: nothing is asked for, and that is worth saying
        await self._answer(unfetched)

    def _blob(self, index: int) -> Descriptor:
        blob = self._layers[index].blob
        assert blob is not None  # only layers with a blob are asked for by range
        return blob

    def _size(self, index: int) -> int:
        blob = self._layers[index].blob
        return blob.size if blob is not None else 0


def _length(reader: PartReader) -> int:
    return sum(end - start for start, end in reader.ranges)
