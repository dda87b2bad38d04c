"""The scheduler and the log: what begins ends, whatever comes between."""

from __future__ import annotations

import asyncio

import pytest

from engine.events import Fact, VertexCancelled, VertexStarted
from engine.graph import ImageSource, Vertex, vertex
from engine.ops.executor import Outcome
from engine.refs.ref import Remote
from engine.solver.plan import Plan
from engine.solver.scheduler import Scheduler
from storage.digest import sha256
from storage.interfaces.images import Provider
from tests.engine.solver.kit import Recorded, vertex_of

HUB = Provider.of("h.example", "i")


class _SlowLog:
    """Takes an event at once, and never says that it is durable."""

    def __init__(self) -> None:
        self.told: list[Fact] = []
        self.asked = asyncio.Event()

    async def record(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:
        self.told.append(fact)
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    def post(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        self.told.append(fact)


async def _recall(_vertex: Vertex, _inputs: tuple[Remote, ...]) -> None:
    return None


def test_so_many_steps_as_jobs_run_at_once_and_what_only_points_takes_no_slot() -> None:
    running, most = set[str](), list[tuple[int, int]]()

    async def execute(vertex: Vertex, inputs: tuple[Remote, ...], attempt: int) -> Outcome:
        running.add(vertex.name)
        for _ in range(20):  # until all that may begin has begun
            await asyncio.sleep(0)
        most.append((sum(name.startswith("step") for name in running), len(running)))
        running.discard(vertex.name)
        return Outcome(Remote(vertex.name, ()))

    images = [vertex(ImageSource(name, sha256(name.encode()), "linux/amd64", HUB, ()), (), name) for name in "abc"]
    scratch = vertex_of("scratch")
    steps = [vertex_of(f"step {number}", scratch) for number in range(6)]
    facts = Recorded()
    scheduler = Scheduler(facts, execute, _recall, lambda _: False, 2)
    plan = Plan((*steps, *images), (), frozenset(), ())
    asyncio.run(scheduler.run(plan, {scratch.digest: Remote("scratch", ())}))
    assert max(steps for steps, _ in most) == 2
    assert max(every for _, every in most) == 5
    assert sorted(facts.started()) == sorted([*"abc", *(step.name for step in steps)])


def test_I12_a_step_that_is_cancelled_while_its_start_is_recorded_has_an_end() -> None:
    async def execute(_vertex: Vertex, _inputs: tuple[Remote, ...], _attempt: int) -> Outcome:
        raise AssertionError("it never came to that")

    async def interrupted() -> list[Fact]:
        log, step = _SlowLog(), vertex_of("scratch")
        scheduler = Scheduler(log, execute, _recall, lambda _: False, 1)
        running = asyncio.ensure_future(scheduler.run(Plan((step,), (), frozenset(), ()), {}))
        await log.asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return log.told

    started, cancelled = asyncio.run(interrupted())
    assert isinstance(started, VertexStarted)
    assert isinstance(cancelled, VertexCancelled)
    assert started.attempt == cancelled.attempt
