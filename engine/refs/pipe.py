"""A bounded pipe from the event loop (which receives bytes) to a thread (which unpacks them)."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

LIMIT = 4 * 1024 * 1024
"""Bytes in flight at most, give or take one chunk: enough to keep both sides busy."""


class ReaderGone(Exception):
    """The reading thread stopped early; it knows why."""


class BytePipe:
    """`write`, `close` and `fail` belong to the event loop, `read` and `reader_done` to the thread."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._filled = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._limit = limit
        self._closed = False
        self._error: BaseException | None = None
        self._reader_gone = False

    async def write(self, chunk: bytes) -> None:
        """Hand over `chunk`, waiting for room. Raises ReaderGone."""
        while True:
            self._room.clear()
            with self._filled:
                if self._reader_gone:
                    raise ReaderGone
                if self._size < self._limit:
                    self._chunks.append(chunk)
                    self._size += len(chunk)
                    self._filled.notify()
                    return
            await self._room.wait()

    def close(self) -> None:
        """No more bytes: the reader sees the end."""
        with self._filled:
            self._closed = True
            self._filled.notify()

    def fail(self, error: BaseException) -> None:
        """The reader's next `read` raises `error`, whatever is still buffered."""
        with self._filled:
            self._error = error
            self._filled.notify()

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes (one chunk for -1), b"" at the end. Blocks. Raises what `fail` was given."""
        with self._filled:
            while not self._chunks and not self._closed and self._error is None:
                self._filled.wait()
            if self._error is not None:
                raise self._error
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if 0 <= size < len(chunk):
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._size -= len(chunk)
            wake = self._size < self._limit
        if wake:
            self._loop.call_soon_threadsafe(self._room.set)
        return chunk

    def reader_done(self) -> None:
        """The reader wants no more; a waiting writer is told."""
        with self._filled:
            self._reader_gone = True
        self._loop.call_soon_threadsafe(self._room.set)
