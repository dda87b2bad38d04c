"""A Dockerfile's text as instructions, each with its lines; syntax errors as people can read them.

The grammar is Moby's own, through the `dockerfile` package.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import DockerfileError
from engine.frontend.expand import ExpansionError, Lexer
from storage.errors import InputError

FLAGS: Mapping[str, tuple[str, ...]] = {
    "FROM": ("platform",),
    "RUN": ("mount", "network", "security", "device"),
    "COPY": ("from", "chown", "chmod", "link", "parents", "exclude"),
    "ADD": ("chown", "chmod", "link", "keep-git-dir", "checksum", "exclude", "unpack"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
}
"""The flags of each instruction in the current reference, supported here or not."""
_BOOLEAN_FLAGS = frozenset({"link", "parents", "keep-git-dir", "unpack"})
_REPEATED_FLAGS = frozenset({"mount", "exclude", "device"})

NAMES = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip

_DIRECTIVE = re.compile(r"#[ \t]*([a-zA-Z][a-zA-Z0-9]*)[ \t]*=[ \t]*(.+?)[ \t\r]*")
_DIRECTIVES = frozenset({"escape", "syntax", "check"})
_SYNTAX = re.compile(r"(docker\.io/)?docker/dockerfile(-upstream)?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]+)")
_EXCERPT_LINES = 20


@dataclass(frozen=True, slots=True)
class Heredoc:
    """`word` as written behind `<<`; `data` the text between, tabs stripped when it was `<<-`; `expand`: not quoted."""

    name: str
    data: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """`args` as the parser parts them (key, value, key, value … for ENV and LABEL; one text for RUN), `flags` by name
    without the dashes, `text` on one line as written, `lines` first and last, 1-based."""

    name: str
    args: tuple[str, ...]
    flags: Mapping[str, str]
    json: bool
    heredocs: tuple[tuple[str, str], ...]
    text: str
    lines: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """The Dockerfile's name and text, to tell errors with."""

    filename: str
    text: str

    def error(self, what: str, lines: tuple[int, int], hint: str = "") -> DockerfileError:
        """A DockerfileError with the excerpt of `lines`."""
        first = max(1, lines[0])
        last = max(first, lines[1])
        shown = self.text.removeprefix("\ufeff").split("\n")[first - 1 : min(last, first + _EXCERPT_LINES - 1)]
        excerpt = "\n".join(line.rstrip("\r") for line in shown)
        return DockerfileError(what, filename=self.filename, line=first, end=last, excerpt=excerpt, hint=hint)

    def unsupported(self, what: str, lines: tuple[int, int]) -> DockerfileError:
        """The error for a part of the language that exists but not here."""
        return self.error(f"{what} is not supported yet", lines)


def parse_dockerfile(source: Source) -> tuple[list[Instruction], str]:
    """The instructions and the escape character. Raises DockerfileError."""
    text = source.text
    for bad, name in (("\0", "a NUL byte"), (_surrogate(text), "bytes that are not UTF-8")):
        if bad and bad in text:  # the parser's C boundary would cut the text, or the process would die
            line = text.count("\n", 0, text.index(bad)) + 1
            raise source.error(f"the Dockerfile contains {name}", (line, line), "save it as UTF-8 text")
    escape = _directives(source)
    out = [_instruction(source, command) for command in _commands(source, escape)]
    return out, escape


def _surrogate(text: str) -> str:
    found = re.search("[\ud800-\udfff]", text)
    return found[0] if found else ""


def _commands(source: Source, escape: str) -> list[Any]:
    import dockerfile  # reason: loading it starts Go's runtime, 20 ms that other commands need not pay

    try:
        commands: list[Any] = list(dockerfile.parse_string(_escape_first(source.text)))
    except (dockerfile.GoParseError, UnicodeDecodeError) as error:
        what = _reason(error)
        if "no instructions" in what:
            raise source.error("the Dockerfile has no instructions", (1, 1), "it begins with FROM") from error
        line, end = _locate(source.text, escape, lambda chunk: _fails(dockerfile, chunk))
        hint = "end it with its word alone on a line" if "unterminated heredoc" in what else ""
        raise source.error(what, (line, end), hint) from error
    return commands


def _escape_first(text: str) -> str:
    """`text` with the escape directive moved to its top: the parser takes `# check=` for the end of the directives."""
    lines = text.removeprefix("\ufeff").split("\n")
    for index, line in enumerate(lines):
        found = _DIRECTIVE.fullmatch(line.strip())
        if not found or found[1].lower() not in _DIRECTIVES:
            break
        if found[1].lower() == "escape":
            return "\n".join([line, *lines[:index], *lines[index + 1 :]])
    return text


