"""What is done in a simulated run, as plain data: images, Dockerfiles, and who does what with them at once.

A scenario follows from its seed, prints as Python, and can be shrunk: `smaller` gives all that lack one thing. Whatever
is left out of one, the rest keeps a meaning: what is named by number is counted round among what there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from tests.simulation.chance import Chance

T = TypeVar("T")
Kind = Literal["build", "prune", "demote", "lose", "copy", "begin", "look"]
Worth = Literal["", "whole", "partial", "corrupt", "down"]
Cache = Literal["", "min", "max", "inline", "local"]
File = Literal["", "layout", "archive"]
Instruction = Literal["run", "copy", "write", "mkdir"]
INSTRUCTIONS: tuple[Instruction, ...] = ("run", "run", "copy", "copy", "write", "mkdir")
DONE: tuple[Kind, ...] = (*("build",) * 8, "prune", "demote", "lose", "copy")
TAKING: tuple[Kind, ...] = ("prune", "demote")
CACHES: tuple[Cache, ...] = ("", "", "", "", "min", "max", "inline")
FILES: tuple[File, ...] = ("layout", "archive")
MIRRORS: tuple[Worth, ...] = ("", "", "", "whole", "partial", "corrupt", "down")
BASES, TARGETS = "bases.test", ("one.test", "two.test")
"""The registry that has the base images, and those that builds push to. The last one wants a login."""
MIRROR = "mirror.test"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction. `kind` run: writes `/r<number>`, whose bytes depend on all that it sees and on who ran it, and
    `fails` after `seconds`, and prints a `secret` that is mounted for it; copy: takes path number `pick` of what stage
    `source` has, or, below 0, of image -1 - `source`; write: a file that is in the Dockerfile; mkdir: WORKDIR."""

    kind: Instruction
    number: int
    source: int = 0
    pick: int = 0
    fails: bool = False
    seconds: float = 0.0
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """`base`: -1 for scratch, an image's number, or (`on_stage`) an earlier stage's."""

    base: int
    on_stage: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Act:
    """What one process does. `build`: program number `subject`, pushed to registry number `target` (-1: nowhere);
    `prune`, `demote`: what may go; `lose`: a registry forgets or damages blob number `pick` of what it has; `copy`: an
    image that was pushed goes to another registry; `begin`: no more than what every process does first. It begins after
    `delay` seconds and is interrupted after `cancel` more (0: never); `stranger`: with credentials that are refused
    where a login is wanted; `machine`: whose root is used; `file`: what a build leaves on the machine's disk, besides.
    A `copy` with a `file` is of that layout, or, without a target, to another one, and `lose` takes of the layout that
    an image is in. `look`: reads what is there."""

    kind: Kind
    subject: int = 0
    target: int = -1
    pick: int = 0
    delay: float = 0.0
    cancel: float = 0.0
    machine: int = 0
    stranger: bool = False
    no_cache: bool = False
    cache_from: bool = False
    cache_to: Cache = ""
    compression: Literal["gzip", "zstd", "estargz"] = "gzip"
    file: File = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`images`: the layers of each, by number, bottom first; `programs`: the stages of each Dockerfile, of which the
    last is built; `rounds`: one after the other, the acts of each at once. `mirror`: what the mirror of the base
    images' registry is worth; `lies`: the image whose uppermost layer is not what its config says, -1 for none; `near`:
    the one that builds take from an OCI layout beside the root."""

    seed: int
    images: tuple[tuple[int, ...], ...]
    programs: tuple[tuple[Stage, ...], ...]
    rounds: tuple[tuple[Act, ...], ...]
    mirror: Worth = ""
    lies: int = -1
    near: int = -1

    def told(self) -> str:
        """As Python, what is as always left out."""
        lines = [f"Scenario({self.seed}, images={self.images}, mirror={self.mirror!r}, lies={self.lies},"]
        lines.append(f"    near={self.near},")
        lines.append("    programs=(")
        for stages in self.programs:
            lines += ["        (", *(f"            {_told(stage)}," for stage in stages), "        ),"]
        lines += ["    ),", "    rounds=("]
        for acts in self.rounds:
            lines += ["        (", *(f"            {_told(act)}," for act in acts), "        ),"]
        return "\n".join([*lines, "    ),", ")"])


def _told(thing: Any) -> str:
    if isinstance(thing, tuple):
        return "(" + "".join(f"{_told(item)}, " for item in thing).strip() + ")"
    if not isinstance(thing, Step | Stage | Act):
        return repr(thing)
    shown = [f"{f.name}={_told(value)}" for f in fields(thing) if (value := getattr(thing, f.name)) != f.default]
    return f"{type(thing).__name__}({', '.join(shown)})"


# ---------------------------------------------------------------- from a seed


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


# ---------------------------------------------------------------- smaller ones


def smaller(whole: Scenario) -> Iterator[Scenario]:
    """Every scenario that lacks one thing of `whole`, the largest things first."""
    for rounds in _without_one(whole.rounds):
        yield replace(whole, rounds=rounds)
    for rounds in _each(whole.rounds, _without_one):
        yield replace(whole, rounds=tuple(acts for acts in rounds if acts))
    for programs in _without_one(whole.programs) if len(whole.programs) > 1 else ():
        yield replace(whole, programs=programs)
    for programs in _each(whole.programs, _fewer_stages):
        yield replace(whole, programs=programs)
    for programs in _each(whole.programs, lambda stages: _each(stages, _fewer_steps)):
        yield replace(whole, programs=programs)
    for images in _without_one(whole.images) if len(whole.images) > 1 else ():
        yield replace(whole, images=images)
    for images in _each(whole.images, lambda layers: _without_one(layers) if len(layers) > 1 else iter(())):
        yield replace(whole, images=images)
    if whole.mirror:
        yield replace(whole, mirror="")
    if whole.lies >= 0:
        yield replace(whole, lies=-1)
    if whole.near >= 0:
        yield replace(whole, near=-1)
    for rounds in _each(whole.rounds, lambda acts: _each(acts, _plainer)):
        yield replace(whole, rounds=rounds)
    for programs in _each(whole.programs, lambda stages: _each(stages, _plainer_steps)):
        yield replace(whole, programs=programs)


def _without_one(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for index in range(len(items)):
        yield items[:index] + items[index + 1 :]


def _each(items: tuple[T, ...], change: Any) -> Iterator[tuple[T, ...]]:
    """`items` with one of them changed."""
    for index, item in enumerate(items):
        for other in change(item):
            yield (*items[:index], other, *items[index + 1 :])


def _fewer_stages(stages: tuple[Stage, ...]) -> Iterator[tuple[Stage, ...]]:
    """What is built is the last: another one may do."""
    if len(stages) > 1:
        yield from _without_one(stages)


def _fewer_steps(stage: Stage) -> Iterator[Stage]:
    for steps in _without_one(stage.steps):
        yield replace(stage, steps=steps)


def _plainer(thing: Any) -> Iterator[Any]:
    """`thing` with one of its fields as it is by default."""
    for field in fields(thing):
        plain = field.default
        if plain is not MISSING and field.name != "target" and getattr(thing, field.name) != plain:
            yield replace(thing, **{field.name: plain})


def _plainer_steps(stage: Stage) -> Iterator[Stage]:
    for steps in _each(stage.steps, _plainer):
        yield replace(stage, steps=steps)
