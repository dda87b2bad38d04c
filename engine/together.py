"""Awaiting several things at once, or somebody else's lock, leaving nothing running or held when it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from storage.interfaces.locks import Locks

T = TypeVar("T")
U = TypeVar("U")
COLLECT = "collect"
"""The lock that builds share from where they see that something is here to the event that says they use it, and that
whoever removes bytes holds alone."""
POLL = 0.05
"""Seconds between two looks at a lock that another process holds."""


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of `work`, in order. The first failure (or cancellation) is raised when all others have stopped."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """As `together`, of two things of different types."""
    first, second = await together([one, other])
    return cast("tuple[T, U]", (first, second))


@asynccontextmanager
async def locked(locks: Locks, name: str, *, shared: bool = False) -> AsyncIterator[bool]:
    """Hold lock `name`, waiting for whoever has it, in this process or another: was there anybody? `shared` as in
    Locks."""
    waited = False
    while (lock := locks.try_acquire(name, shared=shared)) is None:
        waited = True
        await asyncio.sleep(POLL)
    with lock:
        yield waited


async def made_and_told(
    locks: Locks, make: Callable[[], Awaitable[T]], here: Callable[[T], bool], tell: Callable[[T], Awaitable[None]]
) -> T:
    """What `make` gives, said in the log by `tell` while nothing is removed. It may be what was here before, and what
    somebody let go of just now: then it is not `here` any more, and is made anew."""
    while True:
        made = await make()
        async with locked(locks, COLLECT, shared=True):
            if here(made):
                await tell(made)
                return made
