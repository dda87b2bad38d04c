"""Matching wildcards without backtracking: Dockerfiles and the names in a context may both be a stranger's, and a
regular expression with a dozen stars takes for ever on the name that almost fits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

_LOOPS = {"[^/]*": "[^/]", ".*": "."}
DIRECTORIES, BELOW = "(?:.*/)?", "(?:/.*)?"
"""Any directories above, and anything below."""
_FEW = 3
"""Loops that `re`, which is many times as fast, takes at most a moment for: names have 255 bytes between slashes."""
_KEPT = 4096


class Matcher(Protocol):
    """As re.Pattern."""

    def fullmatch(self, string: str, /) -> object:
        """True, or a match, when all of `string` fits."""
        ...


def matcher(pieces: Sequence[str]) -> Matcher:
    """For the regular expression made of `pieces`: each is for one character, or `[^/]*`, `.*`, DIRECTORIES, BELOW."""
    if sum(piece in _LOOPS or piece in {DIRECTORIES, BELOW} for piece in pieces) <= _FEW:
        return re.compile("".join(pieces), re.DOTALL)
    return _Automaton(pieces)


class _Automaton:
    """The states that may be reached, character by character; sets of them that were met are kept."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._edges: list[list[tuple[re.Pattern[str], int]]] = []
        self._free: list[list[int]] = []
        at = 0
        for piece in pieces:
            if piece in _LOOPS:
                self._edge(at, _LOOPS[piece], at)
                self._jump(at, at + 1)
                at += 1
            elif piece in {DIRECTORIES, BELOW}:
                into, out = (".", "/") if piece == DIRECTORIES else ("/", "")
                self._edge(at, into, at + 1)
                self._edge(at + 1, ".", at + 1)
                for state in (at, at + 1) if out else ():
                    self._edge(state, out, at + 2)
                self._jump(at, at + 2)
                if not out:
                    self._jump(at + 1, at + 2)
                at += 2
            else:
                self._edge(at, piece, at + 1)
                at += 1
        self._room(at)
        self._end = at
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._start = self._closed({0})

    def fullmatch(self, string: str, /) -> bool:
        """See Matcher."""
        states = self._start
        for char in string:
            states = self._after(states, char)
            if not states:
                return False
        return self._end in states

    def _after(self, states: frozenset[int], char: str) -> frozenset[int]:
        found = self._known.get((states, char))
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            reached = {to for state in states for fits, to in self._edges[state] if fits.fullmatch(char)}
            found = self._known[states, char] = self._closed(reached)
        return found

    def _closed(self, states: set[int]) -> frozenset[int]:
        pending = [*states]
        while pending:
            new = [to for to in self._free[pending.pop()] if to not in states]
            states.update(new)
            pending += new
        return frozenset(states)

    def _edge(self, start: int, piece: str, to: int) -> None:
        self._room(start)
        self._edges[start].append((re.compile(piece, re.DOTALL), to))

    def _jump(self, start: int, to: int) -> None:
        self._room(start)
        self._free[start].append(to)

    def _room(self, state: int) -> None:
        while len(self._edges) <= state:
            self._edges.append([])
            self._free.append([])
