"""What output is written to: what it can carry, and that it may end."""

from __future__ import annotations

from typing import TextIO


def speaks_unicode(stream: TextIO) -> bool:
    """Can `stream` carry the glyphs?"""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


class Out:
    """Lines to a stream that may lack characters or lose its reader (`| head`): the build goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._gone = False

    def line(self, text: str) -> None:
        """Write `text` and a line end; characters the stream lacks become escapes."""
        if self._gone:
            return
        try:
            self._stream.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding) + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._gone = True  # a closed stream raises ValueError
