"""What a step prints, as facts: coalesced, cut into small events, bounded in rate."""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from collections.abc import Callable

from engine.events import VertexOutput
from engine.ledger import Facts

CHUNK = 8 * 1024
"""Raw bytes in one event at most: even when every byte becomes six in JSON, 64 KiB are not reached."""
DELAY = 0.05
"""Seconds that output may wait for more to come."""
BURST = 16 * 1024 * 1024
RATE = 200 * 1024
"""Bytes a step may print at once, and a second from then on (as with BuildKit); the rest is counted and dropped. A step
that floods for an hour leaves 0.7 GB."""
TAIL = 8 * 1024
"""Bytes at the end of what is too much that are not dropped: where a step fails, its last line says why. Less than RATE
gives in DELAY."""


class OutputRecorder:
    """`write` takes raw output on the event loop; facts go out in order."""

    def __init__(self, facts: Facts, vertex: str, monotonic: Callable[[], float]) -> None:
        self._facts = facts
        self._vertex = vertex
        self._monotonic = monotonic
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in (1, 2)}
        self._fd = 1
        self._pending = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._offset = 0
        self._dropped = 0
        self._held: deque[tuple[int, bytes]] = deque()  # printed too fast: what comes next, or time, tells
        self._holding = 0
        self._budget = float(BURST)
        self._refilled = monotonic()

    def write(self, fd: int, data: bytes) -> None:
        """Bytes that stream `fd` (1 or 2) printed."""
        self._held.append((fd, data))
        self._holding += len(data)
        if not self._release():
            self.flush()
            self._drop()
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._catch_up)
        elif self._pending and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self.flush)

    def flush(self) -> None:
        """Send what waits for more to come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            self._emit(bytes(self._pending))
            self._pending.clear()

    def close(self) -> None:
        """Send all that waits, the end of what was printed too fast and undecodable remainders included."""
        self._take()
        self.flush()
        for self._fd in (1, 2):
            self._emit(b"", final=True)

    def _release(self) -> bool:
        """Take what is held, if the step may print so much by now."""
        now = self._monotonic()
        self._budget = min(BURST, self._budget + (now - self._refilled) * RATE)
        self._refilled = now
        if self._holding > self._budget:
            return False
        self._budget -= self._holding
        self._take()
        return True

    def _catch_up(self) -> None:
        self._release()
        self.flush()

    def _take(self) -> None:
        while self._held:
            fd, data = self._held.popleft()
            if fd != self._fd:
                self.flush()
                self._fd = fd
            self._pending += data
            while len(self._pending) >= CHUNK:
                self._emit(bytes(self._pending[:CHUNK]))
                del self._pending[:CHUNK]
        self._holding = 0

    def _drop(self) -> None:
        """Of what is held all but the end."""
        while (over := self._holding - TAIL) > 0:
            fd, data = self._held.popleft()
            if over < len(data):
                self._held.appendleft((fd, data[over:]))
            gone = min(over, len(data))
            self._holding -= gone
            self._dropped += gone
            self._offset += gone

    def _emit(self, data: bytes, *, final: bool = False) -> None:
        text = self._decoders[self._fd].decode(data, final)
        if text or self._dropped:
            self._facts.post(
                VertexOutput(fd=self._fd, offset=self._offset, text=text, dropped=self._dropped), vertex=self._vertex
            )
            self._dropped = 0
        self._offset += len(data)
