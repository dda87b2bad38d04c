"""Graph to refs: keys, answers, plan, execution. The effects around the pure planner."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from engine.errors import RefledgerError
from engine.events import (
    CacheQueried,
    CacheRecorded,
    ContextScanned,
    VertexCached,
    VertexCancelled,
    VertexCompleted,
    VertexFailed,
    VertexStarted,
)
from engine.executor import Executor, Outcome, Task
from engine.graph import ContextSource, Copy, Graph, ImageSource, Run, Scratch, Vertex
from engine.ledger import Facts
from engine.ops.rules import mounted_files
from engine.ops.select import Selection, select
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote, layers_to_json, of_image, scratch
from engine.solver.cache import CacheKey, cache_key
from engine.solver.plan import Answer, Hit, Miss, Plan, plan
from engine.solver.scheduler import Scheduler, VertexError
from storage.digest import Digest, canonical_json
from storage.interfaces import BlobStore, Provider


class CacheLookup(Protocol):
    """What earlier builds recorded under a key: a projection answers."""

    def lookup(self, key: Digest) -> tuple[Remote, str] | None:
        """The ref and the build it came from."""
        ...


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Files taken from contexts and the digests of their listings, by vertex and number of the input."""

    files: dict[tuple[Digest, int], Selection]
    contents: dict[tuple[Digest, int], Digest]

    def selection(self, vertex: Vertex) -> Selection | None:
        """What a Copy takes; nothing when it has inline files only, None when it takes from no context."""
        if isinstance(vertex.op, Copy) and len(vertex.inputs) == 1:
            return Selection((), (), 0, 0)
        return self.files.get((vertex.digest, 1)) if isinstance(vertex.op, Copy) else None

    def mounted(self, vertex: Vertex) -> tuple[tuple[int, Selection], ...]:
        """What the mounts of a Run take, by input."""
        if not isinstance(vertex.op, Run):
            return ()
        return tuple((number, found) for (digest, number), found in self.files.items() if digest == vertex.digest)


