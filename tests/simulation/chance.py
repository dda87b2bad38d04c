"""What a simulated run leaves to chance, and its faults: both from data, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class Process:
    """A simulated process: whoever runs on its behalf (tasks, threads, callbacks) has it in its context (`process`).
    Once it is not `alive` any more (`crashed`: it did not end by itself), nothing of it runs again (see
    loop.SimLoop.kill) but what cannot be kept from it, `finally` blocks on the way out; these change nothing, since
    every Faults.at raises Crashed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.crashed = False

    def __repr__(self) -> str:
        return f"<process {self.name}{'' if self.alive else ', dead'}>"


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def process() -> Process | None:
    """On whose behalf this code runs; None for nobody's: that of a test, or of the world outside."""
    return _process.get()


def process_of(context: Context) -> Process | None:
    """On whose behalf what runs in `context` runs."""
    return context.get(_process)


def enter(entered: Process | None) -> None:
    """From now on this context is that of `entered`."""
    _process.set(entered)


def is_dead() -> bool:
    """Does this code run on behalf of a process that is no more?"""
    here = _process.get()
    return here is not None and not here.alive


class Crashed(BaseException):
    """The process died here. No code of the engine may catch it: whoever drives the simulation does, drops everything
    that lived in the process's memory, has every disk forget what was not durable, and starts anew. To make one is to
    end the process on whose behalf that is done."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        here = _process.get()
        if here is not None:
            here.alive = False


class Chance:
    """Draws of one run. The same seed gives the same draws in the same order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.draws = 0

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        self.draws += 1
        return int(self._random.random() * limit)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, of which there is at least one."""
        return options[self.below(len(options))]

    def maybe(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.below(100) < percent


@dataclass(slots=True)
class Faults:
    """Faults by the number of the point where they strike, counted from 1: {17: 2} is the third kind that the 17th
    point offers (counted round). A run without any tells how many points there are, so that one can strike at each of
    them in turn."""

    planned: Mapping[int, int] = field(default_factory=dict)
    points: int = 0
    struck: list[tuple[int, str, str]] = field(default_factory=list)
    """What happened: the point's number, its name, the kind."""

    def at(self, point: str, *kinds: str) -> str:
        """To be asked at each await and each write that can fail, before it has any effect: the kind of fault that
        strikes now, or "". Raises Crashed when the process that asks is dead already: that counts for no point."""
        if is_dead():
            raise Crashed(f"at {point}, after the end")
        self.points += 1
        if self.points not in self.planned:
            return ""
        kind = kinds[self.planned[self.points] % len(kinds)]
        self.struck.append((self.points, point, kind))
        return kind
