"""What to run, decided purely: a graph and the cache's answers in, a plan out. Nothing is run or pulled here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from engine.graph import Graph, Vertex
from engine.record import Record
from engine.solver.answers import Found
from storage.digest import Digest


class Hit(Record):
    """The cache knows the result."""

    found: Found


class Miss(Record):
    """It must run: `reason` is never-built, no-cache, evicted, bytes-lost or provider-unreachable."""

    reason: str


Answer = Hit | Miss


@dataclass(frozen=True, slots=True)
class Plan:
    """`run`: vertices to execute, inputs first. `cached`: vertices whose result is taken from the cache, those that are
    `needed` and those that only would not have run. `skipped`: neither, as nothing needs them."""

    run: tuple[Vertex, ...]
    cached: tuple[tuple[Vertex, Found], ...]
    needed: frozenset[Digest]
    skipped: tuple[Vertex, ...]

    @property
    def used(self) -> list[tuple[Vertex, Found]]:
        """The part of `cached` that the build relies on."""
        return [(vertex, found) for vertex, found in self.cached if vertex.digest in self.needed]


def plan(graph: Graph, answers: Mapping[Digest, Answer], done: Collection[Digest] = ()) -> Plan:
    """Walk from the results down; a hit ends the walk, so what lies below it is not needed, and so does a vertex whose
    result is here from before (`done`), which is in no part of the plan.

    Vertices without an answer (sources) run when something needs them. Hits that nothing needs are listed as cached
    too: the person who reads the list wants to know that they would not have run.
    """
    needed: set[Digest] = set()
    queue = [result.vertex for result in graph.results]
    while queue:
        digest = queue.pop()
        if digest in needed or digest in done:
            continue
        needed.add(digest)
        if not isinstance(answers.get(digest), Hit):
            queue.extend(graph.by_digest[digest].inputs)
    run, cached, skipped = [], [], []
    for vertex in graph.vertices:
        answer = answers.get(vertex.digest)
        if vertex.digest in done:
            continue
        if isinstance(answer, Hit):
            cached.append((vertex, answer.found))
        elif vertex.digest in needed:
            run.append(vertex)
        else:
            skipped.append(vertex)
    return Plan(tuple(run), tuple(cached), frozenset(needed), tuple(skipped))