@dataclass(slots=True)
class Solver:
    """Solves one graph for one build."""

    build: str
    facts: Facts
    executor: Executor
    materializer: Materializer
    cache: CacheLookup
    blobs: BlobStore
    context: str
    jobs: int
    no_cache: bool = False
    epoch: int | None = None

    async def solve(self, graph: Graph) -> Mapping[Digest, Remote]:
        """Refs by vertex, of everything that was needed. Raises VertexError, InputError, LogError."""
        chosen = await self._select(graph)
        keys = _keys(graph, chosen)
        answers = self._ask(graph, keys)
        todo = plan(graph, answers)
        known = {vertex.digest: hit.ref for vertex, hit in todo.cached}
        self._tell_cached(graph, todo)
        # Scratch and contexts are nothing to wait for: one is empty, the other was read to make the keys.
        known |= {vertex.digest: scratch() for vertex in todo.run if isinstance(vertex.op, Scratch)}
        run = tuple(vertex for vertex in todo.run if not isinstance(vertex.op, Scratch | ContextSource))

        async def execute(vertex: Vertex, inputs: tuple[Remote, ...], attempt: int) -> Outcome:
            execution = f"{self.build}-{vertex.digest.short}-{attempt}"
            outcome = await self.executor.execute(
                Task(
                    vertex, execution, attempt, inputs, self.context, epoch=self.epoch,
                    selection=chosen.selection(vertex), mounted=chosen.mounted(vertex),
                )
            )  # fmt: skip
            if vertex.inputs:
                await self._remember(keys[vertex.digest], outcome.ref, vertex)
            return outcome

        return await Scheduler(self.facts, execute, self.jobs).run(replace(todo, run=run), known)

    async def _select(self, graph: Graph) -> _Chosen:
        """Read what COPY, ADD and the mounts of RUN take from contexts: which files, and the content part of keys."""
        wanted: dict[Digest, list[tuple[Vertex, int, Copy]]] = {}
        for vertex in graph.vertices:
            for number, digest in enumerate(vertex.inputs):
                if number and isinstance(graph.by_digest[digest].op, ContextSource):
                    op = mounted_files(vertex.op, number) if isinstance(vertex.op, Run) else vertex.op
                    assert isinstance(op, Copy)
                    wanted.setdefault(digest, []).append((vertex, number, op))
        chosen = _Chosen({}, {})
        for source, takers in wanted.items():
            context = graph.by_digest[source]
            assert isinstance(context.op, ContextSource)
            excludes, root = context.op.excludes, Path(self.context)
            self.facts.post(VertexStarted(name=context.name, inputs=()), vertex=source)
            for vertex, number, op in takers:
                literal = isinstance(vertex.op, Run)
                try:
                    selection = await asyncio.to_thread(select, op, root, excludes, hash_files=True, literal=literal)
                except asyncio.CancelledError:
                    self.facts.post(VertexCancelled(name=context.name), vertex=source)
                    raise
                except RefledgerError as error:
                    await self.facts.record(VertexFailed(name=context.name, error=str(error)), vertex=source)
                    raise VertexError(vertex, error) from error  # the line at fault is the step's
                # The stored listing's digest is the content part: two keys agree when the listings do.
                listing = await asyncio.to_thread(self.blobs.put, selection.listing())
                chosen.files[vertex.digest, number] = selection
                chosen.contents[vertex.digest, number] = listing
                self.facts.post(
                    ContextScanned(
                        name=context.op.name, listing=str(listing), files=selection.files, bytes=selection.bytes
                    ),
                    vertex=source,
                )
            self.facts.post(VertexCompleted(name=context.name, outputs=()), vertex=source)
        return chosen

    def _ask(self, graph: Graph, keys: Mapping[Digest, CacheKey]) -> dict[Digest, Answer]:
        providers = _providers(graph)
        answers: dict[Digest, Answer] = {}
        for vertex in graph.vertices:
            if not vertex.inputs:
                continue
            key = keys[vertex.digest].digest
            answer = answers[vertex.digest] = self._answer(key, providers)
            if isinstance(answer, Hit):
                queried = CacheQueried(
                    key=str(key), outcome="hit", ref=answer.ref.id, origin_build=answer.origin_build
                )
            else:
                queried = CacheQueried(key=str(key), outcome="miss", reason=answer.reason)
            self.facts.post(queried, vertex=vertex.digest)
        return answers

    def _tell_cached(self, graph: Graph, todo: Plan) -> None:
        """In the graph's order: an image comes before the steps that stand on it."""
        hits = {vertex.digest: hit for vertex, hit in todo.cached}
        skipped = {vertex.digest for vertex in todo.skipped}
        for vertex in graph.vertices:
            hit = hits.get(vertex.digest)
            if hit is not None:
                cached = VertexCached(name=vertex.name, outputs=(hit.ref.id,), origin_build=hit.origin_build)
            elif vertex.digest in skipped and isinstance(vertex.op, ImageSource):
                ref = of_image(vertex.op.layers, vertex.op.provider)
                cached = VertexCached(name=vertex.name, outputs=(ref.id,))
            else:
                continue
            self.facts.post(cached, vertex=vertex.digest)

    def _answer(self, key: Digest, providers: Mapping[Digest, tuple[Provider, ...]]) -> Answer:
        if self.no_cache:
            return Miss("no-cache")
        found = self.cache.lookup(key)
        if found is None:
            return Miss("never-built")
        ref = Remote(found[0].id, tuple(_with(layer, providers) for layer in found[0].layers))
        return Hit(ref, found[1]) if self.materializer.obtainable(ref) else Miss("bytes-lost")

    async def _remember(self, key: CacheKey, ref: Remote, vertex: Vertex) -> None:
        components = await asyncio.to_thread(self.blobs.put, canonical_json(key.to_json()))
        await self.facts.record(
            CacheRecorded(
                key=str(key.digest), components=str(components), ref=ref.id, layers=tuple(layers_to_json(ref.layers))
            ),
            vertex=vertex.digest,
        )


def _keys(graph: Graph, chosen: _Chosen) -> dict[Digest, CacheKey]:
    keys: dict[Digest, CacheKey] = {}
    for vertex in graph.vertices:
        inputs = [keys[d] for d in vertex.inputs if not isinstance(graph.by_digest[d].op, ContextSource)]
        contents = {n: digest for (d, n), digest in chosen.contents.items() if d == vertex.digest}
        if isinstance(vertex.op, Run):
            keys[vertex.digest] = cache_key(vertex.op, inputs, mounted=contents)
        else:
            keys[vertex.digest] = cache_key(vertex.op, inputs, contents.get(1))
    return keys


def _providers(graph: Graph) -> dict[Digest, tuple[Provider, ...]]:
    """Where this build's own images have their layers: fresher than what a cache record remembers."""
    known: dict[Digest, tuple[Provider, ...]] = {}
    for vertex in graph.vertices:
        if isinstance(vertex.op, ImageSource):
            for layer in vertex.op.layers:
                before = known.get(layer.blob.digest, ())
                known[layer.blob.digest] = tuple(dict.fromkeys((*before, vertex.op.provider)))
    return known


def _with(layer: Layer, providers: Mapping[Digest, tuple[Provider, ...]]) -> Layer:
    if layer.blob is None:
        return layer
    return replace(
        layer, providers=tuple(dict.fromkeys((*providers.get(layer.blob.digest, ()), *layer.providers)))
    )
