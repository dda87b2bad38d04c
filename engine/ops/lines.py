"""A stream of bytes passed on in whole lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LIMIT = 32 * 1024
"""Bytes passed on at once at most; a longer line is cut."""
SILENCE = 0.1
"""Seconds without news after which an unfinished line is passed on."""


class Lines:
    """`feed` bytes on the event loop; `emit` gets them in order, as one or more whole lines where possible."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._rest = b""
        self._cut = False
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, data: bytes, *, cut: bool = False) -> None:
        """Take `data`; at most one line of at most LIMIT bytes is kept waiting. `cut`: there may be more at once."""
        self._stop_timer()
        self._cut = cut
        data = self._rest + data
        start = 0
        while len(data) - start > 0:
            end = data.rfind(b"\n", start, start + LIMIT) + 1
            if end == 0:
                if len(data) - start < LIMIT:
                    break
                end = start + LIMIT
            self._emit(data[start:end])
            start = end
        self._rest = data[start:]
        if self._rest:
            self._timer = asyncio.get_running_loop().call_later(SILENCE, self.flush)

    def flush(self) -> None:
        """Pass on what waits."""
        self._stop_timer()
        rest, self._rest = self._rest, b""
        if rest:
            self._emit(rest)

    def flush_unless_cut(self) -> None:
        """Pass on what waits, unless it is the beginning of what only did not fit in one `feed`."""
        if self._rest and not self._cut:
            self.flush()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
