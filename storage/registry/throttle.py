"""What one host is spared: requests a second, and how many are open at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from storage.registries import HostSettings


class Throttle:
    """The bounds of one host.

    `connections` bounds the answers that are being read, and beside them as many writers. Reason for two counts: an
    upload reads its bytes, perhaps from the same host, while it writes. Reason for writers in place of requests that
    write: an upload may take several, and keeps its source open between them. So whoever has a place to write may wait
    for a place to read; nobody who has a place to read waits for another place, so that all of them end.
    """

    def __init__(
        self, settings: HostSettings, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        rate = settings.requests_per_second
        self._interval = 1.0 / rate if rate else 0.0
        self._burst = max(1.0, rate or 0.0) * self._interval - self._interval
        self._clock = clock
        self._sleep = sleep
        self._due = self._seen = clock()
        count = settings.connections
        self._reads = asyncio.Semaphore(count) if count else None
        self._writes = asyncio.Semaphore(count) if count else None

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """A place to write, for all requests of one upload: those are `aside`."""
        if self._writes is None:
            yield
            return
        async with self._writes:
            yield

    async def enter(self, method: str, *, aside: bool) -> Callable[[], None]:
        """Wait until a request may be sent; what is returned is called once, when its answer is closed. `aside`: it
        waits for its turn only, as it belongs to somebody who has a place."""
        lane = None if aside else self._reads if method in {"GET", "HEAD"} else self._writes
        if lane is not None:
            await lane.acquire()
        try:
            await self._turn()
        except BaseException:
            if lane is not None:
                lane.release()
            raise
        return lane.release if lane is not None else _nothing

    async def _turn(self) -> None:
        """A token bucket by the time at which the next token is due, so that those who wait keep their order."""
        now = self._clock()
        if now < self._seen:
            self._due = now  # reason: the clock was set back, and nobody should wait for that
        self._seen = now
        self._due = max(self._due, now)
        wait = self._due - self._burst - now
        self._due += self._interval
        if wait <= 0:
            return
        try:
            await self._sleep(wait)
        except BaseException:
            self._due -= self._interval  # what was not sent does not count
            raise


def _nothing() -> None:
    pass
