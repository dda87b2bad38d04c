"""The checks that need to know what an instruction sees: variables, the working directory, the shell, .dockerignore."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from engine.frontend.checks import Finding, finding
from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.glob import has_wildcard
from engine.frontend.instructions import Instruction, did_you_mean, parse_heredoc
from engine.frontend.stage import StageState
from storage.errors import InputError

_NOT_PATHS = re.compile(r"(?:https?|git|ssh)://|[\w.-]+@[\w.-]+:.+", re.IGNORECASE)
_EXPANDED_FLAGS = ("chown", "chmod", "checksum", "exclude")


@dataclass(slots=True)
class Watcher:
    """Looks at each instruction right before it is read. `ignore`: the patterns of .dockerignore; `names`: what a
    misspelt variable may have meant beside what is set."""

    escape: str
    ignore: tuple[str, ...]
    names: Collection[str]
    findings: list[Finding] = field(default_factory=list)
    unsure: list[tuple[str, Finding]] = field(default_factory=list)
    """Findings that hold unless the image, which nobody looked at, sets the variable."""

    def see(self, state: StageState, instruction: Instruction) -> None:
        """Note what is wrong with `instruction` in `state`."""
        self.findings += self._shell_form(state, instruction)
        self.findings += self._workdir(state, instruction)
        self.findings += self._ignored(state, instruction)
        undefined = list(self._undefined(state, instruction))
        if state.unknown_base:
            self.unsure += [(state.unknown_base, found) for found in undefined]
            for found in undefined:  # suppose that it is set, so that what follows can be read
                state.image.set_env(found.word.removeprefix("$"), "1")
        else:
            self.findings += undefined

    def _shell_form(self, state: StageState, instruction: Instruction) -> Iterator[Finding]:
        if instruction.name in {"CMD", "ENTRYPOINT"} and not instruction.json and not state.image.config.get("Shell"):
            message = (
                f"JSON arguments recommended for {instruction.name} to prevent unintended behavior related to OS "
                "signals"
            )
            yield finding("JSONArgsRecommended", message, instruction.lines)

    def _workdir(self, state: StageState, instruction: Instruction) -> Iterator[Finding]:
        if instruction.name != "WORKDIR" or len(instruction.args) != 1 or state.workdir_set:
            return
        try:
            path = Lexer(self.escape).expand(instruction.args[0], state.env)
        except ExpansionError:
            return  # reading it will tell
        if path and not path.startswith("/"):
            message = f'Relative workdir "{path}" can have unexpected results if the base image changes'
            yield finding("WorkdirRelativePath", message, instruction.lines, instruction.args[0])

    def _ignored(self, state: StageState, instruction: Instruction) -> Iterator[Finding]:
        if instruction.name not in {"COPY", "ADD"} or "from" in instruction.flags or not self.ignore:
            return
        matcher, lexer = IgnoreMatcher(self.ignore), Lexer(self.escape)
        for word in instruction.args[:-1]:
            try:
                written = lexer.expand(word, state.env)
            except ExpansionError:
                continue
            path = posixpath.normpath("/" + written).lstrip("/")
            if not path or has_wildcard(path) or _NOT_PATHS.match(written) or parse_heredoc(word, instruction.heredocs):
                continue
            if matcher.excluded(path) and not matcher.may_contain_included(path):
                message = f'Attempting to {instruction.name} file "{written}" that is excluded by .dockerignore'
                yield finding("CopyIgnoredFile", message, instruction.lines, word)

    def _undefined(self, state: StageState, instruction: Instruction) -> Iterator[Finding]:
        env = dict(state.env)
        seen: set[str] = set()
        for lexer, word in _expanded(instruction, self.escape):
            for name in lexer.undefined(word, env):
                if name in seen or name in state.args:
                    continue
                seen.add(name)
                near = _near(name, env, self.names)
                message = f"Usage of undefined variable '${name}'" + (f" (did you mean ${near}?)" if near else "")
                yield finding("UndefinedVar", message, instruction.lines, f"${name}")
            if instruction.name == "ARG":
                env.setdefault(word.partition("=")[0], "")  # what follows on the line sees it


def _near(name: str, env: Mapping[str, str], more: Collection[str]) -> str:
    hint = did_you_mean(name, [*env, *more])
    return hint.removeprefix("did you mean ").removesuffix("?") if hint.startswith("did") else ""


def _expanded(instruction: Instruction, escape: str) -> Iterator[tuple[Lexer, str]]:
    """The words of `instruction` whose variables are replaced, and how."""
    from engine.frontend.mounts import variable_values

    lexer = Lexer(escape)
    name = instruction.name
    if name in {"COPY", "ADD"}:
        for word in instruction.args:
            heredoc = parse_heredoc(word, instruction.heredocs)
            if heredoc is None:
                yield lexer, word
            elif heredoc.expand:
                yield Lexer(skip_quotes=True), heredoc.data
        yield from ((lexer, value) for flag, value in instruction.all_flags if flag in _EXPANDED_FLAGS)
    elif name in {"ENV", "LABEL", "USER", "WORKDIR", "STOPSIGNAL", "VOLUME", "EXPOSE"} or name == "ARG":
        yield from ((lexer, word) for word in instruction.args)
    elif name == "RUN":
        try:
            values = list(variable_values(instruction))
        except InputError:
            return  # reading it will tell
        yield from ((lexer, value) for value in values)
