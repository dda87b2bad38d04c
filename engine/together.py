"""Awaiting several things at once, leaving none of them running when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of `work`, in order. The first failure (or cancellation) is raised when all others have stopped."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settle(future: asyncio.Future[T]) -> None:
    """Return when `future` is done, however it ends, even while the caller is being cancelled."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # seen: nobody else may ask for it


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread. A cancelled caller still waits for its end: what it touches must not outlive the step."""
    future = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await settle(future)
        raise
