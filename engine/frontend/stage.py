"""The state of one stage while its instructions are read, and the instructions that only change its image config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import InputError
from engine.frontend.config import ImageConfig
from engine.frontend.expand import Lexer
from engine.frontend.instructions import Instruction, pairs
from engine.frontend.names import StepNames, health, listed, quoted
from engine.frontend.scope import FrontendOptions, declare
from engine.frontend.values import check_signal, parse_health_duration, parse_port
from engine.graph import HistoryStep
from storage.digest import Digest

_PORTS = 3 * 65536
"""Those of all protocols."""


@dataclass(slots=True)
class StageState:
    """`vertex`: the file system so far; `args`: arguments declared, in order, None without a value; `platform`: the
    one its commands run on; `cmd_set`: this very stage had a CMD; `workdir_set`: it or one below it had an absolute
    WORKDIR; `unknown_base`: the image it stands on, where nobody looked what is in that; `told`: the variables of ENV
    and ARG, the one that was set last behind the others."""

    title: str
    names: StepNames
    vertex: Digest
    platform: str
    image: ImageConfig
    base_history: tuple[Mapping[str, Any], ...] = ()
    history: list[HistoryStep] = field(default_factory=list)
    args: dict[str, str | None] = field(default_factory=dict)
    cmd_set: bool = False
    workdir_set: bool = False
    unknown_base: str = ""
    told: dict[str, None] = field(default_factory=dict)

    def child(self, title: str, names: StepNames) -> StageState:
        """What a stage that is built FROM this one begins with: arguments are inherited too."""
        image = self.image.copy()
        image.config.pop("OnBuild", None)  # executed as the child's first instructions
        told = {name: None for name in self.told if name not in image.env} | dict.fromkeys(image.env)
        return replace(
            self, title=title, names=names, image=image, history=list(self.history), args=dict(self.args),
            told=told, cmd_set=False,
        )  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        """What words are expanded with and commands run with: ENV, and arguments that it does not hide. In the order
        in which BuildKit has them, as that is in its cache keys: those of the base image, then as they were last set,
        and at the beginning of a stage those of the image are set again."""
        values = {name: value for name, value in self.args.items() if value is not None} | self.image.env
        of_base = {name: value for name, value in values.items() if name not in self.told}
        return of_base | {name: values[name] for name in self.told if name in values}

    def tell(self, name: str) -> None:
        """`name` is set now."""
        self.told.pop(name, None)
        self.told[name] = None

    @property
    def visible_args(self) -> dict[str, str]:
        """Declared arguments as a command sees them, "" without a value."""
        env = self.env
        return {name: env.get(name, "") for name in self.args}


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading an instruction needs beside the stage. `scope`: the global arguments."""

    options: FrontendOptions
    escape: str
    scope: Mapping[str, str]

    def expander(self, state: StageState) -> Callable[[str], str]:
        """Expands words with the state as it is now, not as the instruction leaves it."""
        lexer = Lexer(self.escape)
        env = state.env
        return lambda word: lexer.expand(word, env)


def _arg(state: StageState, instruction: Instruction, reading: Reading) -> str:
    values = declare(instruction, state.env, reading.scope, reading.options, Lexer(reading.escape))
    state.args.update(values)
    for name, value in values.items():
        if value is not None:
            state.tell(name)
    return "ARG " + " ".join(name if value is None else f"{name}={value}" for name, value in values.items())


def _env(state: StageState, instruction: Instruction, reading: Reading) -> str:
    expand = reading.expander(state)
    values = [(_key(expand(name), "ENV"), expand(value)) for name, value in pairs(instruction)]
    for name, value in values:
        if "=" in name or "\0" in name + value:
            raise InputError(f"ENV name {name!r} has a character that cannot be in one")
        state.image.set_env(name, value)
        state.tell(name)
    return "ENV " + " ".join(f"{name}={value}" for name, value in values)


def _label(state: StageState, instruction: Instruction, reading: Reading) -> str:
    expand = reading.expander(state)
    values = [(_key(expand(name), "LABEL"), expand(value)) for name, value in pairs(instruction)]
    state.image.config["Labels"] = {**state.image.config.get("Labels", {}), **dict(values)}
    return "LABEL " + " ".join(f"{name}={value}" for name, value in values)


def _key(name: str, instruction: str) -> str:
    if not name:
        raise InputError(f"{instruction} names can not be blank")
    return name


def _only_argument(instruction: Instruction) -> str:
    if len(instruction.args) != 1 or not instruction.args[0]:
        raise InputError(f"{instruction.name} requires exactly one argument")
    return instruction.args[0]


def _maintainer(state: StageState, instruction: Instruction, _: Reading) -> str:
    state.image.top["author"] = _only_argument(instruction)
    return f"MAINTAINER {instruction.args[0]}"


def _user(state: StageState, instruction: Instruction, reading: Reading) -> str:
    user = reading.expander(state)(_only_argument(instruction))
    state.image.config["User"] = user
    return f"USER {user}"


