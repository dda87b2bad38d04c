"""The scheduler and the log: what begins ends, whatever comes between."""

from __future__ import annotations

import asyncio

import pytest

from engine.events import Fact, VertexCancelled, VertexStarted
from engine.graph import Scratch as ScratchOp
from engine.graph import Vertex, vertex
from engine.ops.executor import Outcome
from engine.refs.ref import Remote
from engine.solver.plan import Plan
from engine.solver.scheduler import Scheduler


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


def test_I12_a_step_that_is_cancelled_while_its_start_is_recorded_has_an_end() -> None:
    async def execute(_vertex: Vertex, _inputs: tuple[Remote, ...], _attempt: int) -> Outcome:
        raise AssertionError("it never came to that")

    async def recall(_vertex: Vertex, _inputs: tuple[Remote, ...]) -> None:
        return None

    async def interrupted() -> list[Fact]:
        log, step = _SlowLog(), vertex(ScratchOp(), (), "step")
        scheduler = Scheduler(log, execute, recall, lambda _: False, 1)
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
