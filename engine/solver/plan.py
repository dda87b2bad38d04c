"""What to run, decided purely: a graph and the cache's answers in, a plan out. Nothing is run or pulled here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.graph import Graph, Vertex
from engine.record import Record
from engine.refs.ref import Remote
from storage.digest import Digest


class Hit(Record):
    """The cache knows the result."""

    ref: Remote
    origin_build: str


class Miss(Record):
    """It must run: `reason` is never-built, no-cache or bytes-lost."""

    reason: str


Answer = Hit | Miss


@dataclass(frozen=True, slots=True)
class Plan:
    """`run`: vertices to execute, inputs first. `cached`: vertices whose result is taken from the cache.
    `skipped`: neither, as nothing needs them."""

    run: tuple[Vertex, ...]
    cached: tuple[tuple[Vertex, Hit], ...]
    skipped: tuple[Vertex, ...]


def plan(graph: Graph, answers: Mapping[Digest, Answer]) -> Plan:
    """Walk from the results down; a hit ends the walk, so what lies below it is not needed.

    Vertices without an answer (sources) run when something needs them. Hits that nothing needs are listed as cached
    too: the person who reads the list wants to know that they would not have run.
    """
    needed: set[Digest] = set()
    queue = [result.vertex for result in graph.results]
    while queue:
        digest = queue.pop()
        if digest in needed:
            continue
        needed.add(digest)
        if not isinstance(answers.get(digest), Hit):
            queue.extend(graph.by_digest[digest].inputs)
    run, cached, skipped = [], [], []
    for vertex in graph.vertices:
        answer = answers.get(vertex.digest)
        if isinstance(answer, Hit):
            cached.append((vertex, answer))
        elif vertex.digest in needed:
            run.append(vertex)
        else:
            skipped.append(vertex)
    return Plan(tuple(run), tuple(cached), tuple(skipped))
