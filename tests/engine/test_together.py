"""Waiting for several things, or for somebody else's lock, leaves nothing running and nothing held."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.together import COLLECT, locked, made_and_told, together
from storage.locks import FileLocks


def test_the_first_failure_is_raised_when_all_others_have_stopped() -> None:
    ended: list[str] = []

    async def slow(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        asyncio.run(together([slow("a"), failing(), slow("b")]))
    assert sorted(ended) == ["a", "b"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_is_held_until_the_end_and_says_whether_somebody_had_it(tmp_path: Path, shared: bool) -> None:
    ours, theirs = FileLocks(tmp_path), FileLocks(tmp_path)

    async def main() -> list[bool]:
        waited = []
        async with locked(ours, "layer-1", shared=shared) as first:
            assert theirs.try_acquire("layer-1") is None
            other = theirs.try_acquire("layer-1", shared=True)
            assert (other is not None) == shared
            waited.append(first)
            if other is not None:
                other.release()
        held = theirs.try_acquire("layer-1")
        assert held is not None
        asyncio.get_running_loop().call_later(0.01, held.release)
        async with locked(ours, "layer-1", shared=shared) as second:
            waited.append(second)
        return waited

    assert asyncio.run(main()) == [False, True]
    assert not ours.held("layer-1")


def test_I6_nothing_is_removed_between_seeing_what_was_made_and_saying_so(tmp_path: Path) -> None:
    """A removal holds the lock alone: it comes before the look, or after the event; what it took is made anew."""
    locks, removal = FileLocks(tmp_path), FileLocks(tmp_path)
    made: list[int] = []
    told: list[int] = []

    async def make() -> int:
        lock = removal.try_acquire(COLLECT)
        assert lock is not None, "what takes long keeps no removal waiting"
        lock.release()
        made.append(len(made))
        return made[-1]

    def here(one: int) -> bool:
        assert removal.try_acquire(COLLECT) is None
        return one > 0

    async def tell(one: int) -> None:
        assert removal.try_acquire(COLLECT) is None
        build = removal.try_acquire(COLLECT, shared=True)
        assert build is not None, "other builds go on"
        build.release()
        told.append(one)

    assert asyncio.run(made_and_told(locks, make, here, tell)) == 1
    assert (made, told, locks.held(COLLECT)) == ([0, 1], [1], False)
