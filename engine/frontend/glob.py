"""Wildcards in COPY sources, with the meaning of Go's `path/filepath.Match`, which the Dockerfile reference names.

`*` any run without `/`, `?` one character but `/`, `[a-z]` and `[^a-z]` one character, `\\x` the character x.
"""

from __future__ import annotations

import re
from functools import lru_cache

from engine.frontend.linear import Matcher, matcher
from storage.errors import InputError

_HINT = "wildcards are *, ?, [a-z] and [^a-z]; write \\[ for a literal bracket"


def bad_pattern(pattern: str) -> InputError:
    """The error for a pattern that Go calls malformed."""
    return InputError(f"malformed pattern {pattern!r}", hint=_HINT)


def translate_class(pattern: str, start: int) -> tuple[str, int]:
    """The regular expression of the bracket expression whose `[` is at `start`, and the index behind its `]`.

    As in Go a class may match `/`, cannot be empty, and needs `\\` before a literal `-` or `]`. Raises InputError.
    """
    index = start + 1
    negated = pattern.startswith("^", index)
    index += negated
    ranges: list[str] = []
    seen = 0
    while True:
        if seen and pattern.startswith("]", index):
            break
        low, index = _class_character(pattern, index)
        high = low
        if pattern.startswith("-", index):
            high, index = _class_character(pattern, index + 1)
        seen += 1
        if low <= high:  # Go lets a reversed range stand: it matches nothing
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
    if ranges:
        return f"[{'^' if negated else ''}{''.join(ranges)}]", index + 1
    return ("." if negated else "(?!)"), index + 1


def _class_character(pattern: str, index: int) -> tuple[str, int]:
    if pattern.startswith("\\", index):
        index += 1
    elif pattern[index : index + 1] in ("-", "]"):
        raise bad_pattern(pattern)
    if index + 1 >= len(pattern):  # a class also needs its closing bracket
        raise bad_pattern(pattern)
    return pattern[index], index + 1


@lru_cache(maxsize=1024)
def compile_glob(pattern: str) -> Matcher:
    """What `fullmatch`es paths. Raises InputError for a malformed pattern."""
    out: list[str] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        if char == "[":
            text, index = translate_class(pattern, index)
            out.append(text)
            continue
        if char == "*":
            if out[-1:] != ["[^/]*"]:  # a run of stars means one, and would make matching slow
                out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        else:
            if char == "\\":
                index += 1
                if index == len(pattern):
                    raise bad_pattern(pattern)
            out.append(re.escape(pattern[index]))
        index += 1
    return matcher(out)


def match_path(pattern: str, path: str) -> bool:
    """Does `pattern` match the whole of `path`? Both with `/`, neither is cleaned. Raises InputError."""
    return bool(compile_glob(pattern).fullmatch(path))


def has_wildcard(pattern: str) -> bool:
    """Is there a `*`, `?` or `[` in `pattern` that no `\\` makes literal?"""
    index = 0
    while index < len(pattern):
        if pattern[index] == "\\":
            index += 1
        elif pattern[index] in "*?[":
            return True
        index += 1
    return False
