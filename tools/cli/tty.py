"""Progress on a terminal, redrawn in place. The only module that imports rich."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from projections.progress import ProgressView
from storage.interfaces.log import Event
from tools.cli.frame import ASCII, UNICODE, Look, Row, frame
from tools.cli.stream import speaks_unicode

_EVERY = 100_000_000
"""Nanoseconds between two pictures: more would only cost the build time."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence, where rich would end the process: the build goes on."""
        self.quiet = True


class TtyRenderer:
    """A picture of the build that keeps within the window; at the end it stays, finished steps a line each."""

    def __init__(self, build_id: str, stream: TextIO, clock: Callable[[], int]) -> None:
        self._view = ProgressView(build_id, tail=50)
        self._clock = clock
        self._glyphs = UNICODE if speaks_unicode(stream) else ASCII
        self._console = _Console(
            file=stream, force_terminal=True, markup=False, highlight=False, emoji=False, soft_wrap=False,
            legacy_windows=False,
        )  # fmt: skip
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._drawing = threading.RLock()
        self._drawn = 0
        self._closed = False

    def event(self, event: Event) -> None:
        """Fold it in; redraw when the last picture is old enough."""
        self._view.apply(event)
        self.tick()

    def tick(self) -> None:
        """Redraw when the last picture is old enough."""
        now = self._clock()
        if self._closed or self._view.status == "unknown" or 0 <= now - self._drawn < _EVERY:
            return
        self._drawn = now
        if not self._live.is_started:
            self._guarded(self._live.start)
        width, height = self._console.size
        self._guarded(lambda: self._live.update(self._picture(width, max(height - 1, 1), now), refresh=True))

    def say(self, text: str) -> None:
        """A line above the picture."""
        if not self._closed:
            self._guarded(lambda: self._console.print(Text(text), soft_wrap=True))

    def close(self) -> None:
        """Replace the moving picture by the final one."""
        if self._closed:
            return
        self._closed = True
        if self._live.is_started:
            self._guarded(self._live.stop)
        if self._view.status != "unknown":
            final = self._picture(self._console.width, None, self._clock())
            self._guarded(lambda: self._console.print(final, overflow="crop", no_wrap=True))

    def _picture(self, width: int, height: int | None, now: int) -> Text:
        # reason: a terminal that is full to its last column wraps on some emulators
        # reason for told: the build command says what failed, in full, below the final picture
        look = Look(max(width - 1, 10), now, height=height, glyphs=self._glyphs, told=self._closed)
        rows = frame(self._view, look)
        picture = Text("\n").join(_text(row, self._glyphs is ASCII) for row in rows)
        picture.no_wrap, picture.overflow = True, "crop"
        return picture

    def _guarded(self, action: Callable[[], None]) -> None:
        """The terminal may go away (a closed window, a broken pipe); the build goes on. One thing at a time:
        a line that was begun before the picture does not take it away, so nobody may draw that until it is there."""
        try:
            with self._drawing:
                action()
        except (BrokenPipeError, ValueError):
            self._closed = True


def _text(row: Row, ascii_only: bool) -> Text:
    text = Text()
    for shown, style in row:
        text.append(shown.encode("ascii", "replace").decode() if ascii_only else shown, style=style)
    return text
