"""What a program is, and what it must come to: a few dozen lines that know nothing of how the engine works.

A file has a *symbol*: what it is but for who made it. The symbol of what a RUN writes follows from its number and from
the symbols of all that it sees, so an image is right when every file has the symbol that the program gives it, and it
is of one piece when every such file was written over exactly the files that are below it in the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.simulation.scenarios import BASES, Stage, Step

Tree = dict[str, bytes]
"""Paths without a leading slash, and what is there; `b""` for a directory, whose path ends with a slash."""
Symbols = dict[str, str]
TOC = frozenset({".no.prefetch.landmark", "stargz.index.json"})
"""What an eStargz layer has beside its files (stargz-snapshotter docs/estargz.md), which nobody looks at."""


def short(*parts: object) -> str:
    """A digest of `parts`."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def base_layer(number: int) -> Tree:
    """The files of layer `number` of base images: of its own, and one that other layers have too. Layers differ in how
    large they are."""
    own = b"layer %d\n" % number + b"".join(hashlib.sha256(b"%d" % part).digest() for part in range(1 + 14 * number))
    return {f"f{number}": own, "shared": b"of layer %d\n" % number}


def image_name(number: int) -> str:
    """Of a base image."""
    return f"{BASES}/base{number}:latest"


def fingerprint(tree: Mapping[str, bytes]) -> str:
    """Of all files of a tree, as they are."""
    files = sorted((path, data) for path, data in tree.items() if not path.endswith("/"))
    return short(*(f"{path} {hashlib.sha256(data).hexdigest()}" for path, data in files))


def symbol(data: bytes) -> str:
    """Of a file that is there: a RUN wrote its own into the first line."""
    if data.startswith(b"run "):
        return data.split(b"\n", 1)[0].split()[-1].decode()
    return short(hashlib.sha256(data).hexdigest())


def written_by_run(command: str, below: Tree, execution: str) -> tuple[str, bytes]:
    """Path and content of what a RUN writes over `below`."""
    number = command.split()[1]
    symbols = {path: symbol(data) for path, data in below.items()}
    told = run_symbol(command, symbols)
    return f"r{number}", f"run {told}\nover {fingerprint(below)}\nby {execution}\n".encode()


def run_symbol(command: str, below: Symbols) -> str:
    """Of what `command` writes over `below`. It looks at files only."""
    return short(command, *sorted((path, told) for path, told in below.items() if not path.endswith("/")))


def told_by_run(data: bytes) -> tuple[str, str]:
    """The fingerprint of what was below, and the execution, of a file that a RUN wrote."""
    lines = data.decode().splitlines()
    return lines[1].split()[1], lines[2].split()[1]


@dataclass(frozen=True)
class Made:
    """What a stage comes to: `layers` of symbols, bottom first, and the lines of the Dockerfile that say so; `fails`:
    one of its steps does, or one of those it stands on; `base`: how many layers are of a base image, `images` which
    ones it needs, itself or what it stands on."""

    layers: tuple[Symbols, ...]
    lines: tuple[str, ...]
    fails: bool
    base: int
    images: frozenset[int]

    @property
    def tree(self) -> Symbols:
        """All that is seen."""
        return {path: told for layer in self.layers for path, told in layer.items()}


def evaluate(program: Sequence[Stage], images: Sequence[Sequence[int]]) -> list[Made]:
    """What each stage comes to."""
    stages: list[Made] = []
    for number, stage in enumerate(program):
        stages.append(_stage(number, stage, stages, images))
    return stages


def dockerfile(program: Sequence[Stage], images: Sequence[Sequence[int]]) -> str:
    """The text."""
    return "\n".join(line for made in evaluate(program, images) for line in made.lines) + "\n"


def _stage(number: int, stage: Stage, before: Sequence[Made], images: Sequence[Sequence[int]]) -> Made:
    layers: list[Symbols] = []
    needs: set[int] = set()
    fails, base, name = False, 0, "scratch"
    if stage.on_stage and before:
        under = stage.base % len(before)
        layers, fails = list(before[under].layers), before[under].fails
        needs, base, name = set(before[under].images), before[under].base, f"s{under}"
    elif not stage.on_stage and stage.base >= 0:
        image = stage.base % len(images)
        layers = [_symbols(base_layer(layer)) for layer in images[image]]
        needs, base, name = {image}, len(layers), image_name(image)
    lines = [f"FROM {name} AS s{number}"]
    for step in stage.steps:
        made = Made(tuple(layers), (), fails, base, frozenset(needs))
        done = _step(step, made, before, images)
        if done is not None:
            layer, line, failed, needed = done
            layers.append(layer)
            lines.append(line)
            fails |= failed
            needs |= needed
    return Made(tuple(layers), tuple(lines), fails, base, frozenset(needs))


def _step(
    step: Step, made: Made, before: Sequence[Made], images: Sequence[Sequence[int]]
) -> tuple[Symbols, str, bool, frozenset[int]] | None:
    """The layer, the line, whether it fails, and the images that it needs; None where it has no meaning."""
    nothing: frozenset[int] = frozenset()
    if step.kind == "run":
        command = f"step {step.number} seconds={step.seconds} fails={step.fails}"
        mount = "--mount=type=secret,id=token " if step.secret else ""
        return {f"r{step.number}": run_symbol(command, made.tree)}, f"RUN {mount}{command}", step.fails, nothing
    if step.kind == "write":
        data = f"written {step.number}\n"
        return {f"w{step.number}": symbol(data.encode())}, f"COPY <<EOF /w{step.number}\n{data}EOF", False, nothing
    if step.kind == "mkdir":
        path = f"d{step.number}/"
        return None if path in made.tree else ({path: symbol(b"")}, f"WORKDIR /{path[:-1]}", False, nothing)
    if step.source >= 0 and before:
        number = step.source % len(before)
        tree, source = before[number].tree, f"s{number}"
        failed, needed = before[number].fails, before[number].images
    else:
        number = (-1 - step.source if step.source < 0 else step.source) % len(images)
        tree = {path: told for layer in images[number] for path, told in _symbols(base_layer(layer)).items()}
        source, failed, needed = image_name(number), False, frozenset({number})
    paths = sorted(path for path in tree if not path.endswith("/"))
    if not paths:
        return None
    path = paths[step.pick % len(paths)]
    return {f"c{step.number}": tree[path]}, f"COPY --from={source} /{path} /c{step.number}", failed, needed


def _symbols(tree: Tree) -> Symbols:
    return {path: symbol(data) for path, data in tree.items()}
