"""Which steps go into a cache, and the config and facts that tell of them. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from engine.cache import facts as cache_facts
from engine.cache.chain import CacheChain, upwards
from engine.cache.config import CacheConfig, ConfigLayer, ConfigRecord, ConfigResult, Link, records_json
from engine.cache.facts import CacheFacts, KeyFacts
from engine.graph import Graph
from engine.record import Record
from engine.refs.ref import Layer, Ref, Remote
from engine.solver.answers import Solution
from engine.solver.cache import CacheKey, Component
from storage.digest import Digest, canonical_json

INLINE_FIELD = "moby.buildkit.cache.v0"
"""Where an image's config has BuildKit's inline cache: its records as JSON, in base64 as Go writes bytes."""
Chains = Mapping[Digest, Sequence[CacheChain]]


class Past(Protocol):
    """What was before this build, here or elsewhere."""

    def started(self, build: str) -> int:
        """When `build` started (UTC ns); 0: nobody knows."""
        ...

    def components(self, key: Digest) -> tuple[Component, ...]:
        """The plain text of `key`; empty: nobody knows."""
        ...


class Step(Record):
    """A result worth keeping: `keys` that name it (by definition, then by content, when that is another one), `layers`
    of its ref, bottom first, made by `build`."""

    vertex: Digest
    ref: str
    layers: tuple[Layer, ...]
    keys: tuple[CacheKey, ...]
    build: str


def steps_of(
    graph: Graph, solution: Solution, mode: Literal["min", "max"], build: str, past: Past
) -> Iterator[Step]:
    """The steps with known results; for `min` those that need no layer beside the images' own. `build`: this one."""
    refs: dict[Digest, Remote] = {**solution.known, **solution.refs}
    made_of = {layer.name for result in graph.results for layer in refs[result.vertex].layers}
    for vertex in graph.vertices:
        ref, key = refs.get(vertex.digest), solution.keys.get(vertex.digest)
        if not vertex.inputs or ref is None or key is None or not ref.layers:
            continue
        if mode == "min" and not made_of.issuperset(layer.name for layer in ref.layers):
            continue
        resolved = solution.resolved.get(vertex.digest, key)
        if not resolved.components:
            resolved = CacheKey(resolved.digest, past.components(resolved.digest))
        keys = (key,) if resolved.digest == key.digest else (key, resolved)
        origin = solution.origins.get(vertex.digest) or build
        yield Step(vertex.digest, ref.id, ref.layers, keys, origin)


def assemble(
    steps: Iterable[Step], chains: Chains, place: Callable[[Sequence[Layer]], ConfigResult]
) -> tuple[tuple[ConfigRecord, ...], dict[str, KeyFacts]]:
    """The records of `steps`, whose layers are packed, and our facts by key. `place` says where a chain of layers is
    found.

    A result is in one record only: BuildKit before 0.11 takes any that has it for the one it found. So it is recorded
    under BuildKit's name, the first of several, and a record under a key of ours links to that.
    """
    records = _Records()
    keys: dict[str, KeyFacts] = {}
    placed = [(step, place(step.layers)) for step in steps]
    for step, result in placed:
        for chain in chains.get(step.vertex, ())[:1]:
            records.give(records.index_of(chain), result)
    for step, result in placed:
        for number, key in enumerate(step.keys):
            records.add_key(str(key.digest), result)
            keys[str(key.digest)] = KeyFacts(
                ref=step.ref,
                build=step.build,
                resolved="" if number == len(step.keys) - 1 else str(step.keys[-1].digest),
                created=tuple(layer.created for layer in step.layers),
                components=key.components,
            )
    return records.made(), keys


