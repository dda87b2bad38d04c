"""What is refused before anything runs, as it could only fail later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.errors import RefledgerError
from engine.events import VertexFailed, VertexStarted
from engine.grants import Offered, refusal
from engine.graph import Run, Vertex, VertexError
from engine.ledger import Facts
from storage.platform import host_platform, parse_platform

if TYPE_CHECKING:
    from engine.ops.emulation import Emulation  # only a step for another platform needs it


def check_grants(run: Sequence[Vertex], offered: Offered) -> None:
    """Raises VertexError for the first command that asks for more than was `offered`."""
    for vertex in run:
        refused = refusal(vertex.op, offered) if isinstance(vertex.op, Run) else None
        if refused is not None:
            raise VertexError(vertex, refused)


async def check_platforms(run: Sequence[Vertex], facts: Facts, emulation: Callable[[], Emulation]) -> None:
    """Raises VertexError for the first command that no program of this machine can run."""
    host = host_platform()
    for vertex in run:
        if not isinstance(vertex.op, Run) or not vertex.op.platform:
            continue
        wanted = parse_platform(vertex.op.platform)
        if (wanted.os, wanted.architecture) == (host.os, host.architecture):
            continue
        try:
            await asyncio.to_thread(emulation().require, vertex.op.platform)
        except RefledgerError as error:
            await facts.record(VertexStarted(name=vertex.name, inputs=()), vertex=vertex.digest)
            await facts.record(VertexFailed(name=vertex.name, error=str(error)), vertex=vertex.digest)
            raise VertexError(vertex, error) from error
