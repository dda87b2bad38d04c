"""The only door to bytes.

Invariants, by number:
- I2: `MaterializationRequested` is durable before a provider is asked for a layer.
- I3: a layer is published only after its blob's digest and its diff ID were checked, both while it streamed (fetch.py).
- I4: a layer is fetched once at a time per root. Within the process the waiters share a flight that belongs to none
  of them; across processes they share a lock. Whoever gets the lock and finds the layer missing fetches it, with its
  own credentials: the failure of another process is never inherited. What it brought until then is: an interrupted
  pull goes on from the bytes that are here, until they turn out to be wrong.
- I7: mountable, blob here and available at a provider are asked separately, each when it matters.
- I8: what is damaged here is found before it is used (once a process and layer), said in the log, and removed: from
  then on it is not here. A layer that its own providers lost is asked of all that the log knows of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.clock import Clock
from engine.errors import MaterializationError
from engine.events import MaterializationFailed, MaterializationRequested, Materialized
from engine.ledger import Facts
from engine.refs.fetch import Fetcher, LayerUnavailable, Use
from engine.refs.kept import Kept
from engine.refs.providers import unavailable
from engine.refs.ref import Layer, Local, Ref
from engine.together import locked, together
from storage.interfaces.blobs import BlobStore, ByteSource
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.layers import CheckedLayers, CheckedSnapshots
from storage.interfaces.locks import Locks
from storage.threads import settle

Reason = Literal["run", "copy", "export", "shell", "inspect"]


@dataclass(slots=True)
class _Flight:
    """One `layer` on its way, wanted by `waiters` tasks of this process."""

    layer: Layer
    task: asyncio.Task[int | None]
    waiters: int = 0


@dataclass(slots=True)
class Materializer:
    """Makes refs mountable. One per process and root; all ops share it."""

    layers: CheckedLayers
    snapshots: CheckedSnapshots
    fetcher: Fetcher
    locks: Locks
    facts: Facts
    clock: Clock
    kept: Kept = field(init=False)
    _flights: dict[str, _Flight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = Kept(self.layers, self.snapshots, self.locks, self.facts, self.fetcher.known)

    @property
    def blobs(self) -> BlobStore:
        """What lies here as it came, or as it goes."""
        return self.fetcher.blobs

    async def materialize(self, ref: Ref, *, vertex: str | None, reason: Reason, needed_by: str = "") -> Local:
        """Make every layer of `ref` mountable here, fetching what is missing; `needed_by` names the step for errors.

        Raises MaterializationError when a layer cannot be had.
        """
        await self.kept.check(ref.layers, vertex)
        missing = {layer.name: layer for layer in ref.layers if not self.kept.mountable(layer)}
        if missing:
            await self._bring(ref, list(missing.values()), vertex, reason, needed_by)
        return Local(ref.id, ref.layers, tuple(self.kept.lower(layer) for layer in ref.layers))

    async def verify(self, ref: Ref, layers: Sequence[Layer], *, vertex: str | None, needed_by: str) -> None:
        """Fetch `layers` of `ref`, and say in the log what that showed: also those that are mountable here, as a
        process that died, or another blob of the same layer, may have left them. Raises MaterializationError."""
        fetchable = [layer for layer in layers if layer.blob is not None and layer.diff_id is not None]
        await self._bring(ref, fetchable, vertex, "export", needed_by, anew=True)

    def here(self, layer: Layer) -> bool:
        """Does `layer` need nobody else: is it mountable here, or its blob on this disk?"""
        return self.kept.mountable(layer) or (layer.blob is not None and self.blobs.size(layer.blob.digest) is not None)

    def obtainable(self, layer: Layer) -> bool:
        """Is `layer` either here or known to lie at a provider? Asks nobody."""
        return self.here(layer) or next(self.fetcher.providers(layer), None) is not None

    def close(self) -> None:
        """Let the threads and the mounts of layers go. Raises DiskError."""
        self.fetcher.close()
        self.layers.close()

    async def _bring(
        self, ref: Ref, missing: Sequence[Layer], vertex: str | None, reason: Reason, needed_by: str, *,
        anew: bool = False,
    ) -> None:  # fmt: skip
        started = self.clock.monotonic()
        requested = await self.facts.record(
            MaterializationRequested(
                ref=ref.id,
                reason=reason,
                layers=tuple(str(layer.blob.digest) for layer in missing if layer.blob),
                bytes=sum(layer.blob.size for layer in missing if layer.blob),
                snapshotter=self.layers.name,
            ),
            vertex=vertex,
        )
        fetched, waited = await self.fetch(
            ref, missing, vertex=vertex, cause=requested, needed_by=needed_by, anew=anew
        )
        await self.facts.record(
            Materialized(
                ref=ref.id, bytes=fetched, seconds=round(self.clock.monotonic() - started, 6), waited=waited
            ),
            vertex=vertex,
            cause=requested,
        )

    async def fetch(
        self, ref: Ref, layers: Sequence[Layer], *, vertex: str | None, cause: int, needed_by: str, anew: bool = False
    ) -> tuple[int, tuple[str, ...]]:
        """Make some layers of `ref` mountable, for the request `cause` in the log; the bytes that came for it, and
        the layers that others fetched; `anew`: fetch also those that are mountable. Raises MaterializationError, which
        is in the log then."""
        try:
            fetched = await together(self._wait_for(layer, vertex, cause, anew=anew) for layer in layers)
        except LayerUnavailable as failure:
            raise await self._failed(ref, failure, vertex, cause, needed_by) from failure.error
        pairs = zip(layers, fetched, strict=True)
        waited = tuple(str(layer.blob.digest) for layer, size in pairs if size is None and layer.blob)
        return sum(size or 0 for size in fetched), waited

    async def read(
        self, ref: Ref, layer: Layer, use: Callable[[ByteSource], int], *, vertex: str | None, cause: int
    ) -> int:
        """Have `use` read the blob of `layer`, of which nothing stays here, for the request `cause` in the log; the
        bytes that came for it. `use` begins anew with each provider. Raises MaterializationError, which is in the log
        then."""
        assert layer.blob is not None, "a layer without a blob cannot be read"
        try:
            return await self.fetcher.fetch(layer, layer.blob, Use(use), vertex, cause)
        except LayerUnavailable as failure:
            raise await self._failed(ref, failure, vertex, cause, "the export") from failure.error

    async def _failed(
        self, ref: Ref, failure: LayerUnavailable, vertex: str | None, cause: int, needed_by: str
    ) -> MaterializationError:
        layer, blob = failure.layer, failure.layer.blob
        name = blob.digest.short if blob else layer.name
        what = f"layer {name} cannot be had"
        if failure.error is not None:
            what += f": {failure.error.what}"
        if needed_by:
            what += f"; needed by {needed_by}"
        asked = failure.asked or tuple(self.fetcher.providers(layer))
        error = unavailable(what, layer, failure.kind, failure.error, asked)
        await self.facts.record(
            MaterializationFailed(
                ref=ref.id,
                digest=str(blob.digest) if blob else layer.name,
                kind=failure.kind,
                error=str(error),
                providers=tuple(provider.to_json() for provider in asked),
            ),
            vertex=vertex,
            cause=cause,
        )
        return error

    # ------------------------------------------------------------ one layer, many waiters

    async def _wait_for(self, layer: Layer, vertex: str | None, cause: int, *, anew: bool) -> int | None:
        """Bytes fetched, or None when somebody else fetched it. Raises LayerUnavailable."""
        while True:
            flight = self._flights.get(layer.name)
            joined = flight is not None and not flight.task.done()
            if flight is None or not joined:
                flight = _Flight(layer, asyncio.ensure_future(self._fly(layer, vertex, cause, anew=anew)))
                self._flights[layer.name] = flight
            flight.waiters += 1
            try:
                fetched = await asyncio.shield(flight.task)
            except LayerUnavailable:
                if not joined or _source(flight.layer) == _source(layer):
                    raise  # else this waiter knows of other places, or of another blob that becomes the layer
            else:
                return None if joined else fetched
            finally:
                flight.waiters -= 1
                if flight.waiters == 0:
                    # The last waiter left: nobody wants the bytes any more.
                    if self._flights.get(layer.name) is flight:
                        del self._flights[layer.name]
                    flight.task.cancel()
                    await settle(flight.task)  # also to have seen how it ended: the waiter may leave for another reason

    async def _fly(self, layer: Layer, vertex: str | None, cause: int, *, anew: bool) -> int | None:
        async with locked(self.locks, f"layer-{layer.name}"):
            if not anew:
                if self.kept.mountable(layer):
                    await self.kept.explain(layer, vertex)  # whoever was waited for may have died
                if self.kept.mountable(layer):
                    return None
                self.kept.miss(layer)
            if layer.diff_id is None or layer.blob is None:
                raise LayerUnavailable(layer, "missing", None)
            diff_id, media_type = layer.diff_id, layer.blob.media_type
            use = Use(lambda source: self.layers.unpack(diff_id, media_type, source), str(diff_id))
            return await self.fetcher.fetch(layer, layer.blob, use, vertex, cause)

def _source(layer: Layer) -> tuple[Descriptor | None, tuple[Provider, ...]]:
    """What a layer is made of, and who is named for it."""
    return layer.blob, layer.providers
