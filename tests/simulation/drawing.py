"""Scenarios, drawn from seeds."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.chance import Chance
from tests.simulation.scenarios import Act, Cache, File, Instruction, Kind, Scenario, Stage, Step, Worth

INSTRUCTIONS: tuple[Instruction, ...] = ("run", "run", "copy", "copy", "write", "mkdir")
DONE: tuple[Kind, ...] = (*("build",) * 8, "prune", "demote", "lose", "copy")
TAKING: tuple[Kind, ...] = ("prune", "demote")
CACHES: tuple[Cache, ...] = ("", "", "", "", "min", "max", "inline")
FILES: tuple[File, ...] = ("layout", "archive")
MIRRORS: tuple[Worth, ...] = ("", "", "", "whole", "partial", "corrupt", "down")


def scenario(seed: int) -> Scenario:
    """The scenario of `seed`."""
    draw = Chance(seed)
    images = tuple(_image(draw) for _ in range(1 + draw.below(3)))
    programs = tuple(_program(draw, len(images)) for _ in range(1 + draw.below(2)))
    if draw.maybe(25):
        rounds = _loss(draw, len(programs))
    else:
        rounds = tuple(_round(draw, len(programs)) for _ in range(1 + draw.below(3)))
    first = Act("build", draw.below(len(programs)), draw.below(2))
    mirror = draw.pick(MIRRORS)
    lies = draw.below(len(images)) if draw.maybe(6) else -1
    whole = Scenario(seed, images, programs, ((first, *rounds[0]), *rounds[1:]), mirror, lies)
    return _beside(_seasoned(whole, Chance(seed ^ 0x5A17)), Chance(seed ^ 0xBE51DE))


def _seasoned(whole: Scenario, draw: Chance) -> Scenario:
    """`whole`, with readers, secrets, and outputs beside the image: of draws of their own, so that what is drawn before
    stays as it was."""
    if draw.maybe(40):
        programs = tuple(tuple(_with_secrets(stage, draw) for stage in stages) for stages in whole.programs)
        whole = replace(whole, programs=programs)
    rounds = [[_varied(act, draw) for act in acts] for acts in whole.rounds]
    for acts in rounds:
        if draw.maybe(20):
            acts.append(Act("look", delay=draw.pick((0.0, 0.01, 0.2)), machine=acts[0].machine))
    if draw.maybe(12):
        build = whole.rounds[0][0]
        rounds.insert(1, _taken_away(build, whole.programs[build.subject % len(whole.programs)], draw))
    return replace(whole, rounds=tuple(map(tuple, rounds)))


def _beside(whole: Scenario, draw: Chance) -> Scenario:
    """`whole`, with layouts beside the registries, and a machine that knows of the other one by an inline cache."""
    near = draw.below(len(whole.images)) if draw.maybe(15) else -1
    rounds = [[_with_layouts(act, draw) for act in acts] for acts in whole.rounds]
    first = rounds[0][0]
    if draw.maybe(10):
        first = rounds[0][0] = replace(first, file="layout")
        copies = [Act("copy", first.subject, draw.below(3) - 1, file="layout") for _ in range(1 + draw.below(2))]
        rounds.insert(1, [*copies, *([replace(first, cache_to="local")] if draw.maybe(50) else [])])
    if draw.maybe(10):
        first = rounds[0][0] = replace(first, target=0, cache_to="inline")
        rounds.insert(1, [replace(first, target=draw.below(3) - 1, machine=1, cache_to="", cache_from=True)])
    if near >= 0 and draw.maybe(20):
        lost = Act("lose", pick=draw.below(8), file="layout")
        rounds.insert(1 + draw.below(len(rounds)), [lost])
    if draw.below(10) == 4:  # reason for no `maybe`: seeds that are written down keep their scenarios
        rot = [Act("rot", pick=draw.below(1000), machine=first.machine) for _ in range(1 + draw.below(2))]
        needing = replace(first, target=draw.below(3) - 1, file="layout", no_cache=draw.maybe(50), cancel=0.0)
        at = 1 + draw.below(len(rounds))
        rounds[at:at] = [rot, [needing]]
    return replace(whole, rounds=tuple(map(tuple, rounds)), near=near)


def _with_layouts(act: Act, draw: Chance) -> Act:
    if act.kind == "build" and draw.maybe(6):
        return replace(act, cache_to="local", cache_from=draw.maybe(50))
    return replace(act, file="layout") if act.kind == "copy" and draw.maybe(30) else act


def _taken_away(build: Act, program: tuple[Stage, ...], draw: Chance) -> list[Act]:
    """What `build` made is made again, while somebody takes away what there is of it: as it begins, or is exported."""
    steps = sum(step.seconds for stage in program for step in stage.steps)
    delay = draw.pick((0.0, 0.2, 0.5, 1.0)) + draw.pick((0.0, steps, steps))
    return [replace(build, no_cache=True), Act(draw.pick(TAKING), delay=delay, machine=build.machine)]


def _with_secrets(stage: Stage, draw: Chance) -> Stage:
    return replace(stage, steps=tuple(replace(one, secret=one.kind == "run" and draw.maybe(40)) for one in stage.steps))


def _varied(act: Act, draw: Chance) -> Act:
    if act.kind in {"prune", "demote"}:  # while somebody is stalled, or busy with large layers
        return replace(act, delay=draw.pick((act.delay, act.delay, 0.5, 1.0, 2.0)))
    if act.kind != "build":
        return act
    file = draw.pick(FILES) if draw.maybe(10) else act.file
    return replace(act, file=file, compression="estargz" if draw.maybe(6) else act.compression)


def _loss(draw: Chance, programs: int) -> tuple[tuple[Act, ...], ...]:
    """What was pushed is let go of here, then lost there, and then wanted."""
    subject, target = draw.below(programs), draw.below(2)
    build = Act("build", subject, target)
    lost = tuple(Act("lose", subject, target, 1 + draw.below(7)) for _ in range(1 + draw.below(3)))
    last = replace(build, target=draw.below(2), cache_from=draw.maybe(30), no_cache=draw.maybe(10))
    return (build,), (Act(draw.pick(TAKING), subject),), lost, (last, *_round(draw, programs))


def _image(draw: Chance) -> tuple[int, ...]:
    """Layers from a small stock, so that images share them."""
    layers: dict[int, None] = {}
    for _ in range(1 + draw.below(3)):
        layers[draw.below(5)] = None
    return tuple(layers)


def _program(draw: Chance, images: int) -> tuple[Stage, ...]:
    count = 1 + draw.below(3)
    stages = []
    for number in range(count):
        on_stage = number > 0 and draw.maybe(40)
        base = draw.below(number) if on_stage else draw.below(images + 1) - 1
        steps = tuple(_step(draw, number, images) for _ in range(1 + draw.below(3)))
        stages.append(Stage(base, on_stage, steps))
    return tuple(stages)


def _step(draw: Chance, stage: int, images: int) -> Step:
    kind = draw.pick(INSTRUCTIONS)
    number = draw.below(4)
    if kind == "run":
        return Step("run", number, fails=draw.maybe(4), seconds=draw.pick((0.0, 0.0, 0.5, 3.0)))
    if kind == "copy":
        source = -1 - draw.below(images) if stage == 0 or draw.maybe(30) else draw.below(stage)
        return Step("copy", number, source=source, pick=draw.below(6))
    return Step(kind, number)


def _round(draw: Chance, programs: int) -> tuple[Act, ...]:
    return tuple(_act(draw, programs) for _ in range(1 + draw.below(3)))


def _act(draw: Chance, programs: int) -> Act:
    kind = draw.pick(DONE)
    delay = draw.pick((0.0, 0.0, 0.01, 0.2))
    if kind != "build":
        machine = int(draw.maybe(10))
        return Act(kind, draw.below(programs), draw.below(2), draw.below(8), delay, machine=machine)
    return Act(
        "build",
        draw.below(programs),
        target=draw.pick((-1, 0, 0, 1)),
        delay=delay,
        cancel=draw.pick((0.0, 0.0, 0.0, 0.0, 0.02, 0.3)),
        machine=int(draw.maybe(15)),
        stranger=draw.maybe(6),
        no_cache=draw.maybe(8),
        cache_from=draw.maybe(25),
        cache_to=draw.pick(CACHES),
        compression="zstd" if draw.maybe(8) else "gzip",
    )
