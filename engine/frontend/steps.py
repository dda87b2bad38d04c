"""The instructions that make vertices: RUN, COPY, ADD and WORKDIR. They raise InputError without a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import InputError
from engine.frontend.config import join_path
from engine.frontend.expand import Lexer
from engine.frontend.instructions import Heredoc, Instruction, parse_heredoc
from engine.frontend.names import run_command, shown, summary
from engine.frontend.remote import RemoteSource, remote_source, with_flags
from engine.frontend.stage import Reading, StageState, command_line
from engine.frontend.urls import redacted
from engine.frontend.values import check_chmod
from engine.graph import Copy, InlineFile, Mkdir, Run

SCRIPTS = "/dev/pipes"
"""Where a script given in a heredoc is run from, as in BuildKit."""
_HARMLESS = {"link": "false", "parents": "false", "keep-git-dir": "false", "security": "sandbox"}
"""Flags that ask for what happens anyway."""
_SUPPORTED = frozenset({"from", "chown", "chmod", "network", "checksum", "keep-git-dir", "unpack"})


@dataclass(frozen=True, slots=True)
class Step:
    """What an instruction asks for: the op on the stage's file system, its name without number, the history's text;
    `remotes`: what an ADD takes from elsewhere, beside the `sources` of its op."""

    op: Run | Copy | Mkdir
    name: str
    created_by: str
    remotes: tuple[RemoteSource, ...] = ()


class UnsupportedError(InputError):
    """A part of the language that is not there yet; `what` names it."""


def _check_flags(instruction: Instruction) -> None:
    for name, value in instruction.flags.items():
        if name not in _SUPPORTED and _HARMLESS.get(name) != value:
            raise UnsupportedError(f"{instruction.name} --{name}")


# ---------------------------------------------------------------- RUN


def run(state: StageState, instruction: Instruction, reading: Reading) -> Step:
    """RUN in shell, exec and heredoc form (Dockerfile reference, "RUN" and "Here-Documents")."""
    _check_flags(instruction)
    argv, scripts, note = _command(state, instruction)
    if not argv or not argv[0]:
        raise InputError("RUN requires at least one argument")
    env = state.env
    op = Run(
        argv=tuple(argv),
        env=tuple(env.items()),
        cwd=state.image.working_dir,
        user=state.image.config.get("User", ""),
        network=_network(instruction, reading.options.network),
        scripts=scripts,
        platform=state.platform,
    )
    lexer = Lexer(reading.escape, raw_quotes=True, raw_escapes=True, skip_unset=True)
    name = shown(_upper(instruction.text), lexer, env) + note
    return Step(op, name, run_command(argv, state.visible_args))


def _command(state: StageState, instruction: Instruction) -> tuple[list[str], tuple[InlineFile, ...], str]:
    if instruction.json or not instruction.heredocs:
        return command_line(state, instruction), (), ""
    text = " ".join(instruction.args)
    heredoc = parse_heredoc(text, instruction.heredocs)
    if heredoc is None:  # the shell reads the heredocs itself, so they are put back as they were
        parts = [text, *(f"{data}{name}" for name, data in instruction.heredocs)]
        return [*state.image.shell, "\n".join(parts)], (), ""
    note = f" ({summary(heredoc.data)})"
    if heredoc.data.startswith("#!"):
        if "/" in heredoc.name or heredoc.name in {".", ".."}:
            raise InputError(f"heredoc {heredoc.name!r} cannot be the name of a script")
        return [f"{SCRIPTS}/{heredoc.name}"], (InlineFile(heredoc.name, heredoc.data),), note
    return [*state.image.shell, heredoc.data], (), note


def _network(instruction: Instruction, default: Literal["host", "none"]) -> Literal["host", "none"]:
    wanted = instruction.flags.get("network", "default")
    if wanted == "default":
        return default
    if wanted == "none":
        return "none"
    if wanted != "host":
        raise InputError(f"--network={wanted}: unknown network", hint="it is default, host or none")
    if default == "none":
        raise InputError("--network=host is not allowed: this build has no network", hint="build with --network host")
    return "host"


def _upper(text: str) -> str:
    name, blank, rest = text.partition(" ")
    return name.upper() + blank + rest


# ---------------------------------------------------------------- WORKDIR


def workdir(state: StageState, instruction: Instruction, reading: Reading) -> Step | None:
    """WORKDIR, which sets the config too. None for `/`: it is always there."""
    if len(instruction.args) != 1:
        raise InputError("WORKDIR requires exactly one argument")
    env = state.env
    path = reading.expander(state)(instruction.args[0])
    if not path:
        raise InputError(f"WORKDIR {instruction.args[0]} is empty once its variables are replaced")
    directory = join_path(state.image.working_dir, path)
    state.image.config["WorkingDir"] = directory
    if directory == "/":
        return None
    name = shown(_upper(instruction.text), Lexer(reading.escape), env)
    return Step(Mkdir(directory), name, f"WORKDIR {directory}")


# ---------------------------------------------------------------- COPY and ADD


def copy(state: StageState, instruction: Instruction, reading: Reading, *, from_context: bool) -> Step:
    """COPY and ADD; `from_context`: the files are the build context's, not a stage's or an image's."""
    _check_flags(instruction)
    name = instruction.name
    if len(instruction.args) < 2:
        raise InputError(f"{name} requires at least two arguments", hint=f"write {name} source… destination")
    *words, written_dest = instruction.args
    expand = reading.expander(state)
    sources: list[str] = []
    remotes: list[RemoteSource] = []
    written: list[str] = []
    files: list[Heredoc] = []
    for word in words:
        heredoc = parse_heredoc(word, instruction.heredocs)
        if heredoc is not None:
            files.append(heredoc)
            continue
        written.append(_source(name, expand(word)))
        remote = remote_source(name, written[-1])
        if remote is None:
            sources.append(written[-1])
        else:
            remotes.append(remote)
    if parse_heredoc(written_dest, instruction.heredocs):
        raise InputError(f"{name} cannot accept a heredoc as a destination")
    dest_word = expand(written_dest)
    dest = _destination(state.image.working_dir, dest_word)
    if len(written) + len(files) > 1 and not dest.endswith("/"):
        hint = f"write {dest_word}/"
        raise InputError(f"{name} has several sources: the destination must be a directory and end with a /", hint=hint)
    flags = {flag: expand(instruction.flags[flag]) for flag in ("chown", "chmod") if flag in instruction.flags}
    wanted = ("checksum", "keep-git-dir")
    fetched = {flag: expand(instruction.flags[flag]) for flag in wanted if flag in instruction.flags}
    if "chmod" in flags:
        check_chmod(flags["chmod"])
    op = Copy(
        sources=tuple(join_path("/", item)[1:] or "." for item in sources),
        dest=dest,
        chown=flags.get("chown", ""),
        chmod=flags.get("chmod", ""),
        files=tuple(InlineFile(item.name, _contents(item, state.env)) for item in files),
        unpack=_boolean(instruction, "unpack", name == "ADD" and not remotes),
        from_context=from_context,
    )
    created_by = [name, *(f"--{flag}={value}" for flag, value in flags.items()), *written]
    created_by += [f"<<{item.name}" for item in files]
    title = shown(_upper(instruction.text), Lexer(reading.escape), state.env)
    history = " ".join([*created_by, dest_word])
    if remotes:
        title, history = redacted(title), redacted(history)
    return Step(op, title, history, with_flags(remotes, fetched, len(written) + len(files)))


def _source(instruction: str, source: str) -> str:
    if not source:
        raise InputError(f"a source of {instruction} is empty once its variables are replaced")
    return source


def _boolean(instruction: Instruction, flag: str, default: bool) -> bool:
    value = instruction.flags.get(flag)
    if value not in {None, "true", "false"}:
        raise InputError(f"--{flag}={value}: not a truth value", hint="it is true or false")
    return default if value is None else value == "true"


def _destination(directory: str, written: str) -> str:
    """Absolute; ends with `/` when it was written as a directory."""
    path = join_path(directory, written)
    is_directory = written in {"", ".", ".."} or written.endswith(("/", "/.", "/.."))
    return path if path == "/" or not is_directory else path + "/"


def _contents(heredoc: Heredoc, env: Mapping[str, str]) -> str:
    return Lexer(skip_quotes=True).expand(heredoc.data, env) if heredoc.expand else heredoc.data
