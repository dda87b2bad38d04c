"""Keeping the values of secrets out of what a step prints.

A step may print what it was lent; that is its doing, and the log is for ever. So every occurrence of a secret's value
in one stream becomes `***`, also where it comes in pieces. A value counts without the newlines that end it, and from
MINIMUM bytes on: shorter ones would hit innocent words. An encoded, cut or reordered value is not recognized.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MINIMUM = 8
"""Bytes from which a value is looked for."""
MASK = b"***"


class Redactor:
    """`write` takes what streams print and passes it on to `emit`; `close` what was held back. At most the beginning of
    one value is held back, per stream, until it is known how it goes on."""

    def __init__(self, values: Iterable[bytes], emit: Callable[[int, bytes], None]) -> None:
        found = {value.rstrip(b"\r\n") for value in values}
        self._values = sorted((value for value in found if len(value) >= MINIMUM), key=lambda v: (-len(v), v))
        self._pattern = re.compile(b"|".join(map(re.escape, self._values))) if self._values else None
        self._held = {1: b"", 2: b""}
        self._emit = emit

    def write(self, fd: int, data: bytes) -> None:
        """Bytes that stream `fd` printed."""
        if self._pattern is None:
            return self._emit(fd, data)
        data = self._held[fd] + data
        # what may be the beginning of a long value must not be taken for a whole short one
        start = min(self._open_start(data), len(data))
        done, position = bytearray(), 0
        for match in self._pattern.finditer(data):
            if match.start() >= start:
                break
            done += data[position : match.start()] + MASK
            position = match.end()
        start = max(start, position)
        self._held[fd] = data[start:]
        if done or position < start:
            self._emit(fd, bytes(done) + data[position:start])
        return None

    def close(self) -> None:
        """Pass on what was held back. May be called twice."""
        for fd, held in self._held.items():
            self._held[fd] = b""
            if held and self._pattern is not None:
                self._emit(fd, self._pattern.sub(MASK, held))

    def _open_start(self, data: bytes) -> int:
        """Where the first suffix of `data` begins that is the beginning of a value, but not all of it."""
        return min((_suffix(data, value) for value in self._values), default=len(data))


def _suffix(data: bytes, value: bytes) -> int:
    start = max(0, len(data) - len(value) + 1)
    while (start := data.find(value[:1], start)) >= 0:
        if value.startswith(data[start:]):
            return start
        start += 1
    return len(data)
