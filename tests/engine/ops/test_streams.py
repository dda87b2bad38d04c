"""Two pipes, one order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from engine.ops import lines
from engine.ops.streams import Streams

Seen = list[tuple[int, bytes]]
Write = Callable[[int, bytes], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is passed on because a busy machine made no progress for a while."""
    monkeypatch.setattr(lines, "SILENCE", 3600)


def follow(script: Callable[[Write], Awaitable[None]]) -> Seen:
    """What comes of a process that writes as `script` does, each write read before the next."""
    seen: Seen = []

    async def run() -> None:
        with Streams() as streams:
            writers = {fd: os.dup(writer) for fd, writer in zip((1, 2), streams.writers, strict=True)}
        following = asyncio.create_task(streams.follow(lambda fd, data: seen.append((fd, data))))

        async def write(fd: int, data: bytes) -> None:
            os.write(writers[fd], data)
            for _ in range(5):
                await asyncio.sleep(0)

        try:
            await script(write)
        finally:
            for writer in writers.values():
                os.close(writer)
        await following

    asyncio.run(run())
    return seen


def test_lines_come_in_the_order_in_which_they_were_written() -> None:
    async def script(write: Write) -> None:
        for number in range(50):
            await write(1 + number % 2, b"%d\n" % number)

    assert follow(script) == [(1 + number % 2, b"%d\n" % number) for number in range(50)]


def test_an_unfinished_line_comes_before_what_the_other_stream_says_next() -> None:
    async def script(write: Write) -> None:
        await write(1, b"checking... ")
        await write(2, b"warning\n")
        await write(1, b"done\n")

    assert follow(script) == [(1, b"checking... "), (2, b"warning\n"), (1, b"done\n")]


def test_a_line_that_did_not_fit_is_not_torn_apart_for_the_other_stream() -> None:
    async def script(write: Write) -> None:
        await write(1, b"x" * 65530 + b"\nbegin")
        await write(2, b"other\n")
        await write(1, b" end\n")

    seen = follow(script)
    assert (1, b"begin end\n") in seen
    assert seen.index((2, b"other\n")) < seen.index((1, b"begin end\n"))


def test_an_end_without_newline_and_an_error_of_the_listener_come_through() -> None:
    async def script(write: Write) -> None:
        await write(2, b"no newline")

    assert follow(script) == [(2, b"no newline")]

    async def fails() -> None:
        with Streams() as streams:
            os.write(streams.writers[0], b"line\n")

        def emit(fd: int, data: bytes) -> None:
            raise RuntimeError(data.decode())

        await streams.follow(emit)

    with pytest.raises(RuntimeError, match="line"):
        asyncio.run(fails())
