"""A Dockerfile's text as instructions, each with its lines; syntax errors as people can read them.

The grammar is Moby's own, through the `dockerfile` package.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.source import Source, escape_line, locate
from storage.errors import InputError

FLAGS: Mapping[str, tuple[str, ...]] = {
    "FROM": ("platform",),
    "RUN": ("mount", "network", "security", "device"),
    "COPY": ("from", "chown", "chmod", "link", "parents", "exclude"),
    "ADD": ("chown", "chmod", "link", "keep-git-dir", "checksum", "exclude", "unpack"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
}
"""The flags of each instruction in the current reference."""
_BOOLEAN_FLAGS = frozenset({"link", "parents", "keep-git-dir", "unpack"})
_REPEATED_FLAGS = frozenset({"mount", "exclude", "device"})

NAMES = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip

NOT_IN_ONBUILD = frozenset({"ONBUILD", "FROM", "MAINTAINER"})

_DIRECTIVE = re.compile(r"#[ \t]*([a-zA-Z][a-zA-Z0-9]*)[ \t]*=[ \t]*(.+?)[ \t\r]*")
_DIRECTIVES = frozenset({"escape", "syntax", "check"})
_HOST = r"(?:[\w-]+(?:\.[\w-]+)*(?::[0-9]+)?/)?"
_SYNTAX = re.compile(
    rf"(?:{_HOST}docker/dockerfile(?::(?:1[\w.-]*|labs|latest|experimental))?"
    rf"|{_HOST}docker/dockerfile-upstream(?::[\w.-]+)?)(?:@sha256:[0-9a-f]{{64}})?|dockerfile\.v0"
)
"""The official frontend of version 1, from Docker Hub or a mirror of it."""
_ONBUILD = re.compile(r"\A\s*ONBUILD\b(?:\s|[\\`]\r?\n)*", re.IGNORECASE)
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]+)")
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
"""What the parser's C boundary would cut the text at, or the process would die of."""
_BRACES = re.compile(r"\$\{|\}|[\\`]?[ \t\r]*\n")
_DEEPEST = 200
_NESTED = f"more than {_DEEPEST} substitutions in one another"
_JSON_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The same in JSON form: the argument would be cut."""


@dataclass(frozen=True, slots=True)
class Heredoc:
    """`word` as written behind `<<`; `data` the text between, tabs stripped when it was `<<-`; `expand`: not quoted."""

    name: str
    data: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """`args` as the parser parts them (key, value, key, value … for ENV and LABEL; one text for RUN; the trigger's text
    for ONBUILD), `flags` by name without the dashes (of repeated ones the last), `all_flags` in order, `text` on one
    line as written, `lines` first and last, 1-based; `trigger`: what an ONBUILD holds."""

    name: str
    args: tuple[str, ...]
    flags: Mapping[str, str]
    json: bool
    heredocs: tuple[tuple[str, str], ...]
    text: str
    lines: tuple[int, int]
    all_flags: tuple[tuple[str, str], ...] = ()
    trigger: Instruction | None = None

    def every(self, flag: str) -> tuple[str, ...]:
        """The values of a flag that may be repeated."""
        return tuple(value for name, value in self.all_flags if name == flag)


def parse_dockerfile(source: Source) -> tuple[list[Instruction], str]:
    """The instructions and the escape character. Raises DockerfileError."""
    text = source.text
    if bad := _UNREADABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise source.error(f"the Dockerfile contains {_unreadable(bad)}", (line, line), "save it as UTF-8 text")
    if (nested := _too_deep(text)) is not None:
        line = text.count("\n", 0, nested) + 1
        raise source.error(_NESTED, (line, line))
    escape = _directives(source)
    out = [_instruction(source, command, escape) for command in _commands(source, escape)]
    return out, escape


def parse_trigger(source: Source, text: str, lines: tuple[int, int], escape: str = "\\") -> Instruction:
    """The one instruction that `text`, an ONBUILD trigger, holds; `lines` is where it stands or takes effect.

    Raises DockerfileError.
    """
    import dockerfile

    if bad := _UNREADABLE.search(text):
        raise source.error(f"it contains {_unreadable(bad)}", lines)
    if _too_deep(text) is not None:
        raise source.error(_NESTED, lines)
    try:
        commands = list(dockerfile.parse_string(escape_line(escape) + text))
    except (dockerfile.GoParseError, UnicodeDecodeError) as error:
        raise source.error(_reason(error), lines) from error
    if len(commands) != 1:
        raise source.error("an ONBUILD trigger is a single instruction", lines, "write one ONBUILD for each")
    name = commands[0].cmd.upper()
    if name in NOT_IN_ONBUILD:
        raise source.error(f"{name} is not allowed as an ONBUILD trigger", lines, word=commands[0].cmd)
    return replace(_instruction(source, commands[0], escape, lines), lines=lines)


def _too_deep(text: str) -> int | None:
    """Where more than _DEEPEST `${` are open in one line and those it goes on in. The parser, which nobody can
    interrupt, takes the cube of their number: hours for what one line has room for."""
    depth = 0
    for part in _BRACES.finditer(text):
        if part[0] == "${":
            depth += 1
            if depth > _DEEPEST:
                return part.start()
        elif part[0] == "}":
            depth = max(0, depth - 1)
        elif part[0][0] not in "\\`":
            depth = 0
    return None


def _unreadable(found: re.Match[str]) -> str:
    return "a NUL byte" if found[0] == "\0" else "bytes that are not UTF-8"


def _commands(source: Source, escape: str) -> list[Any]:
    import dockerfile  # reason: loading it starts Go's runtime, 20 ms that other commands need not pay

    try:
        commands: list[Any] = list(dockerfile.parse_string(_escape_first(source.text)))
    except (dockerfile.GoParseError, UnicodeDecodeError) as error:
        what = _reason(error)
        if "no instructions" in what:
            raise source.error("the Dockerfile has no instructions", (1, 1), "it begins with FROM") from error
        line, end = locate(source.text, escape, lambda chunk: _fails(dockerfile, chunk))
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


def directives(source: Source) -> dict[str, tuple[str, int]]:
    """The parser directives at the top: name to value and line. Raises DockerfileError for one given twice."""
    out: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(source.text.removeprefix("\ufeff").split("\n"), 1):
        found = _DIRECTIVE.fullmatch(line.strip())
        if not found or found[1].lower() not in _DIRECTIVES:
            break  # an ordinary comment, and what follows it are comments too
        name = found[1].lower()
        if name in out:
            raise source.error(f"only one {name} parser directive can be used", (number, number), word=found[1])
        out[name] = found[2], number
    return out


def _directives(source: Source) -> str:
    """Check the parser directives; returns the escape character."""
    found = directives(source)
    escape, line = found.get("escape", ("\\", 0))
    if escape not in ("\\", "`"):
        raise source.error(f"invalid escape character {escape!r}", (line, line), "it is ` or \\", word=escape)
    syntax, line = found.get("syntax", ("dockerfile.v0", 0))
    if not _SYNTAX.fullmatch(syntax):
        hint = "Refledger reads docker/dockerfile:1 itself and runs no other frontend"
        raise source.error(f"the language {syntax!r} (syntax directive) is not supported yet", (line, line), hint)
    return escape


def _instruction(source: Source, command: Any, escape: str, at: tuple[int, int] | None = None) -> Instruction:
    name = (command.cmd or "").upper()
    lines = at or (max(1, command.start_line), max(1, command.start_line, command.end_line))
    if not name:
        raise source.error("a line continues, but no instruction is in it", lines, "remove the escape character")
    if name not in NAMES:
        hint = did_you_mean(name, NAMES)
        raise source.error(f"unknown instruction: {command.cmd}", lines, hint, word=command.cmd)
    text = " ".join((command.original or "").split("\n", 1)[0].split())
    heredocs = tuple((item.name, item.content) for item in command.heredocs)
    if name == "ONBUILD":
        return _onbuild(source, command, escape, lines, text)
    if command.json and _JSON_NUL.search(text):
        raise source.error(f"an argument of {name} has a NUL byte: no process can be given it", lines)
    flags = _flags(source, name, command.flags, lines)
    return Instruction(name, tuple(command.value), dict(flags), bool(command.json), heredocs, text, lines, flags)


def _onbuild(source: Source, command: Any, escape: str, lines: tuple[int, int], text: str) -> Instruction:
    """The parser reads a trigger without its flags and heredocs, so it is parsed by itself."""
    trigger = _ONBUILD.sub("", command.original or "")
    if not trigger.strip():
        raise source.error("ONBUILD requires at least one argument", lines, "write ONBUILD INSTRUCTION …")
    if "<<" in trigger:
        below = source.text.removeprefix("\ufeff").split("\n")[lines[0] - 1 : lines[1]]
        inner = parse_trigger(source, _ONBUILD.sub("", "\n".join(below)), lines, escape)
        trigger = "\n".join([trigger, *(f"{data}{name}" for name, data in inner.heredocs)])
    else:
        inner = parse_trigger(source, trigger, lines, escape)
    return Instruction("ONBUILD", (trigger,), {}, False, (), text, lines, trigger=inner)


def _flags(
    source: Source, instruction: str, written: Iterable[str], lines: tuple[int, int]
) -> tuple[tuple[str, str], ...]:
    flags: list[tuple[str, str]] = []
    known = FLAGS.get(instruction, ())
    for flag in written:
        name, equals, value = flag.removeprefix("--").partition("=")
        if name not in known:
            hint = did_you_mean(name, known, "--") if known else f"{instruction} has no flags"
            raise source.error(f"unknown flag --{name} for {instruction}", lines, hint, word=f"--{name}")
        if name in _BOOLEAN_FLAGS:
            value = value.lower() if equals else "true"
            if value not in {"true", "false"}:
                raise source.error(f"--{name}={value} is neither true nor false", lines, f"write --{name} alone")
        elif not value and name not in _REPEATED_FLAGS:
            raise source.error(f"flag --{name} needs a value", lines, f"write --{name}=…", word=flag)
        if name not in _REPEATED_FLAGS and any(name == given for given, _ in flags):
            raise source.error(f"flag --{name} is given twice", lines)
        flags.append((name, value))
    return tuple(flags)


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
