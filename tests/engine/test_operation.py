"""How a build ends: once, and outside as in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import pytest

from engine.errors import BuildError, Cancelled, DockerfileError, RefledgerError
from engine.events import BuildStarted, to_data
from engine.graph import Graph, Mkdir, vertex
from engine.ledger import Ledger
from engine.operation import PLAN_SHOWN, build_failed, graph_defined, operate
from storage.digest import Digest
from storage.interfaces.log import Event, EventLog, NewEvent
from storage.log.codec import encode

STARTED = BuildStarted(frontend="copy.v0", definition="", options={}, context=None, engine_version="", host={})


class _SlowLog:
    """What is submitted is in it, and durable when `release` is called."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self._waiting: list[Future[list[Event]]] = []

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        self.types += [event.type for event in events]
        self._waiting.append(Future())
        return self._waiting[-1]

    def release(self) -> None:
        while self._waiting:
            event = Event(len(self.types), 0, "", 1, "", None, None, None, {})
            self._waiting.pop().set_result([event])


def test_a_graph_of_long_names_fits_into_an_event() -> None:
    vertices = tuple(vertex(Mkdir(f"/{number}"), (), "é" * 200) for number in range(PLAN_SHOWN))
    defined = graph_defined(Graph(vertices, ()), Digest(f"sha256:{'0' * 64}"), vertices, vertices[0].digest)
    encode(NewEvent("build/b1", "GraphDefined", to_data(defined), "b1"))  # raises where there is no room
    assert defined.vertices == PLAN_SHOWN >= len(defined.plan) > PLAN_SHOWN // 3


@pytest.mark.parametrize("fails", [False, True])
def test_I6_a_build_interrupted_while_its_end_is_recorded_has_one_end_and_says_the_same(fails: bool) -> None:
    async def work() -> list[dict[str, Any]]:
        if fails:
            raise BuildError("no")
        return []

    async def interrupted() -> tuple[list[str], RefledgerError | None]:
        log = _SlowLog()
        task = asyncio.ensure_future(operate(Ledger(cast("EventLog", log), "b1"), STARTED, work()))
        while len(log.types) < 2:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        log.release()
        try:
            await task
        except RefledgerError as error:
            return log.types, error
        return log.types, None

    types, error = asyncio.run(interrupted())
    assert types == ["BuildStarted", "BuildFailed" if fails else "BuildCompleted"]
    assert isinstance(error, BuildError) if fails else error is None


def test_I6_a_build_that_is_interrupted_says_so_in_the_log_before_outside() -> None:
    async def work() -> list[dict[str, Any]]:
        await asyncio.Event().wait()
        return []

    async def interrupted() -> list[str]:
        log = _SlowLog()
        task = asyncio.ensure_future(operate(Ledger(cast("EventLog", log), "b1"), STARTED, work()))
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done(), "nobody is told before it is durable"
        log.release()
        with pytest.raises(Cancelled):
            await task
        return log.types

    assert asyncio.run(interrupted()) == ["BuildStarted", "BuildCancelled"]


def test_the_log_has_the_lines_at_fault_of_a_dockerfile() -> None:
    failed = build_failed(DockerfileError("no such stage", filename="Dockerfile", line=3, excerpt="   3 | >>> FROM x"))
    assert failed.error.splitlines()[-1] == "   3 | >>> FROM x"
    assert (failed.error.partition("\n")[0], failed.exit_code) == ("Dockerfile:3: no such stage", 2)