@dataclass(slots=True)
class LayerTable:
    """The layers of a cache, each once for every layer it stands on."""

    layers: list[ConfigLayer] = field(default_factory=list)
    _known: dict[tuple[Digest, int], int] = field(default_factory=dict)

    def place(self, layers: Sequence[Layer]) -> ConfigResult:
        """Where the chain of packed `layers` is now."""
        index = -1
        for layer in layers:
            assert layer.blob is not None, "layers are packed before they are placed"
            entry = (layer.blob.digest, index)
            if entry not in self._known:
                self._known[entry] = len(self.layers)
                self.layers.append(ConfigLayer(layer.blob.digest, index))
            index = self._known[entry]
        return ConfigResult((index,), layers[-1].created)


def whole(steps: Iterable[Step], chains: Chains, past: Past) -> tuple[CacheConfig, CacheFacts]:
    """A cache of its own."""
    table = LayerTable()
    records, keys = assemble(steps, chains, table.place)
    return CacheConfig(tuple(table.layers), records), _facts(keys, past)


def inline(steps: Iterable[Step], chains: Chains, past: Past, image: Ref) -> tuple[int, dict[str, Any]]:
    """The cache that fits into the config of `image`: the number of records, and the fields. No fields where there is
    none."""
    positions = {layer.name: number for number, layer in reversed(list(enumerate(image.layers)))}
    names = [layer.name for layer in image.layers]

    def place(layers: Sequence[Layer]) -> ConfigResult:
        wanted = [layer.name for layer in layers]
        created = layers[-1].created
        if wanted == names[: len(wanted)]:
            return ConfigResult((len(wanted) - 1,), created)
        return ConfigResult(tuple(positions[name] for name in wanted), created, listed=True)

    known = [step for step in steps if all(layer.name in positions for layer in step.layers)]
    records, keys = assemble(known, chains, place)
    if not records:
        return 0, {}
    encoded = base64.b64encode(canonical_json(records_json(records))).decode()
    return len(records), {INLINE_FIELD: encoded, cache_facts.IMAGE_FIELD: _facts(keys, past).to_json()}


def _facts(keys: Mapping[str, KeyFacts], past: Past) -> CacheFacts:
    named = dict.fromkeys(one.build for one in keys.values() if one.build)
    return CacheFacts(keys, {build: started for build in named if (started := past.started(build))})


class _Records:
    """Records in the making: one for each digest with the same inputs."""

    def __init__(self) -> None:
        self._inputs: list[tuple[str, tuple[tuple[Link, ...], ...]]] = []
        self._results: list[list[ConfigResult]] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._chains: dict[CacheChain, int] = {}
        self._given: dict[tuple[bool, tuple[int, ...]], int] = {}

    def index(self, digest: str, inputs: tuple[tuple[Link, ...], ...]) -> int:
        """The record that is this."""
        key = (digest, tuple(tuple((link.record, link.selector) for link in links) for links in inputs))
        if key not in self._known:
            self._known[key] = len(self._inputs)
            self._inputs.append((digest, inputs))
            self._results.append([])
        return self._known[key]

    def index_of(self, chain: CacheChain) -> int:
        """The record that is `chain`, and those it links to."""
        for one in upwards(chain, self._chains):
            inputs = []
            for links in one.inputs:
                found = {(self._chains[source], selector) for source, selector in links}
                inputs.append(tuple(Link(record, selector) for record, selector in sorted(found)))
            self._chains[one] = self.index(one.digest, tuple(inputs))
        return self._chains[chain]

    def give(self, record: int, result: ConfigResult) -> None:
        """`record`, named by BuildKit, has `result`, unless it has another one or another one has it."""
        where = (result.listed, result.layers)
        if not self._results[record] and where not in self._given:
            self._results[record].append(result)
            self._given[where] = record

    def add_key(self, key: str, result: ConfigResult) -> None:
        """`result` is known under a key of ours."""
        given = self._given.get((result.listed, result.layers))
        if given is not None:
            self.index(key, ((Link(given),),))
        elif result not in self._results[(record := self.index(key, ()))]:
            self._results[record].append(result)

    def made(self) -> tuple[ConfigRecord, ...]:
        """All of them."""
        return tuple(
            ConfigRecord(digest, tuple(results), inputs)
            for (digest, inputs), results in zip(self._inputs, self._results, strict=True)
        )
