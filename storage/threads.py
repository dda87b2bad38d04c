"""Work in threads that is over before whoever asked for it goes on, however that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def settle(future: asyncio.Future[T]) -> None:
    """Return when `future` is done, however it ends, even while the caller is being cancelled."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # seen: nobody else may ask for it


async def in_thread(work: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
    """Run `work` in a thread. A cancelled caller still waits for its end: what it touches must not outlive the step.
    `stop` is called then: it ends work that waits for somebody else, which may be for ever."""
    future = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await settle(future)
        raise
