"""A graph whose outside sources are what they are *now*: digests and commits in the place of URLs and branches."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from engine.aside import shown_step
from engine.errors import RefledgerError
from engine.graph import FetchedSource, GitSource, Graph, Op, Vertex, VertexError, vertex
from engine.ledger import Facts
from engine.offline.missing import NotHere
from engine.record import changed
from engine.refs.ref import Remote
from engine.together import together
from storage.digest import Digest


class Sources(Protocol):
    """See engine/ops/sources.py."""

    async def pin(self, op: FetchedSource) -> FetchedSource:
        """`op` with its digest or commit."""
        ...

    async def fetch(self, op: FetchedSource, vertex: str | None) -> Remote:
        """The ref of a pinned source, with its tree here."""
        ...


async def pin_graph(graph: Graph, sources: Sources, facts: Facts) -> tuple[Graph, Mapping[Op, Op]]:
    """`graph` with all sources pinned, each asked for once, all at the same time; and what became of each op.

    Raises VertexError for the first source that could not be pinned.
    """
    unpinned = {item.op: item for item in graph.vertices if isinstance(item.op, FetchedSource)}
    made = await together(_pin_or_lack(item, sources, facts) for item in unpinned.values())
    lacks = [item for item in made if isinstance(item, _Lack)]
    if lacks:
        raise VertexError(lacks[0].vertex, NotHere([missing for lack in lacks for missing in lack.error.missing]))
    ops = (item for item in made if not isinstance(item, _Lack))
    pinned: dict[Op, Op] = dict(zip(unpinned, ops, strict=True))
    return _with(graph, pinned), pinned


@dataclass(frozen=True, slots=True)
class _Lack:
    """A source that an offline build does not know."""

    vertex: Vertex
    error: NotHere


async def _pin_or_lack(item: Vertex, sources: Sources, facts: Facts) -> FetchedSource | _Lack:
    """One source; what an offline build does not know is no failure yet, as all that is missing is told at once."""
    try:
        return await _pin(item, sources, facts)
    except VertexError as failure:
        if isinstance(failure.cause, NotHere):
            return _Lack(item, failure.cause)
        raise


async def _pin(item: Vertex, sources: Sources, facts: Facts) -> FetchedSource:
    """One source, shown as a step of its own when somebody has to be asked."""
    op = item.op
    assert isinstance(op, FetchedSource)
    asks = not (op.commit if isinstance(op, GitSource) else op.digest)
    step = shown_step(facts, f"[internal] resolve {item.name}", f"resolve:{item.digest}") if asks else nullcontext()
    try:
        async with step:
            return await sources.pin(op)
    except RefledgerError as error:
        raise VertexError(item, error) from error


def _with(graph: Graph, ops: Mapping[Op, Op]) -> Graph:
    """`graph` with other ops; all digests follow."""
    renamed: dict[Digest, Digest] = {}
    vertices: dict[Digest, Vertex] = {}
    for old in graph.vertices:
        inputs = tuple(renamed[digest] for digest in old.inputs)
        new = vertex(ops.get(old.op, old.op), inputs, old.name, stage=old.stage, lines=old.lines)
        renamed[old.digest] = new.digest
        vertices.setdefault(new.digest, new)
    results = tuple(
        changed(
            result,
            vertex=renamed[result.vertex],
            history=tuple(changed(step, vertex=step.vertex and renamed[step.vertex]) for step in result.history),
        )
        for result in graph.results
    )
    return replace(graph, vertices=tuple(vertices.values()), results=results)
