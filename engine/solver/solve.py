"""Graph to refs: keys, answers, plan, execution. The effects around the pure planner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import DiskError, RefledgerError
from engine.events import (
    CacheQueried,
    CacheRecorded,
    ContextKept,
    ContextScanned,
    VertexCached,
    VertexCancelled,
    VertexCompleted,
    VertexFailed,
    VertexStarted,
)
from engine.executor import Executor, Outcome, Task
from engine.grants import NOTHING, Offered, refusal
from engine.graph import ContextSource, Copy, GitSource, Graph, HttpSource, ImageSource, Run, Scratch, Vertex
from engine.ledger import Facts
from engine.ops.rules import source_of
from engine.ops.select import Selection, select
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Remote, layers_to_json, of_image, scratch
from engine.refs.source import source_ref
from engine.solver.cache import CacheKey, cache_key
from engine.solver.plan import Answer, Hit, Miss, Plan, plan
from engine.solver.scheduler import Scheduler, VertexError
from engine.together import in_thread
from storage.digest import Digest, canonical_json
from storage.interfaces import BlobStore, Provider
from storage.platform import host_platform, parse_platform

if TYPE_CHECKING:
    from engine.ops.emulation import Emulation  # only a step for another platform needs it

Contents = Mapping[Digest, Mapping[int | None, Digest]]
"""Digests of what was taken from contexts: by vertex, then by the mount's number, None for a COPY."""


class CacheLookup(Protocol):
    """What earlier builds recorded under a key: a projection answers."""

    def lookup(self, key: Digest) -> tuple[Remote, str] | None:
        """The ref and the build it came from."""
        ...

    def keeps(self, listing: Digest) -> bool:
        """Is there a ContextKept for the files of `listing`?"""
        ...

    def packs(self) -> Sequence[Digest]:
        """Packs of contents (ContextKept.packs) that are worth looking into, the newest first."""
        ...


