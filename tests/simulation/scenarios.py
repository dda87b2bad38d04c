"""What is done in a simulated run, as plain data: images, Dockerfiles, and who does what with them at once.

A scenario follows from its seed (drawing.py), prints as Python, and can be shrunk (smaller.py). Whatever is left out of
one, the rest keeps a meaning: what is named by number is counted round among what there is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Kind = Literal["build", "prune", "demote", "lose", "rot", "copy", "begin", "look"]
Worth = Literal["", "whole", "partial", "corrupt", "down"]
Cache = Literal["", "min", "max", "inline", "local"]
File = Literal["", "layout", "archive"]
Instruction = Literal["run", "copy", "write", "mkdir"]
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
    an image is in. `rot`: file `pick` of what a root keeps is changed, cut short or removed. `look`: reads what is
    there."""

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
