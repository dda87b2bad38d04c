"""Who knows a result, and whether it can be relied on: records of this root first, caches elsewhere second.

A hit is promised only when every layer of it is here or was just seen at a provider. When it turns out that it is not,
the next one who knows the key is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.events import CacheQueried, CacheRecorded, RemoteCreated
from engine.graph import Graph, ImageSource
from engine.ledger import Facts
from engine.record import changed
from engine.refs.materializer import Materializer
from engine.refs.presence import LOST
from engine.refs.ref import Layer, Remote, layers_to_json
from engine.solver.answers import CacheLookup, Found, Imports, Presence
from engine.solver.cache import CacheKey
from engine.solver.plan import Answer, Hit, Miss
from storage.digest import Digest, canonical_json
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Provider

EVICTED, NEVER_BUILT, NO_CACHE = "evicted", "never-built", "no-cache"


@dataclass(slots=True)
class Hits:
    """Answers for the steps of `graph`. With `no_cache` nobody is asked; `dry`: what others know is not taken over."""

    graph: Graph
    facts: Facts
    cache: CacheLookup
    imports: Imports | None
    presence: Presence
    materializer: Materializer
    blobs: BlobStore
    no_cache: bool = False
    dry: bool = False
    _candidates: dict[Digest, list[Found]] = field(default_factory=dict)
    _providers: Mapping[Digest, tuple[Provider, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._providers = _providers(self.graph)

    def answer(self, vertex: Digest, key: CacheKey) -> Answer:
        """The first result under `key` that can be had as far as is known here: nobody is asked for bytes."""
        if self.no_cache:
            return Miss(NO_CACHE)
        self._candidates[vertex] = self._known(vertex, key)
        return self._next(vertex, NEVER_BUILT)

    def instead(self, vertex: Digest, reason: str) -> Answer:
        """What to use for `vertex` now that its answer failed for `reason`."""
        self._candidates[vertex].pop(0)
        return self._next(vertex, reason)

    async def doubt(self, ref: Remote) -> str:
        """Why `ref` cannot be relied on (bytes-lost, provider-unreachable), "" when it can. Layers that an image of
        this very build lists are taken for granted, as those of every base image are."""
        absent = await self.presence.absent([layer for layer in ref.layers if self._doubtful(layer)])
        return next(iter(absent.values()), "")

    async def late(self, vertex: Digest, key: CacheKey) -> Found | None:
        """A result under the key by content, confirmed. Everything about it goes into the log."""
        answer = self.answer(vertex, key)
        while isinstance(answer, Hit) and (reason := await self.doubt(answer.found.ref)):
            answer = self.instead(vertex, reason)
        await self.tell(vertex, key, answer, by="content")
        return answer.found if isinstance(answer, Hit) else None

    async def tell(self, vertex: Digest, key: CacheKey, answer: Answer, *, by: str = "definition") -> None:
        """Put `answer` into the log, durably when it is a hit: from then on the build's claim to it can be seen. What a
        cache elsewhere knew is a remote and a record of this root from now on."""
        plaintext = canonical_json(key.to_json())
        if isinstance(answer, Miss):
            # Stored though the step may fail or never run: a later build is compared with what this one asked for.
            components = await asyncio.to_thread(self.blobs.put, plaintext)
            missed = CacheQueried(
                key=str(key.digest), outcome="miss", reason=answer.reason, components=str(components), by=by
            )
            self.facts.post(missed, vertex=vertex)
            return
        found = answer.found
        layers = tuple(layers_to_json(found.ref.layers))
        if found.importer:
            await asyncio.to_thread(self.blobs.put, plaintext)
        if found.importer and not self.dry:
            providers = dict.fromkeys(provider for layer in found.ref.layers for provider in layer.providers)
            remote = RemoteCreated(ref=found.ref.id, layers=layers, providers=tuple(p.to_json() for p in providers))
            self.facts.post(remote, vertex=vertex)
            recorded = CacheRecorded(
                key=str(key.digest), components=str(key.digest), ref=found.ref.id, layers=layers,
                resolved=found.resolved, importer=found.importer, origin_build=found.origin_build,
            )  # fmt: skip
            self.facts.post(recorded, vertex=vertex)
        hit = CacheQueried(
            key=str(key.digest), outcome="hit", ref=found.ref.id, origin_build=found.origin_build,
            components=str(key.digest), by=by, importer=found.importer,
        )  # fmt: skip  # its components were stored before the record that was hit
        await self.facts.record(hit, vertex=vertex)

    def _known(self, vertex: Digest, key: CacheKey) -> list[Found]:
        local = self.cache.lookup(key.digest)
        found = [local] if local else []
        if self.imports is not None:
            found += self.imports.lookup(vertex, key.digest)
        return [changed(one, ref=self._provided(one.ref)) for one in found]

    def _next(self, vertex: Digest, reason: str) -> Answer:
        candidates = self._candidates[vertex]
        while candidates:
            gone = [layer for layer in candidates[0].ref.layers if not self.materializer.obtainable(layer)]
            if not gone:
                return Hit(candidates[0])
            for layer in gone:
                self.materializer.kept.miss(layer)
            reason = EVICTED if any(self.cache.let_go(layer.name) for layer in gone) else LOST
            candidates.pop(0)
        return Miss(reason)

    def _doubtful(self, layer: Layer) -> bool:
        listed = layer.blob is not None and layer.blob.digest in self._providers
        return not listed and not self.materializer.here(layer)

    def _provided(self, ref: Remote) -> Remote:
        """`ref` with the providers that this build's images name first: fresher than what a record remembers."""

        def provided(layer: Layer) -> Layer:
            known = self._providers.get(layer.blob.digest, ()) if layer.blob else ()
            return replace(layer, providers=tuple(dict.fromkeys((*known, *layer.providers)))) if known else layer

        return Remote(ref.id, tuple(map(provided, ref.layers)))


def _providers(graph: Graph) -> dict[Digest, tuple[Provider, ...]]:
    """Where this build's own images have their layers."""
    known: dict[Digest, tuple[Provider, ...]] = {}
    for vertex in graph.vertices:
        if isinstance(vertex.op, ImageSource):
            for layer in vertex.op.layers:
                before = known.get(layer.blob.digest, ())
                known[layer.blob.digest] = tuple(dict.fromkeys((*before, vertex.op.provider)))
    return known