def _fails(parser: Any, text: str) -> str:
    try:
        parser.parse_string(text)
    except (parser.GoParseError, UnicodeDecodeError) as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):  # the parser cuts some words by bytes, in the middle of a character
        return "a word that must be plain ASCII has other characters"
    return str(error) or "syntax error"


def _locate(text: str, escape: str, failure: Callable[[str], str]) -> tuple[int, int]:
    """The lines of the instruction that the parser refuses; it names none, so they are tried one by one."""
    lines = text.removeprefix("\ufeff").split("\n")
    prefix = "# escape=`\n" if escape == "`" else ""
    index = 0
    while index < len(lines):
        stripped = lines[index].strip()
        if not stripped or stripped.startswith("#"):
            index += 1
            continue
        end = _continuation(lines, index, escape)
        chunk = "\n".join(lines[index:end])
        problem = failure(prefix + chunk)
        while "unterminated heredoc" in problem and end < len(lines):
            end += 1
            if lines[end - 1].strip("\t\r") in chunk:  # only a line that the first ones name can end it
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
        if not comment and not line.endswith(escape):
            break
    return index


def _directives(source: Source) -> str:
    """Check the parser directives at the top; returns the escape character."""
    escape = "\\"
    for number, line in enumerate(source.text.removeprefix("\ufeff").split("\n"), 1):
        found = _DIRECTIVE.fullmatch(line.strip())
        if not found:
            break
        name, value = found[1].lower(), found[2]
        if name not in _DIRECTIVES:  # an ordinary comment, and what follows it are comments too
            break
        if name == "escape":
            if value not in ("\\", "`"):
                raise source.error(f"invalid escape character {value!r}", (number, number), "it is ` or \\")
            escape = value
        elif name == "syntax" and not _SYNTAX.fullmatch(value):
            raise source.unsupported(f"the language {value!r} (syntax directive)", (number, number))
    return escape


def _instruction(source: Source, command: Any) -> Instruction:
    name = (command.cmd or "").upper()
    lines = (max(1, command.start_line), max(1, command.start_line, command.end_line))
    if not name:
        raise source.error("a line continues, but no instruction is in it", lines, "remove the escape character")
    if name not in NAMES:
        raise source.error(f"unknown instruction: {command.cmd}", lines, did_you_mean(name, NAMES))
    flags: dict[str, str] = {}
    if name != "ONBUILD":  # its flags are those of the instruction it holds
        flags = _flags(source, name, command.flags, lines)
    text = " ".join((command.original or "").split("\n", 1)[0].split())
    heredocs = tuple((item.name, item.content) for item in command.heredocs)
    return Instruction(name, tuple(command.value), flags, bool(command.json), heredocs, text, lines)


def _flags(source: Source, instruction: str, written: Iterable[str], lines: tuple[int, int]) -> dict[str, str]:
    flags: dict[str, str] = {}
    known = FLAGS.get(instruction, ())
    for flag in written:
        name, equals, value = flag.removeprefix("--").partition("=")
        if name not in known:
            hint = did_you_mean(name, known, "--") if known else f"{instruction} has no flags"
            raise source.error(f"unknown flag --{name} for {instruction}", lines, hint)
        if not equals and name in _BOOLEAN_FLAGS:
            value = "true"
        elif not value and name not in _REPEATED_FLAGS:
            raise source.error(f"flag --{name} needs a value", lines, f"write --{name}=…")
        if name in flags and name not in _REPEATED_FLAGS:
            raise source.error(f"flag --{name} is given twice", lines)
        flags[name] = value
    return flags


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint with the nearest of `known`, or with all of them when none is near."""
    names = list(known)
    by_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=0.6)
    if near:
        return f"did you mean {prefix}{by_case[near[0]]}?"
    return f"known: {', '.join(prefix + name for name in names)}" if names else ""


def parse_heredoc(word: str, contents: Iterable[tuple[str, str]]) -> Heredoc | None:
    """The heredoc that `word` (`<<EOF`, `<<-"EOF"`) names among `contents`, None when it is an ordinary word."""
    found = _HEREDOC.fullmatch(word.strip())
    if not found:
        return None
    try:
        names = Lexer(skip_unset=True).words(found[3], {})
        raw = Lexer(skip_unset=True, raw_quotes=True, raw_escapes=True).words(found[3], {})
    except ExpansionError:
        return None
    data = dict(contents).get(names[0]) if len(names) == 1 else None
    if data is None:
        return None
    if found[2]:
        data = re.sub("^\t+", "", data, flags=re.MULTILINE)
    return Heredoc(names[0], data, names == raw)


def pairs(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """The keys and values of ENV or LABEL. Raises InputError."""
    args = instruction.args
    if not args:
        raise InputError(f"{instruction.name} requires at least one argument")
    yield from zip(args[::2], args[1::2], strict=True)
