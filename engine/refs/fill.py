"""The rest of a blob, from one provider into a spool.

A small blob is asked for in one piece. A larger one is asked for in ranges, so that a process that dies loses little of
what its registry sent, and a large one by several connections at once: what bounds a download is often what the network
or the registry grants to one connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from engine.refs.spool import Spool
from engine.together import together
from storage.errors import RegistryError
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import BlobStream, RegistrySource
from storage.threads import settle

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`range_bytes`: what one request asks for at most, where the registry answers ranges. A blob of more than
    `parallel_bytes` is fetched over up to `connections` at once."""

    range_bytes: int = 16 * MIB
    parallel_bytes: int = 64 * MIB
    connections: int = 4


class Fill:
    """Brings what `spool` has not of `blob` from `provider`; `connections` are shared with the other fills of the
    process. `shown` is told the bytes of the blob that are here."""

    def __init__(
        self,
        registry: RegistrySource,
        provider: Provider,
        blob: Descriptor,
        spool: Spool,
        connections: asyncio.Semaphore,
        limits: FetchLimits,
        shown: Callable[[int], None],
    ) -> None:
        self._registry = registry
        self._provider = provider
        self._blob = blob
        self._spool = spool
        self._connections = connections
        self._shown = shown
        self._limits = limits
        self._ranges = self._missing_ranges()
        self._answered = asyncio.Event()
        self.missing = sum(end - start for start, end in self._ranges)
        """Bytes that have yet to come."""
        self.wire_bytes = 0
        """Body bytes received, as the provider counts them; final when `run` has ended."""
        self.resumed_from = 0
        """Where the last connection that broke was taken up again; 0 for none."""

    async def run(self) -> None:
        """Return when all is written. Raises RegistryError, VerificationError (a blob of another size), DiskError; what
        came until then stays."""
        if self._ranges:
            several = self._limits.connections if self._blob.size > self._limits.parallel_bytes else 1
            followers = min(several, len(self._ranges)) - 1
            await together([self._lead(), *(self._follow() for _ in range(followers))])
        if self.missing:
            self._ranges = self._missing_ranges()
            await self._next_ones()

    def _missing_ranges(self) -> deque[tuple[int, int]]:
        return deque(_cut(self._spool.gaps(), min(self._blob.size, self._limits.range_bytes)))

    async def _lead(self) -> None:
        """The first range; its answer tells whether the others can be asked for one by one."""
        start, end = self._ranges.popleft()
        async with self._connection(start, end) as stream:
            ranged = stream.ranged or not self._ranges
            if ranged:
                self._answered.set()
                await self._take(stream, [(start, end)])
        if not ranged:
            rest = [(start, end), *self._ranges]
            self._ranges.clear()
            self._answered.set()
            async with self._connection(start, rest[-1][1]) as stream:
                await self._take(stream, rest)
        await self._next_ones()

    async def _follow(self) -> None:
        await self._answered.wait()
        with suppress(RegistryError):  # a registry may bound connections: what this one lost is asked for by one alone
            await self._next_ones()

    async def _next_ones(self) -> None:
        while self._ranges:
            async with self._connections:
                if not self._ranges:
                    return
                start, end = self._ranges.popleft()
                async with self._open(start, end) as stream:
                    await self._take(stream, [(start, end)])

    @asynccontextmanager
    async def _connection(self, start: int, end: int) -> AsyncIterator[BlobStream]:
        async with self._connections, self._open(start, end) as stream:
            yield stream

    @asynccontextmanager
    async def _open(self, start: int, end: int) -> AsyncIterator[BlobStream]:
        async with self._registry.blob(self._provider, self._blob, start=start, end=end) as stream:
            try:
                yield stream
            finally:
                self.wire_bytes += stream.wire_bytes
                self.resumed_from = stream.resumed_from or self.resumed_from

    async def _take(self, stream: BlobStream, ranges: list[tuple[int, int]]) -> None:
        """Write what of `stream` falls into `ranges`, the first of which it starts with."""
        loop = asyncio.get_running_loop()
        position = ranges[0][0]
        writing: asyncio.Future[None] = loop.create_future()
        writing.set_result(None)
        try:
            async for chunk in stream:
                for offset, piece in _within(ranges, position, chunk):
                    await writing
                    # reason for a thread: a write may wait for the disk; the next bytes come in meanwhile
                    writing = loop.run_in_executor(None, self._spool.write, offset, piece)
                    self.missing -= len(piece)
                position += len(chunk)
                self._shown(self._blob.size - self.missing)
            await writing
        finally:
            await settle(writing)


def _cut(gaps: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """`gaps` in ranges of at most `size` bytes, that end at multiples of it."""
    cut = []
    for gap, end in gaps:
        start = gap
        while start < end:
            stop = min(end, (start // size + 1) * size)
            cut.append((start, stop))
            start = stop
    return cut


def _within(ranges: list[tuple[int, int]], position: int, chunk: bytes) -> list[tuple[int, bytes]]:
    """The parts of `chunk`, which lies at `position`, that lie in `ranges`, with their offsets."""
    if len(ranges) == 1:
        return [(position, chunk)]
    parts = []
    for start, end in ranges:
        begin, stop = max(start, position), min(end, position + len(chunk))
        if begin < stop:
            parts.append((begin, chunk[begin - position : stop - position]))
    return parts
