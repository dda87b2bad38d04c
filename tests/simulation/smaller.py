"""Scenarios that lack one thing of another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from tests.simulation.scenarios import Scenario, Stage

T = TypeVar("T")


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
