"""Work beside the graph's vertices that people see as a step: contexts are read, sources resolved, files taken in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.errors import RefledgerError
from engine.events import VertexCancelled, VertexCompleted, VertexFailed, VertexStarted
from engine.graph import VertexError
from engine.ledger import Facts


@asynccontextmanager
async def shown_step(facts: Facts, name: str, vertex: str) -> AsyncIterator[list[str]]:
    """What is done meanwhile is in the log as the step `name` at `vertex`, with its end, which there is one of however
    that comes. What is put into the list are its outputs."""
    facts.post(VertexStarted(name=name, inputs=()), vertex=vertex)
    outputs: list[str] = []
    try:
        yield outputs
    except asyncio.CancelledError:
        facts.post(VertexCancelled(name=name), vertex=vertex)
        raise
    except (RefledgerError, VertexError) as error:
        await facts.record(VertexFailed(name=name, error=str(error)), vertex=vertex)
        raise
    facts.post(VertexCompleted(name=name, outputs=tuple(outputs)), vertex=vertex)
