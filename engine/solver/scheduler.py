"""Runs a plan: independent branches at once, each vertex once, one failure cancels the rest.

Invariant: for every VertexStarted there is exactly one of VertexCompleted, VertexFailed and VertexCancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from engine.errors import RefledgerError, StepFailed
from engine.events import VertexCancelled, VertexCompleted, VertexFailed, VertexStarted
from engine.executor import Outcome
from engine.graph import Vertex
from engine.ledger import Facts
from engine.refs.ref import Remote
from engine.solver.plan import Plan
from storage.digest import Digest

Execute = Callable[[Vertex, tuple[Remote, ...], int], Awaitable[Outcome]]
"""`execute(vertex, inputs, attempt)`."""


class VertexError(Exception):
    """The failure of `vertex`, as `cause`: raised for the first one only."""

    def __init__(self, vertex: Vertex, cause: RefledgerError) -> None:
        super().__init__(str(cause))
        self.vertex = vertex
        self.cause = cause


@dataclass(slots=True)
class Scheduler:
    """`jobs` steps at once; what only points (image sources, scratch, contexts) takes no slot."""

    facts: Facts
    execute: Execute
    jobs: int
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.jobs)

    async def run(self, plan: Plan, known: Mapping[Digest, Remote]) -> dict[Digest, Remote]:
        """Execute `plan.run`; `known` are results that need no execution. Returns all refs by vertex.

        Raises VertexError for the first vertex that fails, after all others have been stopped and tidied up.
        """
        refs = dict(known)
        tasks: dict[Digest, asyncio.Task[None]] = {}

        async def one(vertex: Vertex) -> None:
            needed = [tasks[digest] for digest in vertex.inputs if digest in tasks]
            if needed:
                await asyncio.gather(*(asyncio.shield(task) for task in needed))
            inputs = tuple(refs[digest] for digest in vertex.inputs if digest in refs)
            refs[vertex.digest] = await self._vertex(vertex, inputs)

        for vertex in plan.run:
            tasks[vertex.digest] = asyncio.ensure_future(one(vertex))
        try:
            if tasks:
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        failures = [error for task in tasks.values() if not task.cancelled() and (error := task.exception())]
        if failures:
            # A step that waited for the failed one carries the same error: the first in plan order is as good as any.
            raise failures[0]
        return refs

    async def _vertex(self, vertex: Vertex, inputs: tuple[Remote, ...]) -> Remote:
        if not vertex.inputs:
            return await self._attempt(vertex, inputs)
        async with self._slots:
            return await self._attempt(vertex, inputs)

    async def _attempt(self, vertex: Vertex, inputs: tuple[Remote, ...]) -> Remote:
        attempt = 1
        await self.facts.record(
            VertexStarted(name=vertex.name, inputs=tuple(ref.id for ref in inputs), attempt=attempt),
            vertex=vertex.digest,
        )
        try:
            outcome = await self.execute(vertex, inputs, attempt)
        except asyncio.CancelledError:
            self.facts.post(VertexCancelled(name=vertex.name, attempt=attempt), vertex=vertex.digest)
            raise
        except RefledgerError as error:
            status = error.status if isinstance(error, StepFailed) else None
            await self.facts.record(
                VertexFailed(name=vertex.name, error=str(error), exit_code=status, attempt=attempt),
                vertex=vertex.digest,
            )
            raise VertexError(vertex, error) from error
        self.facts.post(
            VertexCompleted(
                name=vertex.name, outputs=(outcome.ref.id,), exit_code=outcome.exit_code, attempt=attempt
            ),
            vertex=vertex.digest,
        )
        return outcome.ref
