"""Graph to refs: keys, answers, plan, execution, and what to do when bytes that were relied on are gone.

I8: when a layer cannot be had after all, every result that holds it is revoked, and what is needed of those is made
again, from the lowest one up: a step's layer is a difference to what it stood on, and fits nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import MaterializationError, RefledgerError
from engine.events import CacheRecorded, HitRevoked, VertexCached
from engine.grants import NOTHING, Offered
from engine.graph import Graph, ImageSource, LayerSource, Scratch, Vertex
from engine.ledger import Facts
from engine.offline.missing import Missing, NotHere, blob_name
from engine.ops.executor import Executor, Outcome
from engine.refs.materializer import Materializer
from engine.refs.presence import LOST, UNREACHABLE
from engine.refs.ref import Remote, layers_to_json, scratch
from engine.refs.source import of_source
from engine.solver.answers import Asking, CacheLookup, Found, Imports, Presence, Solution
from engine.solver.cache import CacheKey
from engine.solver.contexts import Taken
from engine.solver.hits import Hits
from engine.solver.keys import Keys
from engine.solver.plan import Answer, Hit, Miss, Plan, plan
from engine.solver.refused import check_grants, check_platforms
from engine.solver.scheduler import Scheduler
from engine.together import COLLECT, locked
from storage.digest import Digest, canonical_json
from storage.interfaces.blobs import BlobStore

if TYPE_CHECKING:
    from engine.ops.emulation import Emulation  # only a step for another platform needs it

REVOCATIONS = 3
"""How often the result of one vertex may be lost in a build."""
NAMED = 500
"""Vertices that one HitRevoked names at most, so that it fits into an event."""
Lacking = Callable[[Graph, Plan], Awaitable[Sequence[Missing]]]
"""What a plan needs on this disk and does not have."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What would be done. `unsure`: vertices that would run unless they turn out to be known by what they take."""

    plan: Plan
    unsure: frozenset[Digest]


