"""Layers that several builds want, from places that fail: whatever the order, nobody waits for ever, nobody fails for
another one's sake, nothing wrong is laid out. `REFLEDGER_LONG=SECONDS` goes on to other seeds for that long."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine.ledger import Ledger
from engine.refs import fetch, materializer
from engine.refs.fetch import Fetcher
from engine.refs.spool import Spool
from storage.partial import FilePartial
from tests.simulation import moving
from tests.simulation.chance import Chance
from tests.simulation.moving import case, simulate

SEEDS = range(20)
FAULTS = 3
"""Runs with faults for each seed."""


def runs(seed: int) -> Iterator[tuple[dict[int, int], moving.Run]]:
    """The case of `seed` undisturbed, with some faults, and with threads that take turns at every statement."""
    calm = simulate(case(seed), {})
    yield {}, calm
    draw = Chance(seed + 77)
    for _ in range(FAULTS):
        planned = {1 + draw.below(calm.faults.points): draw.below(9) for _ in range(1 + draw.below(3))}
        yield planned, simulate(case(seed), planned)
    yield {}, simulate(case(seed), {}, dense=True)


def check(seed: int, ends: Counter[str]) -> None:
    for planned, run in runs(seed):
        ends.update(end.partition(":")[0] for end in run.ends)
        assert run.problems == [], f"seed {seed}, faults {planned}: {run.faults.struck}"


def test_layers_come_whole_or_not_at_all_in_any_order() -> None:
    ends: Counter[str] = Counter()
    for seed in SEEDS:
        check(seed, ends)
    assert {"ok", "cancelled", "crashed", "MaterializationError"} <= set(ends)
    deadline, seed = time.monotonic() + float(os.environ.get("REFLEDGER_LONG") or 0), 1000
    while time.monotonic() < deadline:
        check(seed, ends)
        seed += 1


def test_the_same_seed_and_faults_give_the_same_run() -> None:
    for seed in range(3):
        first, again = ([(run.ends, run.bytes, run.faults) for _, run in runs(seed)] for _ in range(2))
        assert first == again


# ---------------------------------------------------------------- what is planted is found


def unshielded(awaited: Any) -> Any:
    return awaited


@asynccontextmanager
async def unlocked(*_: Any, **__: Any) -> AsyncIterator[bool]:
    yield False


async def recorded_later(self: Ledger, fact: Any, **given: Any) -> int:
    self.post(fact, **given)
    return 1


def untold(self: Spool) -> None:
    self._abandoned = True


def plant_unshielded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(asyncio, "shield", unshielded)


def plant_unlocked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(materializer, "locked", unlocked)
    patch.setattr(fetch, "locked", unlocked)


def plant_recorded_later(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "record", recorded_later)


def plant_untold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "abandon", untold)


class NoLock:
    """Keeps nobody out."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def plant_unguarded(patch: pytest.MonkeyPatch) -> None:
    """Threads that write different ranges of a blob change the same dictionary."""
    real = FilePartial.__init__

    def init(self: Any, directory: Any, size: int) -> None:
        real(self, directory, size)
        self._state = NoLock()

    patch.setattr(FilePartial, "__init__", init)


def plant_unblamed(patch: pytest.MonkeyPatch) -> None:
    """Of wrong bytes that were left, the provider that has right ones is not asked again."""
    real = fetch._misfit
    failure = fetch._Failure
    patch.setattr(fetch, "_misfit", lambda error, pull: failure(real(error, pull).error, "corrupt"))


def plant_first_only(patch: pytest.MonkeyPatch) -> None:
    """Only the first provider is asked."""
    real = Fetcher.providers
    patch.setattr(Fetcher, "providers", lambda self, layer: iter(list(real(self, layer))[:1]))


@pytest.mark.parametrize(
    ("plant", "first", "found"),
    [
        (plant_unshielded, 5, "wish 4 ended: cancelled"),
        (plant_unlocked, 0, "I4"),
        (plant_recorded_later, 0, "I2"),
        (plant_untold, 0, "hangs"),
        (plant_unguarded, 26, "a bug: "),
        (plant_first_only, 1, "wish 0 ended: MaterializationError"),
        (plant_unblamed, 208, "I5 afterwards: layer 2 cannot be had"),
    ],
)
def test_what_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], first: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From seed `first` on, where it was found when this was written, in a few more seeds."""
    plant(monkeypatch)
    problems = (problem for seed in range(first, first + 10) for _, run in runs(seed) for problem in run.problems)
    assert any(problem.startswith(found) for problem in problems)
