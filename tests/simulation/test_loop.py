"""The simulated loop: one seed, one order; many seeds, many orders; whoever can never go on is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine.together import together
from storage.threads import in_thread, settle
from tests.simulation.chance import Chance, Crashed, Process, is_dead
from tests.simulation.loop import Livelock, SimLoop
from tests.simulation.threads import Deadlock


def run(main: Callable[[SimLoop], Coroutine[Any, Any, Any]], seed: int = 1, **options: Any) -> Any:
    loop = SimLoop(Chance(seed), **options)
    result = loop.run(main(loop))
    assert not loop.complaints
    return result


async def trace(loop: SimLoop) -> list[str]:
    """Three tasks that meet at a lock, a queue, timers and threads."""
    seen: list[str] = []
    lock, queue = asyncio.Lock(), asyncio.Queue[str]()

    async def work(name: str) -> None:
        for step in range(3):
            async with lock:
                seen.append(f"{name}{step}")
                await asyncio.sleep(0)
            await asyncio.sleep(0.01 * step)
            await asyncio.to_thread(seen.append, f"{name}{step} in a thread")
            await queue.put(name)
        async with asyncio.timeout(5):
            seen.append(f"{name} got {await queue.get()}")

    await together([work("a"), work("b"), work("c")])
    return seen


def test_the_same_seed_gives_the_same_order() -> None:
    for seed in range(20):
        assert run(trace, seed) == run(trace, seed)


def test_other_seeds_give_other_orders() -> None:
    assert len({tuple(run(trace, seed)) for seed in range(200)}) > 150


def test_what_one_turn_starts_begins_in_that_order() -> None:
    async def main(loop: SimLoop) -> list[int]:
        seen: list[int] = []

        async def note(number: int) -> None:
            seen.append(number)

        await together(note(number) for number in range(10))
        return seen

    for seed in range(50):
        assert run(main, seed) == list(range(10))


def test_time_passes_only_when_there_is_nothing_to_do() -> None:
    async def main(loop: SimLoop) -> float:
        started = loop.time()
        await together([asyncio.sleep(3600), asyncio.sleep(1800)])
        return loop.time() - started

    assert 3600 <= run(main) < 3602


def test_a_deadlock_is_found_and_says_who_waits_where() -> None:
    async def main(loop: SimLoop) -> None:
        one, other = asyncio.Lock(), asyncio.Lock()

        async def take(first: asyncio.Lock, second: asyncio.Lock) -> None:
            async with first:
                await asyncio.sleep(0.001)
                async with second:
                    pass

        await together([take(one, other), take(other, one)])

    found = 0
    for seed in range(20):
        try:
            run(main, seed)
        except Deadlock as error:
            assert str(error).count(" take") == 2
            assert "test_loop.py" in str(error)
            found += 1
    assert found > 5


def test_a_livelock_is_found() -> None:
    async def main(loop: SimLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="main"):
        run(main, max_turns=1000)


def test_a_cancelled_caller_waits_for_its_thread() -> None:
    async def main(loop: SimLoop) -> list[str]:
        seen: list[str] = []

        def work() -> None:
            for _ in range(5):
                loop.threads.pause()
            seen.append("thread")

        task = asyncio.ensure_future(in_thread(work))
        await asyncio.sleep(0)
        task.cancel()
        await settle(task)
        seen.append("caller")
        return seen

    assert {tuple(run(main, seed)) for seed in range(50)} == {("thread", "caller")}


def test_what_is_left_is_cancelled_at_the_end() -> None:
    seen = []

    async def main(loop: SimLoop) -> None:
        async def forgotten() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0)
                seen.append("ended")

        loop.kept = asyncio.ensure_future(forgotten())  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)

    run(main)
    assert seen == ["ended"]


# ---------------------------------------------------------------- processes


def test_whoever_crashes_never_does_anything_again() -> None:
    effects: list[str] = []

    async def victim(loop: SimLoop) -> None:
        async def other() -> None:
            try:
                while True:
                    await asyncio.sleep(0.001)
            finally:
                effects.append("dead" if is_dead() else "alive")

        async def crash() -> None:
            await asyncio.sleep(0.01)
            raise Crashed

        await together([other(), crash()])

    async def main(loop: SimLoop) -> str:
        process, ended = loop.spawn("victim", victim(loop))
        with pytest.raises(Crashed):
            await ended
        assert not process.alive
        await asyncio.sleep(1)
        return "went on"

    assert run(main) == "went on"
    assert effects == ["dead"], "a finally block can see that it has no effect any more"


def test_a_process_is_killed_from_outside_while_others_go_on() -> None:
    async def count(seen: list[int]) -> int:
        for number in range(100):
            await asyncio.sleep(0.01)
            await asyncio.to_thread(seen.append, number)
        return len(seen)

    async def main(loop: SimLoop) -> tuple[int, int]:
        one: list[int] = []
        other: list[int] = []
        victim, ended = loop.spawn("victim", count(one))
        _, survived = loop.spawn("survivor", count(other))
        await asyncio.sleep(0.2)
        loop.kill(victim)
        at_death = len(one)
        with pytest.raises(Crashed):
            await ended
        assert await survived == 100
        assert loop.threads.of(victim) == []
        return at_death, len(one)

    for seed in range(20):
        at_death, after = run(main, seed)
        assert at_death == after < 100


def test_a_crash_of_the_only_process_is_raised_by_run() -> None:
    async def main(loop: SimLoop) -> None:
        def die() -> None:
            raise Crashed

        await asyncio.to_thread(die)

    with pytest.raises(Crashed):
        run(main)


def test_results_and_errors_of_processes_reach_who_awaits_them() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def main(loop: SimLoop) -> Process:
        process, failed = loop.spawn("p", fail())
        with pytest.raises(ValueError, match="no"):
            await failed
        return process

    assert not run(main).alive


def test_who_crashes_while_the_loop_stands_still_does_nothing_after_it_either() -> None:
    effects: list[str] = []

    async def victim() -> None:
        def die() -> None:
            raise Crashed

        async def later() -> None:
            await asyncio.sleep(0.001)
            effects.append("a callback of the dead")

        await together([asyncio.to_thread(die), later()])

    async def main(loop: SimLoop) -> None:
        process, ended = loop.spawn("victim", victim())
        while process.alive and not loop.threads.of(process):
            await asyncio.sleep(0)
        loop.threads.wait(lambda: not process.alive, "the death of another process")
        with pytest.raises(Crashed):
            await ended

    for seed in range(20):
        effects.clear()
        run(main, seed)
        assert effects in ([], ["a callback of the dead"]), "at most once, before it died"
