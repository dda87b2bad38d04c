"""The seam to an executor that may live elsewhere (I14): what crosses it, and what becomes of a late answer."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import TypeVar, cast

from engine.events import CacheRecorded, VertexCompleted
from engine.graph import ContextSource, Copy, Graph, Mount, Result, Run, vertex
from engine.ops.executor import Outcome, Task
from tests.engine.solver.kit import Losing, solve, vertex_of

T = TypeVar("T")


def sent(data: T) -> T:
    """`data` as it is in another process: a handle, a lock or a function would not get there."""
    got = pickle.loads(pickle.dumps(data))
    assert got == data
    return cast("T", got)


class Elsewhere(Losing):
    """Is in another process, as far as what it is given and gives back can tell."""

    def __init__(self) -> None:
        super().__init__("", 0)
        self.got: list[Task] = []

    async def execute(self, task: Task) -> Outcome:
        self.got.append(sent(task))
        return sent(await super().execute(self.got[-1]))


class Late(Losing):
    """Finds the base of `last` gone at once, and is done with `late` only after that."""

    def __init__(self) -> None:
        super().__init__("last", 1)
        self.gone = asyncio.Event()

    async def execute(self, task: Task) -> Outcome:
        if task.vertex.name == "late":
            await self.gone.wait()
        elif task.vertex.name == "last":
            self.gone.set()
        return await super().execute(task)


def test_I14_an_executor_is_given_and_gives_back_plain_data(tmp_path: Path) -> None:
    context, base = vertex(ContextSource(), (), "context"), vertex_of("scratch")
    copied = vertex(Copy(("f",), "/"), (base.digest, context.digest), "copied")
    mount = Mount("bind", "/m", input=1)
    ran = vertex(Run(("true",), (), "/", mounts=(mount,)), (copied.digest, context.digest), "ran")
    graph = Graph((context, base, copied, ran), (Result(ran.digest, "linux/amd64", {}),))
    directory = tmp_path / "context"
    directory.mkdir()
    (directory / "f").write_text("content")
    executor = Elsewhere()
    _, refs = solve(tmp_path, graph, executor, contexts={context.digest: directory})
    given = {task.vertex.name: task for task in executor.got}
    assert set(given) == {"copied", "ran"}
    assert given["copied"].selection is not None
    assert [entry.path for entry in given["copied"].selection.entries] == ["f"]
    assert given["ran"].directories == {0: str(directory)}
    assert [entry.path for entry in given["ran"].mounted[0].entries] == ["", "f"]
    assert [layer.snapshot for layer in refs["ran"].layers] == [task.execution for task in executor.got]


def test_I14_a_late_result_of_what_was_revoked_is_recorded_and_not_used(tmp_path: Path) -> None:
    base = vertex_of("scratch")
    made = vertex_of("made", base)
    late, last = vertex_of("late", made), vertex_of("last", made)
    results = tuple(Result(one.digest, "linux/amd64", {}) for one in (late, last))
    facts, refs = solve(tmp_path, Graph((base, made, late, last), results), Late())
    ended = [fact.outputs for fact in facts.of(VertexCompleted) if fact.name == "late"]
    assert [output.rpartition("-")[2] for (output,) in ended] == ["1", "2"]
    assert (refs["late"].id,) == ended[1]
    assert [layer.name for layer in refs["late"].layers] == [refs["made"].id, refs["late"].id]
    recorded = [fact.ref for fact in facts.of(CacheRecorded) if fact.ref in {*ended[0], *ended[1]}]
    assert recorded == [*ended[0], *ended[1]]  # the one that counts is the latest
