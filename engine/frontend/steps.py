"""The instructions that make vertices: RUN, COPY, ADD and WORKDIR. They raise InputError without a line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import InputError
from engine.frontend.config import join_path
from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.expand import Lexer
from engine.frontend.instructions import Heredoc, Instruction, parse_heredoc
from engine.frontend.mounts import parse_mounts
from engine.frontend.names import run_command, shown, summary
from engine.frontend.remote import RemoteSource, remote_source, with_flags
from engine.frontend.stage import Reading, StageState, command_line
from engine.frontend.urls import redacted
from engine.frontend.values import check_chmod
from engine.graph import Copy, InlineFile, Mkdir, Run

SCRIPTS = "/dev/pipes"
"""Where a script given in a heredoc is run from, as in BuildKit."""
INSECURE = "security.insecure"
"""The entitlement that RUN --security=insecure needs."""
_TOLD = ("chown", "chmod", "checksum")


@dataclass(frozen=True, slots=True)
class Step:
    """What an instruction asks for: the op on the stage's file system, its name without number, the history's text;
    `remotes`: what an ADD takes from elsewhere, beside the `sources` of its op."""

    op: Run | Copy | Mkdir
    name: str
    created_by: str
    mount_origins: tuple[str | None, ...] = ()
    """What each mount of a Run takes from: a stage's or image's name, "" for the context, None for nothing."""
    remotes: tuple[RemoteSource, ...] = ()

    @property
    def size(self) -> int:
        """Characters of the op that are not in the history's text: environment, contents."""
        match self.op:
            case Run(env=env):
                return sum(len(name) + len(value) for name, value in env)
            case Copy(files=files):
                return sum(len(file.data) for file in files)
        return 0


class UnsupportedError(InputError):
    """A part of the language that is not there yet; `what` names it."""


# ---------------------------------------------------------------- RUN


def run(state: StageState, instruction: Instruction, reading: Reading) -> Step:
    """RUN in shell, exec and heredoc form (Dockerfile reference, "RUN" and "Here-Documents")."""
    if "device" in instruction.flags:
        raise UnsupportedError("RUN --device")
    argv, scripts, note = _command(state, instruction)
    if not argv or not argv[0]:
        raise InputError("RUN requires at least one argument")
    env = state.env
    directory = state.image.working_dir
    namespace = reading.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS", "")
    mounts = parse_mounts(instruction, reading.expander(state), directory, namespace)
    op = Run(
        argv=tuple(argv),
        env=tuple(env.items()),
        cwd=directory,
        user=state.image.config.get("User", ""),
        network=_network(instruction, reading.options.network),
        scripts=scripts,
        platform=state.platform,
        mounts=tuple(mount for mount, _ in mounts),
        security=_security(instruction, reading.options.entitlements),
    )
    lexer = Lexer(reading.escape, raw_quotes=True, raw_escapes=True, skip_unset=True)
    name = shown(_upper(instruction.text), lexer, env, reading.options.hidden) + note
    created_by = run_command(argv, state.visible_args)
    return Step(op, name, created_by, tuple(origin for _, origin in mounts))


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


def _security(instruction: Instruction, allowed: Collection[str]) -> Literal["sandbox", "insecure"]:
    wanted = instruction.flags.get("security", "sandbox")
    if wanted == "sandbox":
        return "sandbox"
    if wanted != "insecure":
        raise InputError(f"--security={wanted}: unknown security mode", hint="it is sandbox or insecure")
    if INSECURE not in allowed:
        raise InputError("--security=insecure is not allowed in this build", hint=f"build with --allow {INSECURE}")
    return "insecure"


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
    state.workdir_set |= path.startswith("/")
    directory = join_path(state.image.working_dir, path)
    state.image.config["WorkingDir"] = directory
    if directory == "/":
        return None
    name = shown(_upper(instruction.text), Lexer(reading.escape), env, reading.options.hidden)
    return Step(Mkdir(directory, state.image.config.get("User", "")), name, f"WORKDIR {directory}")


# ---------------------------------------------------------------- COPY and ADD


def copy(state: StageState, instruction: Instruction, reading: Reading, *, from_context: bool) -> Step:
    """COPY and ADD; `from_context`: the files are the build context's, not a stage's or an image's."""
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
    flags = _copy_flags(instruction, expand)
    parents = flags.get("parents") == "true"
    if len(written) + len(files) > 1 and not dest.endswith("/"):
        hint = f"write {dest_word}/"
        raise InputError(f"{name} has several sources: the destination must be a directory and end with a /", hint=hint)
    excludes = tuple(expand(pattern) for pattern in instruction.every("exclude"))
    IgnoreMatcher(excludes)  # reason: a malformed pattern is an error of this line
    op = Copy(
        sources=tuple(_with_parents(item) if parents else _clean(item) for item in sources),
        dest=dest,
        chown=flags.get("chown", ""),
        chmod=flags.get("chmod", ""),
        files=tuple(InlineFile(item.name, _contents(item, state.env)) for item in files),
        unpack=flags["unpack"] == "true" if "unpack" in flags else name == "ADD" and not remotes,
        from_context=from_context,
        link=flags.get("link") == "true",
        parents=parents,
        excludes=excludes,
    )
    created_by = [name, *(f"--{flag}={flags[flag]}" for flag in _TOLD if flag in flags)]
    created_by += [f"--{flag}" for flag in ("link", "parents") if flags.get(flag) == "true"]
    created_by += [*(f"--exclude={pattern}" for pattern in excludes), *written]
    created_by += [f"<<{item.name}" for item in files]
    title = shown(_upper(instruction.text), Lexer(reading.escape), state.env, reading.options.hidden)
    history = " ".join([*created_by, dest_word])
    if remotes:
        title, history = redacted(title), redacted(history)
    return Step(op, title, history, remotes=with_flags(remotes, flags, len(written) + len(files)))


def _copy_flags(instruction: Instruction, expand: Callable[[str], str]) -> dict[str, str]:
    """The flags but --from and --exclude, those that take variables expanded, checked."""
    flags = {
        flag: expand(value) if flag in {"chown", "chmod", "checksum"} else value
        for flag, value in instruction.flags.items()
        if flag not in {"from", "exclude"}
    }
    if "chmod" in flags:
        check_chmod(flags["chmod"])
    return flags


def _clean(source: str) -> str:
    return join_path("/", source)[1:] or "."


def _with_parents(source: str) -> str:
    """The source with the one `/./` kept that parts the directories that are left out from those that are kept."""
    pivot, point, rest = source.partition("/./")
    above = _clean(pivot) if point else "."
    return _clean(source) if above == "." else f"{above}/./{_clean(rest)}"


def _source(instruction: str, source: str) -> str:
    if not source:
        raise InputError(f"a source of {instruction} is empty once its variables are replaced")
    return source


def _destination(directory: str, written: str) -> str:
    """Absolute; ends with `/` when it was written as a directory."""
    path = join_path(directory, written)
    is_directory = written in {"", ".", ".."} or written.endswith(("/", "/.", "/.."))
    return path if path == "/" or not is_directory else path + "/"


def _contents(heredoc: Heredoc, env: Mapping[str, str]) -> str:
    return Lexer(skip_quotes=True).expand(heredoc.data, env) if heredoc.expand else heredoc.data
