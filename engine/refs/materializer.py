"""The only door to bytes.

Invariants, by number:
- I2: `MaterializationRequested` is durable before a provider is asked for a layer.
- I3: a layer is published only after its blob's digest and its diff ID were checked, both while it streamed. What came
  of a blob before (from another provider, to another process) is no more than bytes: they are digested with the rest.
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
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.clock import Clock
from engine.errors import FailureKind, MaterializationError, RefledgerError, RegistryError, VerificationError
from engine.events import (
    LayerPulled,
    MaterializationFailed,
    MaterializationRequested,
    Materialized,
    ProviderLost,
    PullFailed,
    PullProgressed,
    PullStarted,
)
from engine.ledger import Facts
from engine.refs.fill import FetchLimits
from engine.refs.kept import Kept, Known, NothingKnown
from engine.refs.places import Places, is_loss, kind_of
from engine.refs.providers import providers_of, unavailable
from engine.refs.pull import Pull
from engine.refs.ref import Layer, Local, Ref
from engine.together import in_thread, locked, settle, together
from storage.errors import DiskError
from storage.interfaces.blobs import BlobStore, ByteSource, PartialBlobs
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.layers import CheckedLayers, CheckedSnapshots
from storage.interfaces.locks import Locks
from storage.interfaces.registry import RegistrySource

Reason = Literal["run", "copy", "export", "shell", "inspect"]
PROGRESS_INTERVAL = 0.25
"""Seconds between two PullProgressed of one layer."""


@dataclass(slots=True)
class _Flight:
    """One `layer` on its way, wanted by `waiters` tasks of this process."""

    layer: Layer
    task: asyncio.Task[int | None]
    waiters: int = 0


@dataclass(frozen=True, slots=True)
class _Use:
    """What is done with the bytes of a blob while they come: `read` takes them to their end; `makes` the diff ID of the
    layer that is mountable then, "" for none."""

    read: Callable[[ByteSource], int]
    makes: str = ""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why one layer could not be had. `again`: the same provider may yet give it; `final`: no other one can, as another
    one's bytes would not fit either, or are the same."""

    error: RefledgerError
    kind: FailureKind
    again: bool = False
    final: bool = False


class LayerUnavailable(Exception):
    """Internal: none of the places that were `asked` could give the layer; the waiter says for which step."""

    def __init__(
        self, layer: Layer, kind: FailureKind, error: RefledgerError | None, asked: Sequence[Provider] = ()
    ) -> None:
        super().__init__(str(error))
        self.layer = layer
        self.kind = kind
        self.error = error
        self.asked = tuple(asked)


