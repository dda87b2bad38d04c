"""Stages: where they begin, what they build on and copy from, and which of them a target needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import DockerfileError, InputError
from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.instructions import Instruction, did_you_mean, parse_trigger
from engine.frontend.mounts import origins
from engine.frontend.names import TREE
from engine.frontend.source import Source
from storage.platform import parse_platform
from storage.reference import LAYOUT, parse_reference

_STAGE_NAME = re.compile("[a-z][a-z0-9_.-]*")
_NUMBER = re.compile("[0-9]{1,9}")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
LAYERS_OF = frozenset({"RUN", "COPY", "ADD", "WORKDIR"})


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it. `name` is lower case, "" without AS; `base` the image name, variables replaced;
    `base_stage` the stage that name means, if one; `platform` what --platform said or the build's."""

    index: int
    name: str
    base: str
    base_stage: int | None
    platform: str
    origin: Instruction
    commands: list[Instruction] = field(default_factory=list)
    triggered: bool = False
    """The ONBUILD triggers of its base are among its commands."""

    @property
    def title(self) -> str:
        """Its name, `stage-<index>` when it has none."""
        return self.name or f"stage-{self.index}"

    @property
    def steps(self) -> int:
        """How many numbered steps it has: those that may make a layer, and its base image."""
        own = sum(command.name in LAYERS_OF for command in self.commands)
        return own + (self.base_stage is None and self.base != "scratch")


@dataclass(frozen=True, slots=True)
class ImageUse:
    """An image that some stage needs, and the lines that say so."""

    reference: str
    platform: str
    lines: tuple[int, int]


def split_stages(instructions: Sequence[Instruction]) -> tuple[list[Instruction], list[list[Instruction]]]:
    """The instructions before the first FROM, and those of each stage, FROM first."""
    before: list[Instruction] = []
    stages: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.name == "FROM":
            stages.append([])
        (stages[-1] if stages else before).append(instruction)
    return before, stages


def read_stages(
    source: Source, groups: Sequence[Sequence[Instruction]], env: Mapping[str, str], escape: str, platform: str
) -> list[Stage]:
    """The stages; `env` are the global arguments, `platform` the build's. Raises DockerfileError."""
    stages: list[Stage] = []
    for index, (origin, *commands) in enumerate(groups):
        name = _stage_name(source, origin)
        base = _expand_base(source, origin, env, escape)
        written = origin.flags.get("platform", "")
        found = find_stage(stages, base)
        stage_platform = _platform(source, origin, written, env, escape) if written else platform
        stages.append(
            Stage(index, name, base, None if found is None else found.index, stage_platform, origin, commands)
        )
    return stages


