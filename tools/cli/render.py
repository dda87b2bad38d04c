"""Progress for people and programs: events in, text out. `make_renderer` for a build that runs, `draw` for any.

Modes: tty (live, rich), plain (lines as `docker buildx` prints them), json (one event a line), quiet (nothing).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from projections.progress import ProgressView
from storage.errors import InputError
from storage.interfaces.log import Event
from tools.cli.frame import ASCII, UNICODE, Look, Row, frame
from tools.cli.stream import Out

_SGR = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Renderer(Protocol):
    """Somebody who follows a build. Give it the events of all builds: a layer may be pulled by another one."""

    def event(self, event: Event) -> None:
        """Take in the next event. Raises LogError for a malformed one."""
        ...

    def tick(self) -> None:
        """Let time pass: call it a few times a second."""
        ...

    def say(self, text: str) -> None:
        """A line, cleaned, for people who watch."""
        ...

    def close(self) -> None:
        """Show the end and let go of the terminal. Harmless when called again."""
        ...


def make_renderer(mode: str, build_id: str, stream: TextIO, clock: Callable[[], int] = time.time_ns) -> Renderer:
    """The renderer for `mode` (auto, tty, plain, json or quiet); auto is tty on a terminal and plain elsewhere.
    `clock` gives UTC ns. Raises InputError."""
    if mode == "auto":
        mode = "tty" if stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb") else "plain"
    match mode:
        case "tty":
            from tools.cli.tty import TtyRenderer

            return TtyRenderer(build_id, stream, clock)
        case "plain":
            from tools.cli.plain import PlainRenderer

            return PlainRenderer(build_id, Out(stream))
        case "json":
            return JsonRenderer(build_id, Out(stream))
        case "quiet":
            return QuietRenderer()
        case _:
            raise InputError(f"no progress mode {mode[:40]!r}", hint="--progress is auto, tty, plain, json or quiet")


def draw(
    view: ProgressView, width: int, color: bool, *, unicode: bool = True, told: bool = False, past: bool = False
) -> str:
    """The view as text, lines of at most `width` columns, at the time of its last event; `told`, `past` as in Look."""
    glyphs = UNICODE if unicode else ASCII
    look = Look(width, view.seen, glyphs=glyphs, detail=True, told=told, past=past)
    return "".join(_paint(row, color, unicode) + "\n" for row in frame(view, look))


def _paint(row: Row, color: bool, unicode: bool) -> str:
    out = []
    for text, style in row:
        shown = text if unicode else text.encode("ascii", "replace").decode()
        out.append(f"\x1b[{_SGR[style]}m{shown}\x1b[0m" if color and style and shown else shown)
    return "".join(out).rstrip(" ")


class JsonRenderer:
    """One JSON object an event of the build, as `refledger events --json` has it."""

    def __init__(self, build_id: str, out: Out) -> None:
        self._build = build_id
        self._out = out

    def event(self, event: Event) -> None:
        """Print it when it is the build's own."""
        if event.build == self._build:
            self._out.line(json.dumps(event.to_json(), separators=(",", ":")))

    def tick(self) -> None:
        """Nothing changes by itself."""

    def say(self, text: str) -> None:
        """Nothing: programs read it."""

    def close(self) -> None:
        """Nothing is held."""


class QuietRenderer:
    """Says nothing: the caller prints the digest."""

    def event(self, event: Event) -> None:
        """Leave it."""

    def tick(self) -> None:
        """Leave it."""

    def say(self, text: str) -> None:
        """Leave it."""

    def close(self) -> None:
        """Nothing is held."""