@dataclass(slots=True)
class Materializer:
    """Makes refs mountable. One per process and root; all ops share it."""

    layers: CheckedLayers
    snapshots: CheckedSnapshots
    blobs: BlobStore
    partials: PartialBlobs
    registry: RegistrySource
    locks: Locks
    facts: Facts
    clock: Clock
    parallel: int = 4
    fetching: FetchLimits = field(default_factory=FetchLimits)
    known: Known = field(default_factory=NothingKnown)
    places: Places = field(default_factory=Places)
    kept: Kept = field(init=False)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _slots: asyncio.Semaphore | None = None
    _connections: asyncio.Semaphore | None = None
    _threads: ThreadPoolExecutor | None = None

    def __post_init__(self) -> None:
        self.kept = Kept(self.layers, self.snapshots, self.locks, self.facts, self.known)

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
        return self.here(layer) or next(self.providers(layer), None) is not None

    def providers(self, layer: Layer) -> Iterator[Provider]:
        """Who may have the blob of `layer`: its own providers, then others that the log knows of."""
        return providers_of(layer, self.known)

    def close(self) -> None:
        """Let the threads and the mounts of layers go. Raises DiskError."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
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
            async with self._fetching(layer.blob):
                return await self._fetch(layer, layer.blob, _Use(use), vertex, cause)
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
        asked = failure.asked or tuple(self.providers(layer))
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
                    return None
                self.kept.miss(layer)
            if layer.diff_id is None or layer.blob is None:
                raise LayerUnavailable(layer, "missing", None)
            diff_id, media_type = layer.diff_id, layer.blob.media_type
            use = _Use(lambda source: self.layers.unpack(diff_id, media_type, source), str(diff_id))
            async with self._fetching(layer.blob):
                return await self._fetch(layer, layer.blob, use, vertex, cause)

    @asynccontextmanager
    async def _fetching(self, blob: Descriptor) -> AsyncIterator[None]:
        """One fetch of `blob` at a time, also across processes, and only so many of all blobs in this one."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.parallel)
            self._connections = asyncio.Semaphore(max(self.fetching.connections, self.parallel))
            self._threads = ThreadPoolExecutor(self.parallel, thread_name_prefix="unpack")
        # The same blob may be two layers, when a config names another diff ID for it.
        async with locked(self.locks, f"partial-{blob.digest}"), self._slots:
            yield

    async def _fetch(self, layer: Layer, blob: Descriptor, use: _Use, vertex: str | None, cause: int) -> int:
        """Try the blob that lies here, then each place. Returns the bytes that came over a wire."""
        last: _Failure | None = None
        if self.blobs.size(blob.digest) is not None:
            try:
                await self._use_stored(blob, use)
            except FileNotFoundError:
                pass
            except VerificationError as error:
                last = _Failure(error, "corrupt")
                await in_thread(lambda: self.blobs.sound(blob.digest))  # not if it is the layer that was promised wrong
            else:
                return 0
        asked = []
        for provider in self.places.of(self.providers(layer), blob.digest):
            asked.append(provider)
            outcome = await self._pull(blob, provider, use, vertex, cause)
            if isinstance(outcome, _Failure) and outcome.again:
                outcome = await self._pull(blob, provider, use, vertex, cause)
            if not isinstance(outcome, _Failure):
                return outcome
            last = outcome
            if last.final:
                break  # before anybody is blamed
            self.lost_by(provider, layer, blob, last.kind, str(last.error), vertex, cause)
            self.places.failed(provider, blob.digest, last.error)
        if last is None:
            refusal = self.places.refusal(blob.digest)
            last = _Failure(refusal, kind_of(refusal))
        raise LayerUnavailable(layer, last.kind, last.error, asked)

    def lost_by(
        self, provider: Provider, layer: Layer, blob: Descriptor, kind: FailureKind, error: str, vertex: str | None,
        cause: int | None,
    ) -> None:  # fmt: skip
        """Say that `provider` has the blob no longer, if that is what the failure says."""
        if is_loss(provider, kind):
            self.facts.post(
                ProviderLost(
                    ref=layer.name, digest=str(blob.digest), provider=provider.to_json(), kind=kind, error=error
                ),
                vertex=vertex,
                cause=cause,
            )

    async def _use_stored(self, blob: Descriptor, use: _Use) -> None:
        with self.blobs.open(blob.digest) as stored:
            source = io.BufferedReader(stored, 1 << 20) if isinstance(stored, io.RawIOBase) else stored
            using = asyncio.ensure_future(self._in_thread(lambda: use.read(source)))
            try:
                await asyncio.shield(using)
            finally:
                stored.close()  # ends the use, if it is the waiter who is leaving
                await settle(using)

    async def _pull(
        self, blob: Descriptor, provider: Provider, use: _Use, vertex: str | None, cause: int
    ) -> int | _Failure:
        """Bring what is missing of the blob from `provider` while it is used. The bytes that came over the wire, or
        what broke it: then nothing of the layer is left, and of the blob what the next pull can go on with."""
        started = self.clock.monotonic()
        digest, source = str(blob.digest), provider.to_json()
        self.facts.post(PullStarted(digest=digest, total=blob.size, provider=source), vertex=vertex, cause=cause)

        def unpack(spool: ByteSource) -> Coroutine[Any, Any, int]:
            return self._in_thread(lambda: use.read(spool))

        pull: Pull | None = None
        try:
            assert self._connections is not None
            shown = self._progress(blob, vertex, cause)
            partial = self.partials.open(blob)
            pull = Pull(self.registry, provider, blob, partial, self._connections, self.fetching, shown)
            if pull.leftover:
                here = PullProgressed(digest=digest, bytes=pull.leftover, total=blob.size)
                self.facts.post(here, vertex=vertex, cause=cause)
            await pull.run(unpack)
        except RegistryError as error:
            failure = _Failure(error, error.kind)
        except VerificationError as error:
            failure = _misfit(error, pull)
        except DiskError as error:
            failure = _Failure(error, "disk", final=True)
        else:
            pulled = LayerPulled(
                digest=digest,
                bytes=pull.wire_bytes,
                provider=source,
                seconds=round(self.clock.monotonic() - started, 6),
                verified=("digest", "diff_id"),
                resumed_from=pull.resumed_from,
                diff_id=use.makes,
            )
            await self.facts.record(pulled, vertex=vertex, cause=cause)
            return pull.wire_bytes
        wire_bytes = pull.wire_bytes if pull else 0
        failed = PullFailed(
            digest=digest, provider=source, kind=failure.kind, error=str(failure.error), bytes=wire_bytes
        )
        self.facts.post(failed, vertex=vertex, cause=cause)
        return failure

    def _progress(self, blob: Descriptor, vertex: str | None, cause: int) -> Callable[[int], None]:
        """Puts PullProgressed into the log, at most four a second, when told how many bytes are here."""
        due = self.clock.monotonic() + PROGRESS_INTERVAL

        def shown(here: int) -> None:
            nonlocal due
            if (now := self.clock.monotonic()) >= due:
                due = now + PROGRESS_INTERVAL
                fact = PullProgressed(digest=str(blob.digest), bytes=here, total=blob.size)
                self.facts.post(fact, vertex=vertex, cause=cause)

        return shown

    async def _in_thread(self, work: Callable[[], int]) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _source(layer: Layer) -> tuple[Descriptor | None, tuple[Provider, ...]]:
    """What a layer is made of, and who is named for it."""
    return layer.blob, layer.providers


def _misfit(error: VerificationError, pull: Pull | None) -> _Failure:
    """Whom wrong bytes are blamed on: not yet on the provider when an earlier pull left some of them."""
    assert pull is not None  # only what it read can be wrong
    again = pull.misread and pull.leftover > 0
    if again:
        what = f"{pull.leftover} bytes were left by an earlier pull, and the whole is wrong: {error.what}"
        error = VerificationError(what, where=error.where, hint="it is fetched anew")
    return _Failure(error, "corrupt", again=again, final=pull.verified)
