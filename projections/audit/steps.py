"""The steps of a build: executed or cached, whose execution a cached one is, and what results may hold (taint)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from projections.asked import Asked
from projections.asked import Step as Vertex
from projections.audit.statements import Origin, Seqs, Step, Taint
from projections.audit.told import Told
from projections.fields import integer, text, texts
from projections.mentions import GIVEN
from projections.records import Record
from projections.taint import Taint as Lent
from projections.verdict import Verdict
from storage.interfaces.log import Event

_SOURCES = frozenset({"image", "context", "http", "git", "archive", "layer"})
_ENDS = ("VertexCached", "VertexCompleted", "VertexFailed", "VertexCancelled")
_OUTCOMES = {
    "VertexCached": "cached", "VertexCompleted": "executed", "VertexFailed": "failed", "VertexCancelled": "cancelled",
}  # fmt: skip


def steps(told: Told) -> list[Step]:
    """Every step in the graph's order; where the graph is not stored here, those that events name. Raises LogError."""
    verdicts = {item.step.vertex: item for item in told.why.verdicts}
    found = [_step(told, vertex, verdicts.get(vertex.vertex)) for vertex in _vertices(told) if vertex.number]
    return _inherited(told, found)


def _vertices(told: Told) -> list[Vertex]:
    known = list(told.why.build.steps.values())
    if known:
        return known
    begun = {event.vertex: event for event in reversed(told.all("VertexStarted", *_ENDS)) if event.vertex}
    return [
        Vertex(vertex, text(event.data, "name", ""), "", (0, 0), {}, (), number)
        for number, (vertex, event) in enumerate(reversed(begun.items()), 1)
    ]


def _step(told: Told, vertex: Vertex, verdict: Verdict | None) -> Step:
    mine = told.of(vertex.vertex, "CacheQueried", "VertexStarted", *_ENDS)
    ends = [event for event in mine if event.type in _ENDS]
    started = [event for event in mine if event.type == "VertexStarted"]
    asked = told.why.build.answer(vertex.vertex)
    outcome = _outcome(vertex, ends, started)
    record = _record(told, asked) if outcome == "cached" and asked else None
    last = ends[-1] if ends else None
    return Step(
        vertex.number, vertex.name, vertex.vertex, outcome,
        max((integer(event.data, "attempt", 1) or 1 for event in started), default=0),
        integer(last.data, "exit_code") if last and last.type != "VertexCached" else None,
        asked.key if asked else "", _reason(asked, verdict), tuple(texts(last.data, "outputs")) if last else (),
        _origin(told, asked, record, verdict) if outcome == "cached" else None,
        _taint(told, vertex, verdict, record), (),
        tuple(event.seq for event in mine or told.all("GraphDefined")),
    )  # fmt: skip


def _outcome(vertex: Vertex, ends: list[Event], started: list[Event]) -> str:
    if not ends or (started and started[-1].seq > ends[-1].seq):
        return "interrupted" if started else "not needed"
    outcome = _OUTCOMES[ends[-1].type]
    return "source" if outcome in {"cached", "executed"} and vertex.kind in _SOURCES else outcome


def _reason(asked: Asked | None, verdict: Verdict | None) -> str:
    if asked is None:
        return ""
    return asked.outcome if asked.outcome == "hit" else (verdict.reason if verdict else "") or asked.reason


def _record(told: Told, asked: Asked) -> Record | None:
    return told.why.records.of_hit(asked.key, asked.seq) if asked.outcome == "hit" else None


def _origin(told: Told, asked: Asked | None, record: Record | None, verdict: Verdict | None) -> Origin | None:
    if asked is None:
        return None
    came = verdict.origin if verdict else None
    build = came.build if came else asked.origin_build
    made = told.why.records.first.get((record.ref, record.origin_build)) if record else None
    seqs = {item.seq for item in (record, made) if item is not None}
    importer = (came.importer if came else "") or asked.importer
    return Origin(build, bool(came and came.started), importer, tuple(sorted(seqs)))


# ---------------------------------------------------------------- taint


def _taint(told: Told, vertex: Vertex, verdict: Verdict | None, record: Record | None) -> tuple[Taint, ...]:
    """What the execution that made the result was lent. Of a miss that is this build's own, which the log tells of."""
    if verdict is None:
        return ()
    made = told.why.records.execution(record) if record else None
    if verdict.outcome == "hit":
        lent = told.why.records.lent.get(made, []) if made else []
        build = made[0] if made else ""
    else:
        lent = told.of(vertex.vertex, *GIVEN)
        build = told.record.id if verdict.state else ""
    graph = tuple(event.seq for event in told.all("GraphDefined"))
    first = (record.seq,) if record and made else ()
    return tuple(
        Taint(item.kind, item.id, item.target, item.seen, build, _proof(item, lent) or (*first, *graph))
        for item in verdict.taint
    )  # fmt: skip


def _proof(item: Lent, lent: Iterable[Event]) -> Seqs:
    """The events that say so. A mount that was not given, and the network, have none but the graph."""
    facts = [event for event in lent if GIVEN[event.type] == item.kind]
    if item.kind != "security":
        facts = [event for event in facts if text(event.data, "id", "") == item.id]
    return tuple(event.seq for event in facts)


def _inherited(told: Told, found: list[Step]) -> list[Step]:
    """With the numbers of the tainted steps below each one."""
    graph, by_vertex = told.why.build.steps, {step.vertex: step for step in found}
    below: dict[str, frozenset[int]] = {}
    for vertex in graph:  # the stored graph has inputs before what stands on them
        numbers: set[int] = set()
        for name in graph[vertex].inputs:
            numbers |= below.get(name, frozenset())
            if name in by_vertex and any(item.seen != "absent" for item in by_vertex[name].taint):
                numbers.add(by_vertex[name].number)
        below[vertex] = frozenset(numbers)
    return [replace(step, inherits=tuple(sorted(below.get(step.vertex, ())))) for step in found]

