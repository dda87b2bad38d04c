"""The standard streams, as they should be: what they can carry, that they may end, and that they may not be there."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from storage.errors import DiskError


class ReaderLeft(BrokenPipeError):
    """Nobody reads standard output any more (`| head`). It has no errno: click would end the process for one."""


def stand() -> None:
    """Have standard streams that print whatever they are given. Output that cannot be written raises ReaderLeft or
    DiskError; standard error never raises: what it was to say is not what the command was to do. One that was closed
    by whoever started the process is /dev/null, lest the next file that is opened be taken for it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd < 2 else os.O_WRONLY)  # the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Aside(2, "w", closefd=False), sys.stderr, line_buffering=True)


def finish() -> None:
    """Write what standard output still holds. Raises ReaderLeft, DiskError; nothing is held afterwards."""
    try:
        sys.stdout.flush()
    except (ReaderLeft, DiskError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _text(raw: io.FileIO, before: TextIO | None, *, line_buffering: bool = False) -> TextIO:
    """reason for backslashreplace: names and output are of other languages than a CI's terminal"""
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=before.encoding if before else "utf-8", errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )  # fmt: skip


class _Output(io.FileIO):
    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderLeft from None
        except OSError as error:
            raise DiskError(f"writing to standard output: {error.strerror}") from error


class _Aside(io.FileIO):
    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        try:
            return super().write(data)
        except OSError:
            return len(data)


def speaks_unicode(stream: TextIO) -> bool:
    """Can `stream` carry the glyphs?"""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def speaks_color(stream: TextIO) -> bool:
    """Is `stream` a terminal that takes colours, and does the user want them (https://no-color.org)?"""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb"} and not os.environ.get("NO_COLOR")


class Out:
    """Lines to a stream that may lose its reader (`| head`): the build goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def line(self, text: str) -> None:
        """Write `text` and a line end."""
        if self._gone:
            return
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except BrokenPipeError:
            self._gone = True
