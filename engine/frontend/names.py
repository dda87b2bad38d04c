"""What steps are called on the screen and in the image's history, as docker users know it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.values import format_duration

CONTEXT_NAME = "[internal] load build context"
TREE = "context://"
"""How a tree of files is called where the Dockerfile has the name of a stage or an image."""


class StepNames:
    """Numbers the steps of one stage: `[2/5] RUN make`, `[build 2/5] RUN make`; `total` counts its base image too."""

    __slots__ = ("_done", "_stage", "_total")

    def __init__(self, stage: str, total: int) -> None:
        self._stage = f"{stage} " if stage else ""
        self._total = total
        self._done = 0

    def next(self, text: str) -> str:
        """The name of the next step, on one line."""
        self._done += 1
        total = str(self._total)
        return f"[{self._stage}{self._done:>{len(total)}}/{total}] {one_line(text)}"


def one_line(text: str) -> str:
    """`text` with every run of blanks as one space."""
    return " ".join(text.split())


def summary(data: str) -> str:
    """The first line of a heredoc, `...` when there are more."""
    first, *others = data.strip().splitlines() or [""]
    return f"{first}..." if others else first


def shown(text: str, lexer: Lexer, env: Mapping[str, str], hidden: Iterable[str]) -> str:
    """`text` of an instruction with its variables as they are now, but for those of `hidden`; as written when that
    fails."""
    try:
        return lexer.expand(text, {**env, **{name: f"${name}" for name in hidden if name in env}})
    except ExpansionError:
        return text


def quoted(words: Iterable[str]) -> str:
    """A command in exec form, for the history: `["a" "b c"]`."""
    return "[" + " ".join(json.dumps(word, ensure_ascii=False) for word in words) + "]"


def listed(words: Iterable[str]) -> str:
    """A list for the history: `[a b]`."""
    return "[" + " ".join(words) + "]"


def health(test: Iterable[str], durations: Mapping[str, int], retries: int) -> str:
    """A health check for the history, as BuildKit prints it."""
    times = " ".join(f"{name}:{format_duration(ns)}" for name, ns in durations.items())
    return f"HEALTHCHECK {{Test:{listed(test)} {times} Retries:{retries}}}"


def run_command(argv: Iterable[str], args: Mapping[str, str]) -> str:
    """A RUN for the history: build arguments that it could see come first, counted."""
    given = [f"|{len(args)}", *(f"{name}={value}" for name, value in args.items())] if args else []
    return " ".join(["RUN", *given, *argv])
