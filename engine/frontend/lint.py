"""The checks that need no more than the text: casing, deprecated forms, names. See checks.py for what they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from engine.frontend.checks import Finding, finding
from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.instructions import Instruction, did_you_mean
from engine.frontend.source import Source, ends_with_escape
from engine.frontend.stages import Stage
from storage.errors import InputError
from storage.reference import parse_reference

_RESERVED = frozenset({"context", "scratch"})
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_PUBLIC = re.compile(r"(?:_|^)public(?:_|$)", re.IGNORECASE)
_FIRST_WORD = re.compile(r"""\S+\s+((?:"[^"]*"|'[^']*'|\\.|[^\s"'])*)""")
_TARGET_PLATFORM = frozenset({"$TARGETPLATFORM", "${TARGETPLATFORM}"})


def lint(
    source: Source, instructions: Sequence[Instruction], stages: Sequence[Stage], escape: str
) -> Iterator[Finding]:
    """What is found in the text of the whole file, needed for the target or not."""
    yield from _casing(instructions)
    yield from _stage_names(stages)
    for instruction in instructions:
        yield from _continuation(source, instruction, escape)
        yield from _description(source, instruction)
        for one in (instruction, instruction.trigger):
            if one is not None:
                yield from _instruction(one)
    for stage in stages:
        yield from _used_once(stage)
        yield from _platform(stage)


def _casing(instructions: Sequence[Instruction]) -> Iterator[Finding]:
    names = [(instruction.text.split(None, 1)[0], instruction.lines) for instruction in instructions]
    count = Counter("lower" if name.islower() else "upper" for name, _ in names if name.islower() or name.isupper())
    majority = "lowercase" if count["lower"] > count["upper"] else "uppercase"
    for name, lines in names:
        if name != (name.lower() if majority == "lowercase" else name.upper()):
            message = f"Command '{name}' should match the case of the command majority ({majority})"
            yield finding("ConsistentInstructionCasing", message, lines, name)


def _stage_names(stages: Sequence[Stage]) -> Iterator[Finding]:
    seen: set[str] = set()
    for stage in stages:
        origin = stage.origin
        if len(origin.args) != 3:
            continue
        keyword, (_, as_word, name) = origin.text.split(None, 1)[0], origin.args
        if name != name.lower():
            message = f"Stage name '{name}' should be lowercase"
            yield finding("StageNameCasing", message, origin.lines, name)
        if (keyword.islower() and not as_word.islower()) or (keyword.isupper() and not as_word.isupper()):
            message = f"'{as_word}' and '{keyword}' keywords' casing do not match"
            yield finding("FromAsCasing", message, origin.lines, as_word)
        if stage.name in _RESERVED:
            message = f'Stage name should not use the same name as reserved stage "{stage.name}"'
            yield finding("ReservedStageName", message, origin.lines, name)
        if stage.name in seen:
            message = f'Duplicate stage name "{name}", stage names should be unique'
            yield finding("DuplicateStageName", message, origin.lines, name)
        seen.add(stage.name)


def _continuation(source: Source, instruction: Instruction, escape: str) -> Iterator[Finding]:
    lines = source.lines()
    index = instruction.lines[0] - 1
    while index < len(lines):
        line = lines[index].strip()
        if index >= instruction.lines[0] and not line:
            yield finding("NoEmptyContinuation", "Empty continuation line", (index + 1, index + 1))
            return
        comment = index >= instruction.lines[0] and line.startswith("#")
        if not comment and not ends_with_escape(lines[index], escape):
            return
        index += 1


def _description(source: Source, instruction: Instruction) -> Iterator[Finding]:
    """The comment right above a named stage or an ARG is its description, in docker's outline of a Dockerfile."""
    names = []
    if instruction.name == "FROM" and len(instruction.args) == 3:
        names = [instruction.args[2]]
    elif instruction.name == "ARG":
        names = [word.partition("=")[0] for word in instruction.args]
    line = instruction.lines[0] - 1
    above = source.lines()[line - 1].strip() if line > 0 else ""
    if not names or not above.startswith("#") or re.match(r"#\s*(?:syntax|escape|check)\s*=", above, re.IGNORECASE):
        return
    if above[1:].split(None, 1)[:1] not in [[name] for name in names]:
        what = "build stage" if instruction.name == "FROM" else "argument"
        message = f"Comment for {what} should follow the format: `# {names[0]} <description>`"
        yield finding("InvalidDefinitionDescription", message, (line, line))


def _instruction(instruction: Instruction) -> Iterator[Finding]:
    name, lines = instruction.name, instruction.lines
    if name == "MAINTAINER":
        yield finding("MaintainerDeprecated", "Maintainer instruction is deprecated in favor of using label", lines)
    elif name in {"ENV", "LABEL"}:
        word = _FIRST_WORD.match(instruction.text)
        if word and "=" not in word[1]:
            message = f'"{name} key=value" should be used instead of legacy "{name} key value" format'
            yield finding("LegacyKeyValueFormat", message, lines, instruction.args[0] if instruction.args else "")
    if name in {"ENV", "ARG"}:
        keys = instruction.args[::2] if name == "ENV" else [word.partition("=")[0] for word in instruction.args]
        for key in keys:
            if _SECRET.search(key) and not _PUBLIC.search(key):
                message = f'Do not use ARG or ENV instructions for sensitive data ({name} "{key}")'
                yield finding("SecretsUsedInArgOrEnv", message, lines, key)
    if name == "EXPOSE":
        yield from _expose(instruction)


def _expose(instruction: Instruction) -> Iterator[Finding]:
    for word in instruction.args:
        port, _, protocol = word.partition("/")
        if protocol and protocol != protocol.lower() and "$" not in protocol:
            message = f"Defined protocol '{word}' in EXPOSE instruction should be lowercase"
            yield finding("ExposeProtoCasing", message, instruction.lines, word)
        if ":" in re.sub(r"\$\{[^}]*\}", "", port):
            message = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
            yield finding("ExposeInvalidFormat", message, instruction.lines, word)


def _used_once(stage: Stage) -> Iterator[Finding]:
    last: dict[str, Instruction] = {}
    for command in stage.commands:
        if command.name in {"CMD", "ENTRYPOINT", "HEALTHCHECK"}:
            if command.name in last:  # the earlier one is the one without effect
                message = (
                    f"Multiple {command.name} instructions should not be used in the same stage because only the last "
                    "one will be used"
                )
                yield finding("MultipleInstructionsDisallowed", message, last[command.name].lines)
            last[command.name] = command


def _platform(stage: Stage) -> Iterator[Finding]:
    written = stage.origin.flags.get("platform", "")
    if written in _TARGET_PLATFORM:
        message = f"Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
        yield finding("RedundantTargetPlatform", message, stage.origin.lines, written)
    elif written and "$" not in written and not any(part and part in stage.name for part in written.split("/")[:2]):
        message = f'FROM --platform flag should not use constant value "{written}"'
        yield finding("FromPlatformFlagConstDisallowed", message, stage.origin.lines, written)


def lint_from(
    stages: Sequence[Stage], scope: Mapping[str, str], defaults: Mapping[str, str], declared: Sequence[str], escape: str
) -> Iterator[Finding]:
    """What is found in the variables of FROM. `scope`: the global arguments; `defaults`: the same without --build-arg;
    `declared`: the names that an ARG before the first FROM declares."""
    lexer = Lexer(escape)
    known = {*scope, *declared}
    for stage in stages:
        origin = stage.origin
        written = origin.args[0]
        undefined = [*lexer.undefined(written, scope), *lexer.undefined(origin.flags.get("platform", ""), scope)]
        for name in dict.fromkeys(undefined):
            if name not in known:
                near = did_you_mean(name, known)
                message = f"FROM argument '{name}' is not declared"
                message += f" ({near})" if near.startswith("did") else ""
                yield finding("UndefinedArgInFrom", message, origin.lines, name)
        if "$" in written and not _names_something(written, defaults, stages[: stage.index], lexer):
            message = f"Default value for ARG {written} results in empty or invalid base image name"
            yield finding("InvalidDefaultArgInFrom", message, origin.lines, written)


def _names_something(written: str, defaults: Mapping[str, str], before: Sequence[Stage], lexer: Lexer) -> bool:
    try:
        base = lexer.expand(written, defaults)
        if base != "scratch" and base.lower() not in {stage.name for stage in before}:
            parse_reference(base)
    except (ExpansionError, InputError):
        return False
    return bool(base)
