"""`.dockerignore`: which paths of a context a build does not see (Dockerfile reference, ".dockerignore file").

Paths are relative to the context's root, with `/`, without a leading or trailing one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from engine.frontend.glob import match_path, translate_class
from engine.frontend.linear import BELOW, DIRECTORIES, Matcher, matcher
from storage.errors import InputError


def parse_dockerignore(text: str) -> tuple[str, ...]:
    """The patterns of a `.dockerignore` file, in order and cleaned; `!` stays in front of an exception."""
    out: list[str] = []
    for raw in text.removeprefix("\ufeff").split("\n"):
        if raw.startswith("#"):
            continue
        pattern = raw.strip()
        if not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = _clean(pattern)
        out.append("!" + pattern if negated else pattern)
    return tuple(out)


def _clean(pattern: str) -> str:
    """Go's filepath.Clean, then relative to the context's root."""
    cleaned = posixpath.normpath(re.sub("/+", "/", pattern))
    return cleaned[1:] if len(cleaned) > 1 and cleaned.startswith("/") else cleaned


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    exception: bool
    regex: Matcher


class IgnoreMatcher:
    """Decides by moby's rules: a pattern also hides what is below it, and the last pattern that matches wins."""

    __slots__ = ("_exceptions", "_patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises InputError for a malformed pattern."""
        self._patterns = tuple(_compile(item.strip()) for item in patterns if item.strip())
        self._exceptions = tuple(item.text for item in self._patterns if item.exception)

    def excluded(self, path: str) -> bool:
        """Is `path` (file or directory alike) hidden from the build?"""
        hidden = False
        for pattern in self._patterns:
            if pattern.exception == hidden and pattern.regex.fullmatch(path):
                hidden = not hidden
        return hidden

    def may_contain_included(self, directory: str) -> bool:
        """May something below the excluded `directory` be visible? When False, a walk can skip it unread."""
        return any(_may_match_below(text, directory) for text in self._exceptions)


def _compile(written: str) -> _Pattern:
    exception = written.startswith("!")
    text = written[1:].strip() if exception else written
    if not text:
        raise InputError("illegal exclusion pattern: '!'", where=".dockerignore", hint="name a path behind the !")
    text = _clean(text)
    # What matches a directory matches all below it, as moby does by trying every parent.
    return _Pattern(text, exception, matcher([*_translate(text), BELOW]))


def _translate(pattern: str) -> list[str]:
    if pattern.startswith("**") and not re.search(r"[*?\[\]\\/]", pattern[2:]):
        return [".*", *map(re.escape, pattern[2:])]  # `**name` is a plain suffix there, across directories
    out: list[str] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*" and pattern.startswith("*", index):
            index += 1
            index += pattern.startswith("/", index)
            out.append(".*" if index == len(pattern) else DIRECTORIES)
        elif char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            text, index = translate_class(pattern, index - 1)
            out.append(text)
        elif char == "\\":
            if index == len(pattern):
                raise InputError(f"malformed pattern {pattern!r}", where=".dockerignore", hint="it ends with a \\")
            out.append(re.escape(pattern[index]))
            index += 1
        else:
            out.append(re.escape(char))
    return out


def _may_match_below(pattern: str, directory: str) -> bool:
    """Could `pattern` match a path strictly below `directory`? Says True when it is not cheap to know."""
    parts = pattern.split("/")
    names = directory.split("/")
    for part, name in zip(parts, names, strict=False):
        if "**" in part or "[" in part or "\\" in part:
            return True
        if not match_path(part, name):
            return False
    return len(parts) > len(names)