@dataclass(slots=True)
class Solver:
    """Solves one graph for one build. `contexts`: the directories that some sources stand for, by vertex: what is
    copied from them is selected and hashed before anything runs, and counts by its content."""

    build: str
    facts: Facts
    executor: Executor
    materializer: Materializer
    cache: CacheLookup
    blobs: BlobStore
    contexts: Mapping[Digest, Path]
    jobs: int
    no_cache: bool = False
    epoch: int | None = None
    offered: Offered = NOTHING
    emulation: Callable[[], Emulation] | None = None

    async def solve(self, graph: Graph) -> Mapping[Digest, Remote]:
        """Refs by vertex, of everything that was needed. Raises VertexError, InputError, LogError."""
        selections, mounted, contents = await self._select(graph)
        keys = _keys(graph, contents, self.contexts)
        answers = self._ask(graph, keys)
        todo = plan(graph, answers)
        for vertex in todo.run:
            refused = refusal(vertex.op, self.offered) if isinstance(vertex.op, Run) else None
            if refused is not None:
                raise VertexError(vertex, refused)
        known = {vertex.digest: hit.ref for vertex, hit in todo.cached}
        self._tell_cached(graph, todo)
        for vertex, hit in todo.cached:  # a log of an earlier version does not say where the files stay
            await self._keep_all(vertex, selections, mounted, contents, hit.ref)
        # Scratch and contexts are nothing to wait for: one is empty, the other was read to make the keys.
        known |= {vertex.digest: scratch() for vertex in todo.run if isinstance(vertex.op, Scratch)}
        given = self.contexts
        await self._check_platforms(todo)
        run = tuple(item for item in todo.run if not isinstance(item.op, Scratch) and item.digest not in given)

        async def execute(vertex: Vertex, inputs: tuple[Remote, ...], attempt: int) -> Outcome:
            execution = f"{self.build}-{vertex.digest.short}-{attempt}"
            outcome = await self.executor.execute(
                Task(
                    vertex, execution, attempt, inputs, self._directory(vertex),
                    selection=selections.get(vertex.digest), epoch=self.epoch,
                    mounted=mounted.get(vertex.digest, {}), directories=self._directories(vertex),
                )
            )  # fmt: skip
            await self._keep_all(vertex, selections, mounted, contents, outcome.ref)
            if vertex.inputs:
                await self._remember(keys[vertex.digest], outcome.ref, vertex)
            return outcome

        return await Scheduler(self.facts, execute, self.jobs).run(replace(todo, run=run), known)

    async def _check_platforms(self, todo: Plan) -> None:
        """Raises VertexError, before anything runs, for the first command that no program of this machine can run."""
        host = host_platform()
        for vertex in todo.run:
            if not isinstance(vertex.op, Run) or not vertex.op.platform or self.emulation is None:
                continue
            wanted = parse_platform(vertex.op.platform)
            if (wanted.os, wanted.architecture) == (host.os, host.architecture):
                continue
            emulation = self.emulation()
            try:
                await asyncio.to_thread(emulation.require, vertex.op.platform)
            except RefledgerError as error:
                await self.facts.record(VertexStarted(name=vertex.name, inputs=()), vertex=vertex.digest)
                await self.facts.record(VertexFailed(name=vertex.name, error=str(error)), vertex=vertex.digest)
                raise VertexError(vertex, error) from error

    async def _select(
        self, graph: Graph
    ) -> tuple[dict[Digest, Selection], dict[Digest, dict[int, Selection]], Contents]:
        """Read what COPY, ADD and RUN --mount take from contexts: what to copy, what to mount by the mount's number,
        and the content parts of their keys, each by vertex."""
        found: dict[Digest, Selection] = {}
        mounted: dict[Digest, dict[int, Selection]] = {}
        contents: dict[Digest, dict[int | None, Digest]] = {}
        for source, uses in _context_uses(graph, self.contexts).items():
            context = graph.by_digest[source]
            self.facts.post(VertexStarted(name=context.name, inputs=()), vertex=source)
            for vertex, number, op in uses:
                selection = await self._select_one(context, vertex, op)
                if number is None:
                    found[vertex.digest] = selection
                else:
                    mounted.setdefault(vertex.digest, {})[number] = selection
                # The stored listing's digest is the content part: two keys agree when the listings do.
                listing = await asyncio.to_thread(self.blobs.put, selection.listing())
                contents.setdefault(vertex.digest, {})[number] = listing
                self.facts.post(
                    ContextScanned(
                        name=context.op.name if isinstance(context.op, ContextSource) else context.name,
                        listing=str(listing),
                        step=str(vertex.digest),
                        files=selection.files,
                        bytes=selection.bytes,
                    ),
                    vertex=source,
                )
            self.facts.post(VertexCompleted(name=context.name, outputs=()), vertex=source)
        inline = [v for v in graph.vertices if isinstance(v.op, Copy) and len(v.inputs) == 1]
        found |= {vertex.digest: Selection((), (), 0, 0) for vertex in inline}
        return found, mounted, contents

    async def _select_one(self, context: Vertex, vertex: Vertex, op: Copy) -> Selection:
        excludes = context.op.excludes if isinstance(context.op, ContextSource) else ()
        root, literal = self.contexts[context.digest], isinstance(vertex.op, Run)
        try:
            return await asyncio.to_thread(select, op, root, excludes, hash_files=True, literal=literal)
        except asyncio.CancelledError:
            self.facts.post(VertexCancelled(name=context.name), vertex=context.digest)
            raise
        except RefledgerError as error:
            await self.facts.record(VertexFailed(name=context.name, error=str(error)), vertex=context.digest)
            raise VertexError(vertex, error) from error  # the line at fault is the step's

    def _directory(self, vertex: Vertex) -> str:
        """The context that a Copy takes from, "" for other steps."""
        return next((str(self.contexts[digest]) for digest in vertex.inputs if digest in self.contexts), "")

    def _directories(self, vertex: Vertex) -> dict[int, str]:
        """The contexts that mounts of a Run take from, by the mount's number."""
        if not isinstance(vertex.op, Run):
            return {}
        taken = ((number, vertex.inputs[m.input]) for number, m in enumerate(vertex.op.mounts) if m.input >= 0)
        return {number: str(self.contexts[digest]) for number, digest in taken if digest in self.contexts}

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
                    key=str(key), outcome="hit", ref=answer.ref.id, origin_build=answer.origin_build,
                    components=str(key),  # stored before the record that was hit
                )  # fmt: skip
            else:
                # Stored though the step may fail or never run: a later build is compared with what this one asked for.
                components = self.blobs.put(canonical_json(keys[vertex.digest].to_json()))
                queried = CacheQueried(
                    key=str(key), outcome="miss", reason=answer.reason, components=str(components)
                )
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
            elif vertex.digest in skipped and isinstance(vertex.op, ImageSource | HttpSource | GitSource):
                op = vertex.op
                ref = of_image(op.layers, op.provider) if isinstance(op, ImageSource) else source_ref(op)
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

    async def _keep_all(
        self,
        vertex: Vertex,
        selections: Mapping[Digest, Selection],
        mounted: Mapping[Digest, Mapping[int, Selection]],
        contents: Contents,
        ref: Remote,
    ) -> None:
        """Say where the files that a step took from contexts stay; durable before its result can be a cache hit."""
        for number, listing in contents.get(vertex.digest, {}).items():
            if self.cache.keeps(listing):
                continue
            if number is None and isinstance(vertex.op, Copy):
                await self._keep(vertex, vertex.op, selections[vertex.digest], self._directory(vertex), listing, ref)
            elif number is not None:
                directory = self._directories(vertex)[number]
                await self._keep(vertex, None, mounted[vertex.digest][number], directory, listing, ref)

    async def _keep(
        self, vertex: Vertex, op: Copy | None, selection: Selection, directory: str, listing: Digest, ref: Remote
    ) -> None:
        from engine.ops.keep import pack_lost

        layer = ref.layers[-1].name if op is not None and ref.layers else ""
        before = self.cache.packs()
        try:
            packs = await in_thread(lambda: pack_lost(op, selection, Path(directory), self.blobs, before))
        except OSError as error:
            raise DiskError.of(error, "keeping the context") from error
        await self.facts.record(
            ContextKept(ref=ref.id, listing=str(listing), layer=layer, packs=tuple(map(str, packs))),
            vertex=vertex.digest,
        )

    async def _remember(self, key: CacheKey, ref: Remote, vertex: Vertex) -> None:
        components = await asyncio.to_thread(self.blobs.put, canonical_json(key.to_json()))
        await self.facts.record(
            CacheRecorded(
                key=str(key.digest), components=str(components), ref=ref.id, layers=tuple(layers_to_json(ref.layers))
            ),
            vertex=vertex.digest,
        )


