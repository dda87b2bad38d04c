"""The solver around an executor that keeps losing what it was promised: a fake, to inject what no real part repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from engine.errors import MaterializationError
from engine.events import Fact, HitRevoked, VertexCancelled, VertexStarted
from engine.graph import Graph, Result, Run, Scratch, Vertex, VertexError, vertex
from engine.ops.executor import Outcome, Task
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote, of_step
from engine.solver import solve
from engine.solver.answers import Found
from engine.solver.solve import REVOCATIONS, Solver
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.locks import FileLocks


@dataclass
class _Facts:
    told: list[Fact] = field(default_factory=list)

    async def record(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:
        self.told.append(fact)
        return len(self.told)

    def post(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        self.told.append(fact)

    def of(self, kind: type[Fact]) -> list[Any]:
        return [fact for fact in self.told if isinstance(fact, kind)]


class _Losing:
    """Executes everything, but finds the base of `consumer` gone `times` times."""

    def __init__(self, consumer: str, times: int) -> None:
        self.consumer, self.times = consumer, times

    async def content(self, task: Task) -> Digest | None:
        return None

    async def execute(self, task: Task) -> Outcome:
        if task.vertex.name == self.consumer and self.times:
            self.times -= 1
            layer = task.inputs[0].layers[-1].name
            raise MaterializationError(f"layer {layer} cannot be had", kind="missing", layer=layer)
        return Outcome(of_step(task.execution, task.inputs[0], 1))


class Nothing:
    def lookup(self, key: Digest) -> Found | None:
        return None

    def let_go(self, name: str) -> bool:
        return False

    def keeps(self, listing: Digest) -> bool:
        return True

    def packs(self) -> Sequence[Digest]:
        return ()

    async def absent(self, layers: Sequence[Layer]) -> Mapping[str, str]:
        return {}


@dataclass
class _Doors:
    """The part of the Materializer that the solver asks."""

    locks: FileLocks

    def obtainable(self, layer: Layer) -> bool:
        return True

    def here(self, layer: Layer) -> bool:
        return True


def _vertex(name: str, *inputs: Vertex) -> Vertex:
    op = Run(argv=(name,), env=(), cwd="/") if inputs else Scratch()
    return vertex(op, tuple(v.digest for v in inputs), name)


def _solve(tmp_path: Path, times: int, between: int = 0) -> tuple[_Facts, dict[str, Remote]]:
    """`between`: so many steps stand on the one that is lost, and the one that finds it lost waits for them."""
    base = _vertex("scratch")
    made, beside = _vertex("made", base), _vertex("beside", base)
    others = [_vertex(f"other {number}", made) for number in range(between)]
    last = _vertex("last", made, *others)
    results = tuple(Result(v.digest, "linux/amd64", {}) for v in (last, beside))
    graph = Graph((base, made, beside, *others, last), results)
    facts = _Facts()
    solver = Solver(
        build="b", facts=facts, executor=_Losing("last", times),
        materializer=cast("Materializer", _Doors(FileLocks(tmp_path))),
        cache=Nothing(), presence=Nothing(), blobs=DirectoryBlobs(tmp_path, owner="b"), contexts={}, jobs=2,
    )  # fmt: skip
    solution = asyncio.run(solver.solve(graph))
    return facts, {graph.by_digest[digest].name: ref for digest, ref in solution.refs.items()}


@pytest.mark.parametrize("times", [1, REVOCATIONS])
def test_I8_only_what_holds_the_lost_layer_is_made_again(tmp_path: Path, times: int) -> None:
    facts, refs = _solve(tmp_path, times)
    started = [fact.name for fact in facts.of(VertexStarted)]
    assert started.count("made") == times + 1
    assert started.count("last") == times + 1
    assert started.count("beside") == 1
    assert len(facts.of(HitRevoked)) == times
    assert [fact.attempt for fact in facts.of(HitRevoked)] == list(range(1, times + 1))
    assert refs["last"].layers[0].name == refs["made"].layers[-1].name
    assert refs["made"].id.endswith(f"-{times + 1}")


def test_I8_all_that_is_made_again_is_named_however_many_events_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "NAMED", 2)
    facts, _ = _solve(tmp_path, 1, between=3)
    told = [fact.reexecuted for fact in facts.of(HitRevoked)]
    assert [len(vertices) for vertices in told] == [2, 2]
    assert len({vertex for vertices in told for vertex in vertices}) == 4
    started = [fact.name for fact in facts.of(VertexStarted)]
    assert [started.count(name) for name in ("made", "other 0", "other 2", "last", "beside")] == [2, 2, 2, 2, 1]


def test_I8_a_result_that_is_lost_again_and_again_ends_the_build_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(VertexError) as caught:
        _solve(tmp_path, REVOCATIONS + 1)
    assert caught.value.vertex.name == "last"
    assert isinstance(caught.value.cause, MaterializationError)


def test_every_start_has_one_end_also_when_an_input_is_lost(tmp_path: Path) -> None:
    facts, _ = _solve(tmp_path, 1)
    ended = [fact.attempt for fact in facts.told if type(fact).__name__.startswith("Vertex") and fact.name == "last"]  # type: ignore[attr-defined]
    assert ended == [1, 1, 2, 2]
    assert [fact.reason for fact in facts.of(VertexCancelled)] != [""]
