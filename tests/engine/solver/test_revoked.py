"""The solver around an executor that keeps losing what it was promised: a fake, to inject what no real part repeats."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.errors import DiskError, MaterializationError
from engine.events import HitRevoked, VertexCancelled, VertexCompleted, VertexStarted
from engine.graph import Copy, Graph, HttpSource, Result, VertexError, vertex
from engine.ops.executor import Outcome, Task
from engine.refs.ref import Remote
from engine.refs.source import source_ref
from storage.digest import Digest, sha256
from tests.engine.solver.kit import Losing, Recorded, solve, vertex_of


class LosingTwice(Losing):
    """Two steps find their base gone, at once."""

    async def execute(self, task: Task) -> Outcome:
        self.consumer = task.vertex.name if task.vertex.name.startswith("other") else ""
        return await super().execute(task)


def _solve(
    tmp_path: Path, times: int, between: int = 0, losing: type[Losing] = Losing
) -> tuple[Recorded, dict[str, Remote]]:
    """`between`: so many steps stand on the one that is lost, and the one that finds it lost waits for them."""
    base = vertex_of("scratch")
    made, beside = vertex_of("made", base), vertex_of("beside", base)
    others = [vertex_of(f"other {number}", made) for number in range(between)]
    last = vertex_of("last", made, *others)
    results = tuple(Result(v.digest, "linux/amd64", {}) for v in (last, beside))
    graph = Graph((base, made, beside, *others, last), results)
    return solve(tmp_path, graph, losing("last", times))


@pytest.mark.parametrize("times", [1, 3])
def test_I8_only_what_holds_the_lost_layer_is_made_again(tmp_path: Path, times: int) -> None:
    facts, refs = _solve(tmp_path, times)
    started = facts.started()
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
    monkeypatch.setattr("engine.solver.solve.NAMED", 2)
    facts, _ = _solve(tmp_path, 1, between=3)
    told = [fact.reexecuted for fact in facts.of(HitRevoked)]
    assert [len(vertices) for vertices in told] == [2, 2]
    assert len({vertex for vertices in told for vertex in vertices}) == 4
    started = facts.started()
    assert [started.count(name) for name in ("made", "other 0", "other 2", "last", "beside")] == [2, 2, 2, 2, 1]


def test_I8_what_two_steps_find_lost_is_made_again_once(tmp_path: Path) -> None:
    facts, _ = _solve(tmp_path, 2, between=2, losing=LosingTwice)
    started = facts.started()
    assert [started.count(name) for name in ("made", "other 0", "other 1", "last")] == [2, 2, 2, 1]
    assert [fact.attempt for fact in facts.of(HitRevoked)] == [1]


class Unreadable(Losing):
    """What a COPY takes of another result cannot be looked at."""

    async def content(self, task: Task) -> Digest | None:
        raise DiskError("looking into layers: Input/output error")


def test_a_step_that_cannot_be_looked_for_ends_the_build_with_its_name(tmp_path: Path) -> None:
    base = vertex_of("scratch")
    made = vertex_of("made", base)
    copy = vertex(Copy(("/a",), "/", from_context=False), (base.digest, made.digest), "COPY")
    graph = Graph((base, made, copy), (Result(copy.digest, "linux/amd64", {}),))
    with pytest.raises(VertexError, match="Input/output error") as caught:
        solve(tmp_path, graph, Unreadable("", 0))
    assert caught.value.vertex == copy


def test_I8_a_result_that_is_lost_again_and_again_ends_the_build_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(VertexError) as caught:
        _solve(tmp_path, 4)
    assert caught.value.vertex.name == "last"
    assert isinstance(caught.value.cause, MaterializationError)


def test_every_start_has_one_end_also_when_an_input_is_lost(tmp_path: Path) -> None:
    facts, _ = _solve(tmp_path, 1)
    of_last = [fact for kind in (VertexStarted, VertexCancelled, VertexCompleted) for fact in facts.of(kind)]
    told = [(type(fact).__name__, fact.attempt) for fact in of_last if fact.name == "last"]
    assert told == [("VertexStarted", 1), ("VertexStarted", 2), ("VertexCancelled", 1), ("VertexCompleted", 2)]
    (cancelled,) = facts.of(VertexCancelled)
    assert re.fullmatch(r"layer b-\S+ cannot be had", cancelled.reason)


def test_I8_a_file_of_the_web_that_is_lost_is_fetched_again(tmp_path: Path) -> None:
    source = HttpSource("https://h.example/f", "f", digest=str(sha256(b"f")))
    page = vertex(source, (), "page")
    last = vertex_of("last", page)

    class Fetching(Losing):
        async def execute(self, task: Task) -> Outcome:
            if task.vertex == page:
                return Outcome(source_ref(source))
            return await super().execute(task)

    graph = Graph((page, last), (Result(last.digest, "linux/amd64", {}),))
    facts, _ = solve(tmp_path, graph, Fetching("last", 1))
    assert facts.started() == ["page", "last", "page", "last"]
