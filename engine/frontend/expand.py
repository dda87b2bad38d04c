"""Variables, quotes and escapes in the words of a Dockerfile.

Source: Dockerfile reference, "Environment replacement"; where it is silent, BuildKit's shell lexer. Not a shell: no
splitting on IFS, no command substitution, no arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.errors import InputError

_PLAIN = re.compile(r"[^$'\"\\`}/]+")
"""What is special nowhere: most of a text."""
_SPECIAL_NAMES = "@*#?-$!0"
_MAX_DEPTH = 50
LARGEST = 64 << 20
"""Characters that variables may make of an instruction, and of a Dockerfile: ENV A=$A$A doubles with each line."""
_COST = 1_000_000_000  # steps of backtracking: seconds
_MISSING = {"}": "syntax error: missing '}'", "/": "syntax error: missing '/' in ${}"}


class ExpansionError(InputError):
    """A word that cannot be expanded; the caller knows its line."""


@dataclass(frozen=True, slots=True)
class Lexer:
    """How a word is read. `escape` is the Dockerfile's escape character.

    `raw_quotes` and `raw_escapes` keep quotes and escape characters in the result, `skip_quotes` takes quotes for plain
    text (heredocs), `skip_unset` leaves references to unknown variables as they are written. One lexer is for one
    instruction: all that it puts in the place of variables is bounded together.
    """

    escape: str = "\\"
    raw_quotes: bool = False
    raw_escapes: bool = False
    skip_quotes: bool = False
    skip_unset: bool = False
    _made: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)

    def expand(self, word: str, env: Mapping[str, str]) -> str:
        """`word` with variables replaced and quotes removed. Raises ExpansionError."""
        return _Reader(word, env, self).read("", self.raw_escapes).text()

    def undefined(self, word: str, env: Mapping[str, str]) -> list[str]:
        """The variables of `word` that are not in `env` and stand without a word instead, in order."""
        reader = _Reader(word, env, self)
        try:
            reader.read("", self.raw_escapes)
        except ExpansionError:
            return []
        return reader.undefined

    def words(self, word: str, env: Mapping[str, str]) -> list[str]:
        """As `expand`, then split at unquoted blanks, also those that a variable brought. Raises ExpansionError."""
        return _Reader(word, env, self).read("", self.raw_escapes).words()

    def spend(self, size: int) -> None:
        """Count `size` characters more. Raises ExpansionError when they are too many."""
        self._made[0] += size
        if self._made[0] > LARGEST:
            raise too_large()


@dataclass(slots=True)
class _Output:
    """Characters, each marked whether a blank there would part two words."""

    parts: list[tuple[str, bool]] = field(default_factory=list)

    def add(self, text: str, *, splits: bool) -> None:
        self.parts.append((text, splits))

    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    def words(self) -> list[str]:
        words = [""]
        for text, splits in self.parts:
            first, *others = re.split(r"\s+", text) if splits else [text]
            words[-1] += first
            words.extend(others)
        return [word for word in words if word]


class _Reader:
    __slots__ = ("_depth", "_env", "_lexer", "_position", "_source", "undefined")

    def __init__(self, source: str, env: Mapping[str, str], lexer: Lexer) -> None:
        self._source = source
        self._env = env
        self._lexer = lexer
        self._position = 0
        self._depth = 0
        self.undefined: list[str] = []

    def _peek(self) -> str:
        return self._source[self._position : self._position + 1]

    def _next(self) -> str:
        char = self._peek()
        self._position += 1
        return char

    def read(self, stop: str, raw_escapes: bool) -> _Output:
        """Everything up to the unquoted character `stop`, which is consumed; to the end when it is empty."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ExpansionError(f"substitutions nest deeper than {_MAX_DEPTH}")
        out = _Output()
        while char := self._peek():
            if char == stop:
                self._next()
                self._depth -= 1
                return out
            if char == "$":
                out.add(self._dollar(), splits=True)
            elif char == "'" and not self._lexer.skip_quotes:
                out.add(self._single(), splits=False)
            elif char == '"' and not self._lexer.skip_quotes:
                out.add(self._double(raw_escapes), splits=False)
            elif plain := _PLAIN.match(self._source, self._position):
                self._position = plain.end()
                out.add(plain[0], splits=True)
            elif self._next() != self._lexer.escape:
                out.add(char, splits=True)
            else:
                escaped = self._next()  # an escape at the very end escapes nothing and is dropped
                out.add(char + escaped if raw_escapes else escaped, splits=False)
        if stop:
            raise ExpansionError(_MISSING[stop])
        self._depth -= 1
        return out

    def _single(self) -> str:
        end = self._source.find("'", self._position + 1)
        if end < 0:
            raise ExpansionError("unexpected end of statement while looking for matching single-quote")
        quoted = self._source[self._position : end + 1]
        self._position = end + 1
        return quoted if self._lexer.raw_quotes else quoted[1:-1]

    def _double(self, raw_escapes: bool) -> str:
        quote = self._next()
        out: list[str] = []
        while char := self._peek():
            if char == "$":
                out.append(self._dollar())
                continue
            self._next()
            if char == quote:
                text = "".join(out)
                return f'"{text}"' if self._lexer.raw_quotes else text
            if char == self._lexer.escape and self._peek() in {'"', "$", self._lexer.escape}:
                char = char + self._next() if raw_escapes else self._next()  # any other escape is literal
            out.append(char)
        raise ExpansionError("unexpected end of statement while looking for matching double-quote")

    def _dollar(self) -> str:
        value = self._variable()
        self._lexer.spend(len(value))
        return value

    def _variable(self) -> str:
        start = self._position
        self._next()
        if self._peek() != "{":
            name = self._name()
            if name and self._lexer.skip_unset and name not in self._env:
                return self._source[start : self._position]
            self._note(name)
            return self._env.get(name, "") if name else "$"
        self._next()
        if not self._peek():
            raise ExpansionError(_MISSING["}"])
        if self._peek() in "{}:":
            raise ExpansionError("syntax error: bad substitution")
        name = self._name()
        value = self._modified(name)
        if self._lexer.skip_unset and name not in self._env:
            return self._source[start : self._position]
        return value

    def _name(self) -> str:
        start = self._position
        char = self._peek()
        if char.isdecimal():
            while self._peek().isdecimal():
                self._position += 1
        elif char and char in _SPECIAL_NAMES:
            self._position += 1
        else:
            while self._peek().isalnum() or self._peek() == "_":
                self._position += 1
        return self._source[start : self._position]

    def _note(self, name: str) -> None:
        if name not in self._env and re.match("[A-Za-z_]", name):
            self.undefined.append(name)

    def _modified(self, name: str) -> str:
        """What stands behind the name in `${name…}`, applied."""
        value = self._env.get(name)
        operator = self._next()
        if operator == "}":
            self._note(name)
            return value or ""
        if operator == "/":
            self._note(name)
            return self._replace(value or "")
        colon = operator == ":"
        if colon:
            operator = self._next()
        if not operator:
            raise ExpansionError(_MISSING["}"])
        if operator not in "-+?#%":
            raise ExpansionError(f"unsupported modifier ({':' if colon else ''}{operator}) in substitution")
        word = self.read("}", raw_escapes=operator in "#%").text()
        if operator in "#%":
            self._note(name)
            return _trim(operator, word, value or "")
        return _choose(name, operator, colon, word, value, strict=not self._lexer.skip_unset)

    def _replace(self, value: str) -> str:
        every = self._peek() == "/"
        if every:
            self._next()
        pattern = self.read("/", raw_escapes=True).text()
        replacement = self.read("}", raw_escapes=True).text()
        _check_cost(pattern, value)
        if (len(value) + 1) * len(replacement) > LARGEST:
            raise too_large()
        return _pattern(pattern, greedy=True).sub(lambda _: replacement, value, count=0 if every else 1)


