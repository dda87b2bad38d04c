"""The two streams of a process, read by one reader, so that their order is the one in which they were written as far
as two pipes can tell: what one look finds in both is passed on as standard output first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from engine.ops.lines import Lines

_CHUNK = 65536
"""Bytes read at once; as much as a pipe holds."""


class Streams:
    """Pipes for streams 1 and 2. Context: `writers` are given to a process in it, and closed here at its end, so that
    the streams end when that process and all it started have closed theirs. Then `follow`."""

    def __init__(self) -> None:
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in (1, 2)]
        self._readers = {fd: pair[0] for fd, pair in zip((1, 2), pairs, strict=True)}
        self.writers = (pairs[0][1], pairs[1][1])
        for reader in self._readers.values():
            os.set_blocking(reader, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for fd in (*self.writers, *(self._readers.values() if kind else ())):
            os.close(fd)

    async def follow(self, emit: Callable[[int, bytes], None]) -> None:
        """Pass on both streams in whole lines until they end. Raises what `emit` raises. To be called once: the
        readers are closed in the end."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        passing = _Passing(self._readers, emit)

        def look() -> None:
            if ended.done():
                return
            try:
                if not passing.turn():
                    ended.set_result(None)
            except Exception as error:  # noqa: BLE001  raised where the streams are awaited
                ended.set_exception(error)

        for reader in self._readers.values():
            loop.add_reader(reader, look)
        try:
            await ended
        finally:
            for reader in self._readers.values():
                loop.remove_reader(reader)
                os.close(reader)
            passing.flush()


class _Passing:
    def __init__(self, readers: dict[int, int], emit: Callable[[int, bytes], None]) -> None:
        self._open = dict(readers)
        self._lines = {1: Lines(lambda data: emit(1, data)), 2: Lines(lambda data: emit(2, data))}

    def turn(self) -> bool:
        """Read each stream once; False when both have ended. An unfinished line that was all there was in its pipe
        comes before what the other stream says next: `checking… ` before the error that the check met."""
        loop = asyncio.get_running_loop()
        for fd, reader in list(self._open.items()):
            try:
                data = os.read(reader, _CHUNK)
            except BlockingIOError:
                continue
            if not data:
                loop.remove_reader(reader)
                del self._open[fd]
                self._lines[fd].flush()
                continue
            self._lines[3 - fd].flush_unless_cut()
            self._lines[fd].feed(data, cut=len(data) == _CHUNK)
        return bool(self._open)

    def flush(self) -> None:
        for lines in self._lines.values():
            lines.flush()