def _stopsignal(state: StageState, instruction: Instruction, reading: Reading) -> str:
    signal = reading.expander(state)(_only_argument(instruction))
    check_signal(signal)
    state.image.config["StopSignal"] = signal
    return f"STOPSIGNAL {signal}"


def _expose(state: StageState, instruction: Instruction, reading: Reading) -> str:
    if not instruction.args:
        raise InputError("EXPOSE requires at least one argument")
    lexer, env = Lexer(reading.escape), state.env
    ports: list[str] = []
    for arg in sorted(instruction.args):
        for word in lexer.words(arg, env):
            ports += parse_port(word)
            if len(ports) > _PORTS:
                raise InputError("EXPOSE names more ports than there are", hint="write each port once")
    state.image.config["ExposedPorts"] = {**state.image.config.get("ExposedPorts", {}), **{p: {} for p in ports}}
    return f"EXPOSE {listed(ports)}"


def _volume(state: StageState, instruction: Instruction, reading: Reading) -> str:
    expand = reading.expander(state)
    volumes = [expand(word.strip()) for word in instruction.args]
    if not volumes:
        raise InputError("VOLUME requires at least one argument")
    if not all(volumes):
        raise InputError("VOLUME specified can not be an empty string")
    state.image.config["Volumes"] = {**state.image.config.get("Volumes", {}), **{path: {} for path in volumes}}
    return f"VOLUME {listed(volumes)}"


def _shell(state: StageState, instruction: Instruction, _: Reading) -> str:
    if not instruction.json:
        raise InputError("SHELL requires the arguments to be in JSON form", hint='write SHELL ["executable", "-c"]')
    if not instruction.args:
        raise InputError("SHELL requires at least one argument")
    state.image.config["Shell"] = list(instruction.args)
    return f"SHELL {listed(instruction.args)}"


def command_line(state: StageState, instruction: Instruction) -> list[str]:
    """The arguments of CMD, ENTRYPOINT or RUN: as they are in exec form, else for the shell. Raises InputError."""
    if instruction.json:
        return list(instruction.args)
    if not instruction.args or not instruction.args[0]:
        raise InputError(f"{instruction.name} requires at least one argument")
    return [*state.image.shell, " ".join(instruction.args)]


def _cmd(state: StageState, instruction: Instruction, _: Reading) -> str:
    argv = command_line(state, instruction)
    state.image.config["Cmd"] = argv
    state.cmd_set = True
    return f"CMD {quoted(argv)}"


def _entrypoint(state: StageState, instruction: Instruction, _: Reading) -> str:
    argv = command_line(state, instruction)
    state.image.config["Entrypoint"] = argv
    if not state.cmd_set:  # a CMD of the base belongs to the base's entrypoint
        state.image.config.pop("Cmd", None)
    return f"ENTRYPOINT {quoted(argv)}"


def _healthcheck(state: StageState, instruction: Instruction, _: Reading) -> str:
    kind, *args = [*instruction.args] or [""]
    durations: dict[str, int] = {}
    retries = 0
    if kind.upper() == "NONE":
        if args or instruction.flags:
            raise InputError("HEALTHCHECK NONE takes no arguments and no flags")
        test = ["NONE"]
    elif kind.upper() == "CMD":
        if not any(args):
            raise InputError("missing command after HEALTHCHECK CMD")
        test = ["CMD" if instruction.json else "CMD-SHELL", *args]
        retries = _retries(instruction.flags.get("retries", "0"))
    else:
        raise InputError(f"unknown type {kind!r} in HEALTHCHECK", hint="write HEALTHCHECK CMD … or HEALTHCHECK NONE")
    for flag in ("interval", "timeout", "start-period", "start-interval"):
        key = "".join(part.capitalize() for part in flag.split("-"))
        durations[key] = parse_health_duration(flag, instruction.flags.get(flag, "0"))
    numbers = {**durations, "Retries": retries}
    state.image.config["Healthcheck"] = {"Test": test, **{key: value for key, value in numbers.items() if value}}
    return health(test, durations, retries)


def _retries(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InputError(f"--retries={text}: not a number of tries", hint="write --retries=3")
    return int(text)


def _onbuild(state: StageState, instruction: Instruction, _: Reading) -> str:
    trigger = _only_argument(instruction)
    state.image.config["OnBuild"] = [*state.image.config.get("OnBuild", ()), trigger]
    return f"ONBUILD {trigger}"


METADATA: Mapping[str, Callable[[StageState, Instruction, Reading], str]] = {
    "ARG": _arg, "ENV": _env, "LABEL": _label, "MAINTAINER": _maintainer, "USER": _user, "STOPSIGNAL": _stopsignal,
    "EXPOSE": _expose, "VOLUME": _volume, "SHELL": _shell, "CMD": _cmd, "ENTRYPOINT": _entrypoint,
    "HEALTHCHECK": _healthcheck, "ONBUILD": _onbuild,
}  # fmt: skip
"""Each changes the stage and returns the history's text. They raise InputError without a line."""