def _stage_name(source: Source, origin: Instruction) -> str:
    args = origin.args
    if len(args) == 3 and args[1].lower() == "as":
        name = args[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            hint = "a name begins with a letter and has letters, digits, '_', '-' and '.'"
            raise source.error(f"invalid name for build stage: {args[2]!r}", origin.lines, hint)
        return name
    if len(args) != 1:
        raise source.error("FROM requires either one or three arguments", origin.lines, "write FROM image [AS name]")
    return ""


def _expand_base(source: Source, origin: Instruction, env: Mapping[str, str], escape: str) -> str:
    written = origin.args[0]
    try:
        base = Lexer(escape).expand(written, env)
    except ExpansionError as error:
        raise source.error(error.what, origin.lines) from error
    if not base:
        raise source.error(f"base name ({written}) should not be blank", origin.lines, undefined_hint(written, env))
    return base


def _platform(source: Source, origin: Instruction, written: str, env: Mapping[str, str], escape: str) -> str:
    try:
        value = Lexer(escape).expand(written, env)
        return str(parse_platform(value))
    except InputError as error:
        hint = undefined_hint(written, env) or error.hint
        raise source.error(f"--platform={written}: {error.what}", origin.lines, hint) from error


def undefined_hint(written: str, env: Mapping[str, str]) -> str:
    """What to do about the first variable of `written` that has no value in FROM; "" when there is none."""
    for name in _VARIABLE.findall(written):
        if not env.get(name):
            return f"{name} has no value here: give ARG {name} a default before the first FROM, or --build-arg {name}=…"
    return ""


def insert_triggers(
    source: Source, stage: Stage, texts: Sequence[str], what: str, rewrite: Callable[[Instruction], Instruction]
) -> None:
    """Put a base's ONBUILD triggers before the commands of `stage`, once. Raises DockerfileError."""
    if stage.triggered:
        return
    stage.triggered = True
    triggers = []
    for text in texts:
        try:
            triggers.append(rewrite(parse_trigger(source, text, stage.origin.lines)))
        except DockerfileError as error:
            problem = f"the ONBUILD trigger {text.split(chr(10))[0][:80]!r} of {what}: {error.what}"
            raise source.error(problem, stage.origin.lines, error.hint) from error
    stage.commands[:0] = triggers


def find_stage(stages: Sequence[Stage], name: str) -> Stage | None:
    """The last of `stages` with this name, whatever its case."""
    return next((stage for stage in reversed(stages) if stage.name and stage.name == name.lower()), None)


def find_target(source: Source, stages: Sequence[Stage], target: str) -> Stage:
    """The stage that --target names by name or number; the last one for "". Raises DockerfileError."""
    if not target:
        return stages[-1]
    found = find_stage(stages, target)
    if found is None and _NUMBER.fullmatch(target) and int(target) < len(stages):
        found = stages[int(target)]
    if found is None:
        names = [stage.name for stage in stages if stage.name]
        known = f"stages: {', '.join(names)}" if names else f"stages have no names: use 0 to {len(stages) - 1}"
        near = did_you_mean(target, names) if names else ""
        hint = f"{near} {known}" if near.startswith("did") else known
        raise source.error(f"target stage {target!r} could not be found", stages[-1].origin.lines, hint)
    return found


def taken_from(instruction: Instruction) -> Iterator[str]:
    """What an instruction takes files from beside its base, as --from and --mount=from= name it; "" for the context."""
    if instruction.name in {"COPY", "ADD"}:
        yield instruction.flags.get("from", "")
    elif instruction.name == "RUN":
        yield from origins(instruction)


def find_origin(
    source: Source, stages: Sequence[Stage], current: Stage, written: str, command: Instruction
) -> Stage | str | None:
    """What --from or a mount's from= means by `written`: an earlier stage, an image's name, or None for the context.

    Raises DockerfileError.
    """
    if not written:
        return None
    if "$" in written:
        hint = "name a stage with FROM and a global ARG, and copy from that"
        raise source.error(f"--from={written}: variables are not expanded here", command.lines, hint, word=written)
    if _NUMBER.fullmatch(written):
        if int(written) >= len(stages):
            what = f"--from={written}: there is no stage {written}"
            raise source.error(what, command.lines, _count(stages), word=f"from={written}")
        found: Stage | None = stages[int(written)]
    else:
        found = find_stage(stages[: current.index], written) or find_stage(stages, written)
    if found is None:
        return written
    if found.index >= current.index:
        title = found.name or str(found.index)
        verb = "copy" if command.name == "COPY" else "mount"
        later = "it must come before the stage that copies" if verb == "copy" else "it must come before this stage"
        problem = f"a stage cannot {verb} from itself" if found is current else later
        raise source.error(f"cannot {verb} from stage {title!r}: {problem}", command.lines, word=f"from={written}")
    return found


def _count(stages: Sequence[Stage]) -> str:
    return f"stages are numbered 0 to {len(stages) - 1}"


def needed_stages(source: Source, stages: Sequence[Stage], targets: Sequence[Stage]) -> list[Stage]:
    """`targets` and all they need, in order of appearance. Raises DockerfileError."""
    needed: set[int] = set()
    waiting = [*targets]
    while waiting:
        stage = waiting.pop()
        if stage.index in needed:
            continue
        needed.add(stage.index)
        if stage.base_stage is not None:
            waiting.append(stages[stage.base_stage])
        for command in stage.commands:
            found = (find_origin(source, stages, stage, written, command) for written in taken_from(command))
            waiting.extend(origin for origin in found if isinstance(origin, Stage))
    return [stage for stage in stages if stage.index in needed]


def needed_images(
    source: Source, stages: Sequence[Stage], needed: Sequence[Stage], env: Mapping[str, str], platform: str,
    layouts: Collection[str],
) -> Iterator[ImageUse]:  # fmt: skip
    """The images that `needed` stages stand on or copy from. Raises DockerfileError for a name that is none, and for a
    layout that is not one of `layouts`, which the user named: a Dockerfile reads nothing else on this machine."""

    def image(reference: str, platform: str, instruction: Instruction, hint: str) -> ImageUse:
        if reference.startswith(LAYOUT) and reference not in layouts:
            error = InputError("a Dockerfile names no OCI layout", hint=f"--build-context NAME={LAYOUT}PATH does")
            raise _located(source, error, instruction, "")
        return _image(source, reference, platform, instruction, hint)

    for stage in needed:
        if stage.base_stage is None and stage.base != "scratch" and not stage.base.startswith(TREE):
            yield image(stage.base, stage.platform, stage.origin, undefined_hint(stage.origin.args[0], env))
        for command in stage.commands:
            for written in taken_from(command):
                origin = find_origin(source, stages, stage, written, command)
                if isinstance(origin, str) and origin != "scratch" and not origin.startswith(TREE):
                    yield image(origin, platform, command, did_you_mean_stage(origin, stages, stage))


def did_you_mean_stage(name: str, stages: Sequence[Stage], current: Stage) -> str:
    """A hint with the nearest earlier stage, "" when none is near."""
    hint = did_you_mean(name, [stage.name for stage in stages[: current.index] if stage.name])
    return hint if hint.startswith("did") else ""


def _image(source: Source, reference: str, platform: str, instruction: Instruction, hint: str) -> ImageUse:
    try:
        if not reference.startswith(LAYOUT):
            parse_reference(reference)
    except InputError as error:
        raise _located(source, error, instruction, hint) from error
    return ImageUse(reference, platform, instruction.lines)


def _located(source: Source, error: InputError, instruction: Instruction, hint: str) -> DockerfileError:
    return source.error(error.what, instruction.lines, hint or error.hint)
