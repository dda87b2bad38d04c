"""A Dockerfile's text, and where in it something stands: what errors and findings point at."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.errors import DockerfileError

DOCKERFILE_LIMIT = 16 << 20
"""Bytes of a Dockerfile at most, and of what it leaves out of its context: it may come from anywhere."""
_EXCERPT_LINES, _EXCERPT_WIDTH = 20, 300
"""Lines of an excerpt, and characters of a line in it: an excerpt goes into an event."""
_HEREDOC = re.compile(r"""<<-?["']?([^\s"'<>]+)""")


@dataclass(frozen=True, slots=True)
class Source:
    """The Dockerfile's name and text, to tell errors with."""

    filename: str
    text: str

    def error(self, what: str, lines: tuple[int, int], hint: str = "", word: str = "") -> DockerfileError:
        """A DockerfileError with the excerpt of `lines`; `word` is the part of them that is wrong, "" if unknown."""
        first, last = self._clamp(lines)
        mark = self.find(lines, word or _quoted_part(what))
        return DockerfileError(
            what, filename=self.filename, line=first, end=last, excerpt=self.excerpt(lines), hint=hint, mark=mark
        )

    def unsupported(self, what: str, lines: tuple[int, int]) -> DockerfileError:
        """The error for a part of the language that exists but not here."""
        return self.error(f"{what} is not supported yet", lines)

    def excerpt(self, lines: tuple[int, int]) -> str:
        """The source lines `lines`, at most 20 of them, and no more than their beginnings when they are long."""
        first, last = self._clamp(lines)
        shown = self.lines()[first - 1 : min(last, first + _EXCERPT_LINES - 1)]
        return "\n".join(line if len(line) <= _EXCERPT_WIDTH else f"{line[:_EXCERPT_WIDTH]}…" for line in shown)

    def find(self, lines: tuple[int, int], word: str) -> tuple[int, int, int] | None:
        """Where `word` stands first in `lines`: line (1-based), column (0-based), length in characters."""
        first, last = self._clamp(lines)
        if word and "\n" not in word:
            whole = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
            for pattern in (whole, re.compile(re.escape(word))):
                for number, line in enumerate(self.lines()[first - 1 : last], first):
                    if found := pattern.search(line):
                        return number, found.start(), len(word)
        return None

    def _clamp(self, lines: tuple[int, int]) -> tuple[int, int]:
        first = max(1, lines[0])
        return first, max(first, lines[1])

    def lines(self) -> Sequence[str]:
        """All lines, without their ends."""
        return _lines(self.text)


@lru_cache(maxsize=4)  # reason: every instruction is looked at by its lines
def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n"))


def _quoted_part(what: str) -> str:
    """The word that a message is about, when it quotes one."""
    found = re.search(r"'([^']{2,})'|(--[\w-]+(?:=\S+[^:\s])?)", what)
    return (found[1] or found[2]) if found else ""


def locate(text: str, escape: str, failure: Callable[[str], str]) -> tuple[int, int]:
    """The lines of the instruction that the parser refuses; it names none, so they are tried one by one."""
    lines = text.removeprefix("\ufeff").split("\n")
    prefix = escape_line(escape)
    index = 0
    while index < len(lines):
        stripped = lines[index].strip()
        if not stripped or stripped.startswith("#"):
            index += 1
            continue
        end = _continuation(lines, index, escape)
        chunk = "\n".join(lines[index:end])
        problem = failure(prefix + chunk)
        if "unterminated heredoc" in problem:
            end = _behind_heredocs(lines, end, _HEREDOC.findall(chunk))
            problem = failure(prefix + "\n".join(lines[index:end]))
        if problem:
            return index + 1, (index + chunk.count("\n") + 1)
        index = end
    return 1, 1


def _continuation(lines: list[str], start: int, escape: str) -> int:
    """The index behind the last line of the instruction that begins at `start`."""
    index = start
    while index < len(lines):
        line = lines[index].rstrip()
        comment = index > start and (not line or line.lstrip().startswith("#"))
        index += 1
        if not comment and not ends_with_escape(line, escape):
            break
    return index


def _behind_heredocs(lines: list[str], start: int, names: list[str]) -> int:
    """The index behind the lines that end the heredocs called `names`, one after the other; of the end when one does
    not. Each line is looked at once: an attempt to parse for each would take for ever."""
    index = start
    for name in names:
        while index < len(lines) and lines[index].strip("\t\r") != name:
            index += 1
        index += 1
    return min(index, len(lines))


def ends_with_escape(line: str, escape: str) -> bool:
    """Does an instruction go on behind this line?"""
    return line.rstrip().endswith(escape)


def escape_line(escape: str) -> str:
    """The directive that makes `escape` the escape character; "" for the usual one."""
    return "# escape=`\n" if escape == "`" else ""
