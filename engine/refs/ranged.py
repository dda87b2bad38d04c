"""Reading parts of layers by range, from the first provider that can give them right.

I3: a table of contents is verified against the digest in the manifest, every chunk against the one in the table. What
does not fit is in the log, and the next provider is tried; when all have failed, the layer can still be fetched whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.clock import Clock
from engine.errors import DiskError, RefledgerError, RegistryError, VerificationError
from engine.events import FilesFetched, LayerTocRead, MaterializationFailed, PullFailed
from engine.ledger import Facts
from engine.refs.fetch import Fetcher
from engine.refs.places import kind_of
from engine.refs.ref import Layer
from storage.errors import TocUnusable
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.parts import LayerParts, PartReader, Toc
from storage.interfaces.registry import RegistrySource
from storage.threads import in_thread

T = TypeVar("T")


@dataclass(slots=True)
class Request:
    """A MaterializationRequested whose Materialized is still to come."""

    seq: int
    started: float
    layers: tuple[str, ...]
    bytes: int = 0
    waited: tuple[str, ...] = ()


@dataclass(slots=True)
class RangeReader:
    """Reads for one vertex that asks for ref `ref`. `slots`: layers that are read from at once; `fetcher` knows
    the providers."""

    parts: LayerParts
    registry: RegistrySource
    facts: Facts
    clock: Clock
    ref: str
    vertex: str | None
    slots: asyncio.Semaphore
    fetcher: Fetcher

    async def toc(self, layer: Layer, blob: Descriptor, request: Request) -> tuple[Toc, int] | None:
        """The layer's table of contents, and the bytes that came for it; None when no provider can give one that is of
        use. Raises DiskError."""

        async def read(provider: Provider, wire: _Wire) -> Toc:
            steps = self.parts.toc(blob)
            assert steps is not None  # whoever calls asked
            data = None
            while True:
                wanted = await in_thread(lambda: _advance(steps, data))  # noqa: B023 - awaited here
                if not isinstance(wanted, tuple):
                    return wanted
                got: list[bytes] = []
                await self._read(provider, blob, [wanted], wire, _appending(got))
                data = b"".join(got)

        found = await self._from_any(layer, blob, request, read)
        if found is None:
            return None
        toc, provider, count = found
        await self.facts.record(
            LayerTocRead(
                digest=str(blob.digest), bytes=count, provider=provider.to_json(), entries=toc.entries,
                from_bytes=blob.size,
            ),
            vertex=self.vertex,
            cause=request.seq,
        )  # fmt: skip
        return toc, count

    async def part(
        self, layer: Layer, blob: Descriptor, reader: PartReader, came: int, request: Request
    ) -> tuple[Path, int] | None:
        """Where the part is laid out, and the bytes that came for it; `came` before, for the table of contents. None
        when no provider can give it. Raises DiskError."""
        started = self.clock.monotonic()

        async def read(provider: Provider, wire: _Wire) -> Path:
            await in_thread(reader.restart)
            await self._read(provider, blob, reader.ranges, wire, lambda data: in_thread(lambda: reader.write(data)))
            return await in_thread(reader.lay_out)

        found = await self._from_any(layer, blob, request, read)
        if found is None:
            return None  # pragma: no cover - tests come here, but tracing of 3.11 loses who awaited what raised
        tree, provider, count = found
        await self.facts.record(
            FilesFetched(
                digest=str(blob.digest), files=reader.files, bytes=count,
                avoided=max(blob.size - came - count, 0), provider=provider.to_json(),
                seconds=round(self.clock.monotonic() - started, 6),
            ),
            vertex=self.vertex,
            cause=request.seq,
        )  # fmt: skip
        return tree, count

    async def _from_any(
        self, layer: Layer, blob: Descriptor, request: Request, read: Callable[[Provider, _Wire], Awaitable[T]]
    ) -> tuple[T, Provider, int] | None:
        """What `read` makes of the first provider that can give it, that provider, and the bytes it sent."""
        async with self.slots:
            for provider in self.fetcher.places.of(self.fetcher.providers(layer), blob.digest):
                wire = _Wire()
                try:
                    return await read(provider, wire), provider, wire.bytes
                except (RegistryError, VerificationError) as error:
                    self.fetcher.places.failed(provider, blob.digest, error, part=True)
                    self.failed(layer, blob, provider, error, wire.bytes, request)
                    if isinstance(error, TocUnusable):
                        break
                except DiskError as error:
                    raise await self._disk_failed(blob, error, request) from error
                finally:
                    request.bytes += wire.bytes
        return None

    async def _read(
        self,
        provider: Provider,
        blob: Descriptor,
        ranges: Sequence[tuple[int, int]],
        wire: _Wire,
        take: Callable[[bytes], Awaitable[None]],
    ) -> None:
        for start, end in ranges:
            before = wire.bytes
            async with self.registry.blob(provider, blob, start=start, end=end) as stream:
                if not stream.ranged:
                    what = "the registry sends blobs whole only"
                    raise RegistryError(what, kind="transport", status=200, where=str(provider))
                try:
                    async for chunk in stream:
                        await take(chunk)
                finally:
                    wire.bytes = before + stream.wire_bytes

    def failed(
        self, layer: Layer, blob: Descriptor, provider: Provider, error: RefledgerError, count: int,
        request: Request | None,
    ) -> None:  # fmt: skip
        """Log that `provider`, after `count` bytes, could not give what was asked for."""
        what = f"its table of contents cannot be used: {error}" if isinstance(error, TocUnusable) else str(error)
        kind = kind_of(error)
        cause = request.seq if request else None
        self.facts.post(
            PullFailed(digest=str(blob.digest), provider=provider.to_json(), kind=kind, error=what, bytes=count),
            vertex=self.vertex,
            cause=cause,
        )
        if kind == "missing":  # what else is wrong with a part says nothing of the whole
            self.fetcher.lost_by(provider, layer, blob, kind, what, self.vertex, cause)

    async def _disk_failed(self, blob: Descriptor, error: DiskError, request: Request) -> DiskError:
        await self.facts.record(
            MaterializationFailed(
                ref=self.ref, digest=str(blob.digest), kind="disk", error=str(error), providers=()
            ),
            vertex=self.vertex,
            cause=request.seq,
        )
        return error


@dataclass(slots=True)
class _Wire:
    """Bytes that a provider sent."""

    bytes: int = 0


def _advance(steps: Generator[tuple[int, int], bytes, Toc], data: bytes | None) -> tuple[int, int] | Toc:
    """The next range to read, or the table of contents."""
    try:
        return next(steps) if data is None else steps.send(data)
    except StopIteration as done:
        toc: Toc = done.value
        return toc


def _appending(parts: list[bytes]) -> Callable[[bytes], Awaitable[None]]:
    async def append(data: bytes) -> None:
        parts.append(data)

    return append
