"""One blob, from what lies here or from its providers, one after the other, to whoever uses it while it comes.

I3: what is used is believed only once the blob's digest, and the diff ID of what was made of it, were checked, both
while it streamed. What came of a blob before (from another provider, to another process) is no more than bytes: they
are digested with the rest.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.clock import Clock
from engine.errors import FailureKind, RefledgerError, RegistryError, VerificationError
from engine.events import LayerLaidOut, LayerPulled, ProviderLost, PullFailed, PullProgressed, PullStarted
from engine.ledger import Facts
from engine.refs.fill import FetchLimits
from engine.refs.kept import Known, NothingKnown
from engine.refs.places import Places, is_loss, kind_of
from engine.refs.providers import providers_of
from engine.refs.pull import Pull
from engine.refs.ref import Layer
from engine.together import locked
from storage.errors import DiskError
from storage.interfaces.blobs import BlobStore, ByteSource, PartialBlobs
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.locks import Locks
from storage.interfaces.registry import RegistrySource
from storage.threads import in_thread, settle

PROGRESS_INTERVAL = 0.25
"""Seconds between two PullProgressed of one layer."""


@dataclass(frozen=True, slots=True)
class Use:
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
class Fetcher:
    """Fetches blobs, `parallel` at once. One per process and root."""

    blobs: BlobStore
    partials: PartialBlobs
    registry: RegistrySource
    locks: Locks
    facts: Facts
    clock: Clock
    parallel: int = 4
    limits: FetchLimits = field(default_factory=FetchLimits)
    known: Known = field(default_factory=NothingKnown)
    places: Places = field(default_factory=Places)
    _slots: asyncio.Semaphore | None = None
    _connections: asyncio.Semaphore | None = None
    _threads: ThreadPoolExecutor | None = None

    def providers(self, layer: Layer) -> Iterator[Provider]:
        """Who may have the blob of `layer`: its own providers, then others that the log knows of."""
        return providers_of(layer, self.known)

    def close(self) -> None:
        """Let the threads go."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    @asynccontextmanager
    async def _alone(self, blob: Descriptor) -> AsyncIterator[None]:
        """One fetch of `blob` at a time, also across processes, and only so many of all blobs in this one."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.parallel)
            self._connections = asyncio.Semaphore(max(self.limits.connections, self.parallel))
            self._threads = ThreadPoolExecutor(self.parallel, thread_name_prefix="unpack")
        # The same blob may be two layers, when a config names another diff ID for it.
        async with locked(self.locks, f"partial-{blob.digest}"), self._slots:
            yield

    async def fetch(self, layer: Layer, blob: Descriptor, use: Use, vertex: str | None, cause: int) -> int:
        """Have `use` read the `blob` of `layer`: the one that lies here, or that of each place in turn. The bytes that
        came over a wire. Raises LayerUnavailable."""
        async with self._alone(blob):
            return await self._fetch(layer, blob, use, vertex, cause)

    async def _fetch(self, layer: Layer, blob: Descriptor, use: Use, vertex: str | None, cause: int) -> int:
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
                await self._laid_out(blob, use, vertex, cause)
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

    async def _use_stored(self, blob: Descriptor, use: Use) -> None:
        with self.blobs.open(blob.digest) as stored:
            source = io.BufferedReader(stored, 1 << 20) if isinstance(stored, io.RawIOBase) else stored
            using = asyncio.ensure_future(self._in_thread(lambda: use.read(source)))
            try:
                await asyncio.shield(using)
            finally:
                stored.close()  # ends the use, if it is the waiter who is leaving
                await settle(using)

    async def _laid_out(self, blob: Descriptor, use: Use, vertex: str | None, cause: int) -> None:
        """Say that the blob which lay here was made a layer."""
        if use.makes:
            fact = LayerLaidOut(
                diff_id=use.makes, digest=str(blob.digest), how="unpacked", verified=("diff_id",)
            )
            await self.facts.record(fact, vertex=vertex, cause=cause)

    async def _pull(
        self, blob: Descriptor, provider: Provider, use: Use, vertex: str | None, cause: int
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
            pull = Pull(self.registry, provider, blob, partial, self._connections, self.limits, shown)
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


def _misfit(error: VerificationError, pull: Pull | None) -> _Failure:
    """Whom wrong bytes are blamed on: not yet on the provider when an earlier pull left some of them."""
    assert pull is not None  # only what it read can be wrong
    again = pull.misread and pull.leftover > 0
    if again:
        what = f"{pull.leftover} bytes were left by an earlier pull, and the whole is wrong: {error.what}"
        error = VerificationError(what, where=error.where, hint="it is fetched anew")
    return _Failure(error, "corrupt", again=again, final=pull.verified)
