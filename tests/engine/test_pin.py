"""Outside sources become what they are now; who has to be asked for that is seen as a step."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import InputError
from engine.graph import FetchedSource, GitSource, Graph, HttpSource, Op, VertexError, vertex
from engine.pin import pin_graph
from engine.record import changed
from engine.refs.ref import Remote
from storage.digest import sha256
from tests.engine.solver.kit import Recorded

DIGEST = sha256(b"a")
KNOWN = (HttpSource("https://example.com/a", "a", DIGEST), GitSource("https://example.com/a.git", commit="1" * 40))
OPEN = (HttpSource("https://example.com/b", "b"), GitSource("https://example.com/b.git"))


class Answers:
    """Sources that give one digest and one commit for everything, but for files called `refused`."""

    async def pin(self, op: FetchedSource) -> FetchedSource:
        if isinstance(op, GitSource):
            return changed(op, commit="1" * 40)
        if isinstance(op, HttpSource) and op.filename == "refused":
            raise InputError("no such file")
        return changed(op, digest=DIGEST)

    async def fetch(self, op: FetchedSource, vertex: str | None) -> Remote:
        raise AssertionError("to pin is not to fetch")


def graph(*ops: Op) -> Graph:
    return Graph(tuple(vertex(op, (), f"ADD {number}") for number, op in enumerate(ops)), ())


def test_only_a_source_that_is_not_pinned_yet_is_shown_as_a_step_of_its_own() -> None:
    facts = Recorded()
    pinned, ops = asyncio.run(pin_graph(graph(*KNOWN, *OPEN), Answers(), facts))
    assert facts.started() == ["[internal] resolve ADD 2", "[internal] resolve ADD 3"]
    assert [item.op for item in pinned.vertices[:2]] == list(KNOWN)
    assert [ops[op] for op in OPEN] == [item.op for item in pinned.vertices[2:]]
    assert [getattr(item.op, "digest", None) or getattr(item.op, "commit", None) for item in pinned.vertices[2:]] == [
        DIGEST,
        "1" * 40,
    ]


def test_the_step_that_a_source_belongs_to_is_named_when_it_cannot_be_pinned() -> None:
    facts = Recorded()
    wanted = graph(OPEN[0], HttpSource("https://example.com/refused", "refused"))
    with pytest.raises(VertexError, match="no such file") as caught:
        asyncio.run(pin_graph(wanted, Answers(), facts))
    assert caught.value.vertex == wanted.vertices[1]
