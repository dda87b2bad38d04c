"""Runs a plan: independent branches at once, each vertex once, one failure cancels the rest.

Bytes that turn out to be lost are no failure as long as somebody can make them again: what does not stand on them runs
to its end, and the caller is told what was lost.

Invariant: for every VertexStarted there is exactly one of VertexCompleted, VertexFailed and VertexCancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from engine.errors import MaterializationError, RefledgerError, StepFailed
from engine.events import VertexCancelled, VertexCompleted, VertexFailed, VertexStarted
from engine.graph import Vertex, VertexError
from engine.ledger import Facts
from engine.ops.executor import Outcome
from engine.refs.ref import Remote
from engine.solver.plan import Plan
from storage.digest import Digest

Execute = Callable[[Vertex, tuple[Remote, ...], int], Awaitable[Outcome]]
"""`execute(vertex, inputs, attempt)`."""


class Loss(Exception):
    """`vertex` could not go on, as a layer that it stands on is gone, which `cause` tells of."""

    def __init__(self, vertex: Vertex, cause: MaterializationError) -> None:
        super().__init__(str(cause))
        self.vertex = vertex
        self.cause = cause


@dataclass(slots=True)
class Scheduler:
    """`jobs` steps at once; what only points (image sources, scratch, contexts) takes no slot. `recall` may know the
    result of a step now that its inputs are there; `recoverable`: can what was lost be made again?"""

    facts: Facts
    execute: Execute
    recall: Callable[[Vertex, tuple[Remote, ...]], Awaitable[Remote | None]]
    recoverable: Callable[[MaterializationError], bool]
    jobs: int
    _slots: asyncio.Semaphore = field(init=False)
    _attempts: dict[Digest, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.jobs)

    async def run(self, plan: Plan, refs: dict[Digest, Remote]) -> list[Loss]:
        """Execute `plan.run`. `refs`, by vertex, are results that need no execution; those of what was executed are put
        there. Returns what was lost: what stands on that has no result. May be called again with what is left then.

        Raises VertexError for the first vertex that fails, after all others have been stopped and tidied up.
        """
        tasks: dict[Digest, asyncio.Task[None]] = {}

        async def one(vertex: Vertex) -> None:
            needed = [tasks[digest] for digest in vertex.inputs if digest in tasks]
            if needed:
                await asyncio.gather(*(asyncio.shield(task) for task in needed))
            inputs = tuple(refs[digest] for digest in vertex.inputs if digest in refs)
            refs[vertex.digest] = await self._vertex(vertex, inputs)

        for vertex in plan.run:
            tasks[vertex.digest] = asyncio.ensure_future(one(vertex))
        left = set(tasks.values())
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_EXCEPTION)
                if any(not isinstance(task.exception(), Loss | None) for task in done):
                    break
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        errors = [error for task in tasks.values() if not task.cancelled() and (error := task.exception())]
        # A step that waited for the failed one carries the same error: the first in plan order is as good as any.
        for error in errors:
            if not isinstance(error, Loss):
                raise error
        return list(dict.fromkeys(error for error in errors if isinstance(error, Loss)))

    async def _vertex(self, vertex: Vertex, inputs: tuple[Remote, ...]) -> Remote:
        if not vertex.inputs:
            return await self._attempt(vertex, inputs)
        async with self._slots:
            try:
                known = await self.recall(vertex, inputs)
            except RefledgerError as error:
                raise VertexError(vertex, error) from error
            return known or await self._attempt(vertex, inputs)

    async def _attempt(self, vertex: Vertex, inputs: tuple[Remote, ...]) -> Remote:
        attempt = self._attempts[vertex.digest] = self._attempts.get(vertex.digest, 0) + 1
        started = VertexStarted(name=vertex.name, inputs=tuple(ref.id for ref in inputs), attempt=attempt)
        try:
            await self.facts.record(started, vertex=vertex.digest)  # a cancelled wait does not take it out of the log
            outcome = await self.execute(vertex, inputs, attempt)
        except asyncio.CancelledError:
            self.facts.post(VertexCancelled(name=vertex.name, attempt=attempt), vertex=vertex.digest)
            raise
        except RefledgerError as error:
            if isinstance(error, MaterializationError) and self.recoverable(error):
                cancelled = VertexCancelled(name=vertex.name, attempt=attempt, reason=error.what)
                self.facts.post(cancelled, vertex=vertex.digest)
                raise Loss(vertex, error) from error
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