@dataclass(slots=True)
class Solver:
    """Solves one graph for one build. `contexts`: the directories that some sources stand for, by vertex: what is
    copied from them is selected and hashed before anything runs, and counts by its content; `lacking`: for a build that
    may ask nobody."""

    build: str
    facts: Facts
    executor: Executor
    materializer: Materializer
    cache: CacheLookup
    presence: Presence
    blobs: BlobStore
    contexts: Mapping[Digest, Path]
    jobs: int
    no_cache: bool = False
    epoch: int | None = None
    offered: Offered = NOTHING
    emulation: Callable[[], Emulation] | None = None
    imports: Imports | None = None
    lacking: Lacking | None = None
    _graph: Graph = field(init=False)
    _taken: Taken = field(init=False)
    _keys: Keys = field(init=False)
    _hits: Hits = field(init=False)
    _scheduler: Scheduler = field(init=False)
    _answers: dict[Digest, Answer] = field(default_factory=dict)
    _refs: dict[Digest, Remote] = field(default_factory=dict)
    _revoked: dict[Digest, int] = field(default_factory=dict)

    async def solve(self, graph: Graph) -> Solution:
        """The results of `graph`. Raises VertexError, InputError, LogError, and NotHere when the plan is `lacking`
        something that nobody may be asked for."""
        await self._prepare(graph)
        async with self._claiming():
            todo, lacks = await self._ask()
            if lacks:
                raise NotHere(lacks)
            check_grants(todo.run, self.offered)
            self._tell_cached(todo)
        for vertex, found in todo.cached:  # a log of an earlier version does not say where the files stay
            await self._taken.keep(vertex, found.ref)
        if self.emulation is not None:
            await check_platforms(todo.run, self.facts, self.emulation)
        return await self._settle(todo)

    async def check(self, graph: Graph) -> Checked:
        """What `solve` would do with `graph`, as far as that is known before anything runs. Raises what it raises,
        but NotHere."""
        await self._prepare(graph, dry=True)
        async with self._claiming():
            todo, _ = await self._ask()
            checked = await self._foresee(todo)
            check_grants(checked.plan.run, self.offered)
            self._tell_cached(checked.plan)
        return checked

    async def _prepare(self, graph: Graph, *, dry: bool = False) -> None:
        """What is asked of the cache."""
        self._graph = graph
        self._taken = Taken(self.contexts, self.facts, self.blobs, self.cache)
        self._scheduler = Scheduler(self.facts, self._execute, self._recall, self._recoverable, self.jobs)
        self._hits = Hits(
            graph, self.facts, self.cache, self.imports, self.presence, self.materializer, self.blobs,
            self.no_cache, dry,
        )  # fmt: skip
        await self._taken.read(graph)
        self._keys = Keys(self.contexts, self._taken.contents)
        self._keys.define(graph)
        if self.imports is not None:
            await self.imports.load(Asking(graph, self._keys.defined, self._taken.selections, self._taken.mounted))

    async def recover(self, error: MaterializationError) -> Solution:
        """The results anew, after an export found that one of them cannot be had. Raises `error` when it cannot be made
        again, and what `solve` raises."""
        if not self._recoverable(error):
            raise error
        return await self._settle(await self._revoke([error]))

    # ------------------------------------------------------------ deciding

    async def _ask(self) -> tuple[Plan, Sequence[Missing]]:
        """Answers for all steps, of which those that the plan relies on are confirmed; all of them are in the log. With
        what the plan lacks here, when nobody may be asked for it."""
        for vertex in self._graph.vertices:
            if vertex.inputs:
                self._answers[vertex.digest] = self._hits.answer(vertex.digest, self._keys.defined[vertex.digest])
        todo, lacks = await self._from_here(await self._plan())
        for digest, answer in self._answers.items():
            await self._hits.tell(digest, self._keys.defined[digest], answer)
        return todo, lacks

    async def _from_here(self, todo: Plan) -> tuple[Plan, Sequence[Missing]]:
        """A plan that takes nothing from elsewhere, if nobody may be asked: what lies there is made again where that
        can be done with what is here. Where it cannot, `todo`, and what it lacks."""
        lacks = first = await self.lacking(self._graph, todo) if self.lacking is not None else ()
        before, plan_before = dict(self._answers), todo
        while lacks and self.lacking is not None:
            gone = {item.name for item in lacks}
            again = [vertex for vertex, found in todo.used if gone.intersection(map(blob_name, found.ref.layers))]
            if not again:
                self._answers = before
                return plan_before, first
            for vertex in again:
                self._answers[vertex.digest] = self._hits.instead(vertex.digest, UNREACHABLE)
            todo = await self._plan()
            lacks = await self.lacking(self._graph, todo)
        return todo, ()

    async def _foresee(self, todo: Plan) -> Checked:
        """`todo` with what keys by content find that need nothing to be read. What a COPY takes of another result has
        to be read, so that one is `unsure`, and so is what stands on it."""
        unsure: set[Digest] = set()
        for vertex in todo.run if not self.no_cache else ():
            if self._keys.takes_of_a_result(vertex) or unsure.intersection(vertex.inputs):
                unsure.add(vertex.digest)
            elif vertex.inputs:
                key = self._keys.resolve(vertex, None, self._answers)
                if self._keys.differ(vertex) and (found := await self._hits.late(vertex.digest, key)):
                    self._answers[vertex.digest] = Hit(found)
        return Checked(await self._plan(), frozenset(unsure))

    async def _plan(self) -> Plan:
        while True:
            todo = plan(self._graph, self._answers, self._refs)
            doubts = await asyncio.gather(*(self._hits.doubt(found.ref) for _, found in todo.used))
            bad = [(vertex, doubt) for (vertex, _), doubt in zip(todo.used, doubts, strict=True) if doubt]
            if not bad:
                return todo
            for vertex, doubt in bad:
                self._answers[vertex.digest] = self._hits.instead(vertex.digest, doubt)

    def _tell_cached(self, todo: Plan) -> None:
        """In the graph's order: an image comes before the steps that stand on it."""
        hits = {vertex.digest: found for vertex, found in todo.cached}
        skipped = {vertex.digest for vertex in todo.skipped}
        for vertex in self._graph.vertices:
            found = hits.get(vertex.digest)
            if found is not None:
                cached = VertexCached(name=vertex.name, outputs=(found.ref.id,), origin_build=found.origin_build)
            elif vertex.digest in skipped and (ref := of_source(vertex.op)) is not None:
                cached = VertexCached(name=vertex.name, outputs=(ref.id,))
            else:
                continue
            self.facts.post(cached, vertex=vertex.digest)

    @asynccontextmanager
    async def _claiming(self) -> AsyncIterator[None]:
        """Nothing is removed between an answer and the fact that says it is used."""
        async with locked(self.materializer.locks, COLLECT, shared=True):
            yield

    # ------------------------------------------------------------ doing

    async def _settle(self, todo: Plan) -> Solution:
        """Run what is to be done, and what has to be done again."""
        while True:
            self._refs |= {vertex.digest: found.ref for vertex, found in todo.used}
            # Scratch and contexts are nothing to wait for: one is empty, the other was read to make the keys.
            self._refs |= {vertex.digest: scratch() for vertex in todo.run if isinstance(vertex.op, Scratch)}
            idle = [item for item in todo.run if isinstance(item.op, Scratch) or item.digest in self.contexts]
            run = tuple(item for item in todo.run if item not in idle)
            losses = await self._scheduler.run(replace(todo, run=run), self._refs)
            if not losses:
                return self._solution()
            todo = await self._revoke([loss.cause for loss in losses])

    def _solution(self) -> Solution:
        hits = {digest: answer.found for digest, answer in self._answers.items() if isinstance(answer, Hit)}
        return Solution(
            refs=self._refs,
            known={**{digest: found.ref for digest, found in hits.items()}, **self._refs},
            keys=self._keys.defined,
            resolved={
                **{digest: CacheKey(Digest(one.resolved), ()) for digest, one in hits.items() if one.resolved},
                **self._keys.resolved,
            },
            origins={digest: found.origin_build for digest, found in hits.items()},
        )

    async def _recall(self, vertex: Vertex, inputs: tuple[Remote, ...]) -> Remote | None:
        """The result of a step that its key by content finds, now that its inputs are there."""
        task = self._taken.task(self.build, vertex, inputs, 0, self.epoch)
        content = await self.executor.content(task) if self._keys.takes_of_a_result(vertex) else None
        key = self._keys.resolve(vertex, content, self._answers)
        if self.no_cache or vertex.digest in self._revoked or not self._keys.differ(vertex):
            return None
        async with self._claiming():
            found = await self._hits.late(vertex.digest, key)
            if found is None:
                return None
            self._answers[vertex.digest] = Hit(found)
            cached = VertexCached(name=vertex.name, outputs=(found.ref.id,), origin_build=found.origin_build)
            self.facts.post(cached, vertex=vertex.digest)
            await self._record(vertex, self._keys.defined[vertex.digest], found.ref, found)
        return found.ref

    async def _execute(self, vertex: Vertex, inputs: tuple[Remote, ...], attempt: int) -> Outcome:
        try:
            task = self._taken.task(self.build, vertex, inputs, attempt, self.epoch)
            outcome = await self.executor.execute(task)
        except RefledgerError:
            with suppress(RefledgerError):  # reason: why the step failed matters more than that it cannot be replayed
                await self._taken.keep_failed(vertex, inputs[0] if inputs else None)
            raise
        await self._taken.keep(vertex, outcome.ref)
        if vertex.inputs:
            key = self._keys.resolve(vertex, outcome.content, self._answers)
            if self._keys.differ(vertex):
                await self._record(vertex, key, outcome.ref)
            await self._record(vertex, self._keys.defined[vertex.digest], outcome.ref)
        return outcome

    async def _record(self, vertex: Vertex, key: CacheKey, ref: Remote, known: Found | None = None) -> None:
        """`ref` is what `key` names from now on, as others `known` it."""
        components = await asyncio.to_thread(self.blobs.put, canonical_json(key.to_json()))
        resolved = self._keys.resolved[vertex.digest].digest
        await self.facts.record(
            CacheRecorded(
                key=str(key.digest), components=str(components), ref=ref.id, layers=tuple(layers_to_json(ref.layers)),
                resolved="" if resolved == key.digest else str(resolved),
                origin_build=known.origin_build if known else "", importer=known.importer if known else "",
            ),
            vertex=vertex.digest,
        )  # fmt: skip

    # ------------------------------------------------------------ losses

    def _used(self, vertex: Vertex) -> Remote | None:
        """The result of `vertex` as it is used now. An image is what its manifest lists, wanted or not."""
        answer = self._answers.get(vertex.digest)
        if isinstance(vertex.op, ImageSource | LayerSource):
            return of_source(vertex.op)
        return self._refs.get(vertex.digest) or (answer.found.ref if isinstance(answer, Hit) else None)

    def _holders(self, layer: str) -> list[tuple[Vertex, Remote]]:
        """Vertices whose result holds `layer`, and that."""
        used = ((vertex, ref) for vertex in self._graph.vertices if (ref := self._used(vertex)))
        return [(vertex, ref) for vertex, ref in used if any(item.name == layer for item in ref.layers)]

    def _recoverable(self, error: MaterializationError) -> bool:
        """Can what was lost be made again? A layer of an image or of a file cannot, and a full disk is no loss."""
        holders = self._holders(error.layer) if error.layer and error.kind != "disk" else []
        if any(isinstance(vertex.op, ImageSource | LayerSource) for vertex, _ in holders):
            return False
        return bool(holders) and all(self._revoked.get(vertex.digest, 0) < REVOCATIONS for vertex, _ in holders)

    async def _revoke(self, losses: Sequence[MaterializationError]) -> Plan:
        """Forget every result that holds what was lost, and plan anew."""
        revoked: list[tuple[MaterializationError, Remote, set[Digest]]] = []
        for error in losses:
            holders = self._holders(error.layer)
            if not holders:
                continue  # another loss took them along
            revoked.append((error, holders[0][1], {vertex.digest for vertex, _ in holders}))
            for vertex, _ in holders:
                self._refs.pop(vertex.digest, None)
                if vertex.inputs:
                    self._answers[vertex.digest] = Miss(LOST)
                self._revoked[vertex.digest] = self._revoked.get(vertex.digest, 0) + 1
        async with self._claiming():
            todo = await self._plan()
            for error, ref, digests in revoked:
                again = [vertex.digest for vertex in todo.run if vertex.digest in digests]
                attempt = max((self._revoked[digest] for digest in again), default=1)
                await tell_revoked(self.facts, error, ref, again, attempt)
        return todo


async def tell_revoked(
    facts: Facts, error: MaterializationError, ref: Remote, again: Sequence[Digest], attempt: int,
    vertex: Digest | None = None,
) -> None:  # fmt: skip
    """Say that `ref` cannot be used, as `error` tells of one of its layers, for the `attempt`th time: one event, or as
    many as it takes to name all vertices that are made `again`; of the first of them, or of `vertex`."""
    layer = next(item for item in ref.layers if item.name == error.layer)
    for start in range(0, len(again) or 1, NAMED):
        part = again[start : start + NAMED]
        fact = HitRevoked(
            ref=ref.id,
            digest=str(layer.blob.digest) if layer.blob else layer.name,
            reexecuted=tuple(map(str, part)),
            attempt=attempt,
            provider=layer.providers[0].to_json() if layer.providers else None,
            error=str(error),
        )
        await facts.record(fact, vertex=vertex or (part[0] if part else None))