def _choose(name: str, operator: str, colon: bool, word: str, value: str | None, *, strict: bool) -> str:
    """`${name:-word}` and its like; with `colon` an empty value counts as none."""
    missing = value is None or (colon and not value)
    if operator == "+":
        return "" if missing else word
    if not missing:
        return value or ""
    if operator == "-":
        return word
    if strict:
        problem = "is not allowed to be unset" if value is None else "is not allowed to be empty"
        raise ExpansionError(f"{name}: {word or problem}")
    return ""


def _trim(operator: str, word: str, value: str) -> str:
    """`#` and `%` take the shortest match off the front or the end of `value`, doubled the longest one."""
    longest = word.startswith(operator)
    _check_cost(word, value)
    pattern = _pattern(word[1:] if longest else word, greedy=longest)
    if operator == "#":
        found = pattern.match(value)
        return value[found.end() :] if found else value
    starts = range(len(value) + 1)
    for start in starts if longest else reversed(starts):
        if pattern.fullmatch(value, start):
            return value[:start]
    return value


def too_large() -> ExpansionError:
    """More than LARGEST."""
    return ExpansionError(f"variables make a text of more than {LARGEST >> 20} MiB")


def _check_cost(pattern: str, value: str) -> None:
    """Raises ExpansionError for what might take minutes: a pattern of several stars is tried at many places."""
    if (len(value) + 1) ** min(len(re.findall(r"\*+", pattern)) + 1, 8) > _COST:
        raise ExpansionError(f"a pattern of so many * for a value of {len(value)} characters would take too long")


def _pattern(text: str, *, greedy: bool) -> re.Pattern[str]:
    """A shell pattern of `*`, `?` and escapes, without bracket expressions, as the reference has it."""
    out: list[str] = []
    index = 0
    while index < len(text):
        char = text[index]
        index += 1
        if char == "*":
            if out[-1:] not in ([".*"], [".*?"]):
                out.append(".*" if greedy else ".*?")
        elif char == "?":
            out.append(".")
        elif char == "\\":
            following = text[index : index + 1]
            if following not in ("*", "?", "\\", "}", "/"):
                raise ExpansionError(f"invalid pattern ({text}) in substitution: invalid escape '\\{following}'")
            out.append(re.escape(following))
            index += 1
        else:
            out.append(re.escape(char))
    return re.compile("".join(out), re.DOTALL)