def _context_uses(
    graph: Graph, contexts: Mapping[Digest, Path]
) -> dict[Digest, list[tuple[Vertex, int | None, Copy]]]:
    """Who takes what from each of `contexts`: the vertex, the number of its mount (None for a COPY), and what it takes
    as a COPY would."""
    uses: dict[Digest, list[tuple[Vertex, int | None, Copy]]] = {}
    for vertex in graph.vertices:
        wanted: list[tuple[int, int | None, Copy]] = []
        match vertex.op:
            case Copy() if len(vertex.inputs) > 1:  # else only inline files
                wanted.append((1, None, vertex.op))
            case Run(mounts=mounts):
                wanted += [(m.input, n, source_of(m, from_context=True)) for n, m in enumerate(mounts) if m.input >= 0]
        for index, number, op in wanted:
            source = vertex.inputs[index]
            if source in contexts:
                uses.setdefault(source, []).append((vertex, number, op))
    return uses


def _keys(graph: Graph, contents: Contents, contexts: Mapping[Digest, Path]) -> dict[Digest, CacheKey]:
    keys: dict[Digest, CacheKey] = {}
    for vertex in graph.vertices:
        inputs = [keys[digest] for digest in vertex.inputs if digest not in contexts]
        keys[vertex.digest] = cache_key(vertex.op, inputs, contents.get(vertex.digest))
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
