"""Work in a thread is over before whoever asked for it goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from storage.threads import in_thread, settle
from tests.waiting import PATIENCE


def test_what_a_thread_gives_or_raises_comes_back() -> None:
    async def ask() -> None:
        assert await in_thread(lambda: int("5")) == 5
        with pytest.raises(ValueError, match="invalid literal"):
            await in_thread(lambda: int("five"))

    asyncio.run(ask())


def test_a_cancelled_caller_waits_however_often_it_is_cancelled() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(PATIENCE)
        ended.set()

    async def cancel() -> None:
        task = asyncio.ensure_future(in_thread(work))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel())


def test_a_future_is_settled_also_when_it_was_cancelled() -> None:
    async def wait() -> None:
        for end in (lambda future: future.cancel(), lambda future: future.set_exception(ValueError())):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(end, future)
            await settle(future)
            assert future.done()

    asyncio.run(wait())
