"""Steps whose layers lie in a real registry, and the real parts that export and import caches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cache.assemble import Chains
from engine.cache.chain import ChainKeys
from engine.cache.export import CacheExporter
from engine.cache.imports import CacheImports
from engine.exporters.move import Mover
from engine.graph import Graph, ImageLayer, ImageSource, Result, Run, Vertex, vertex
from engine.ledger import Ledger
from engine.refs.ref import Layer, Remote, of_image
from engine.solver.answers import Asking, Found, Solution
from engine.solver.cache import CacheKey, cache_key
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from storage.layout.source import WithLayouts
from storage.layout.target import WithLayoutTargets
from tests.engine.exporters.kit import NothingKnown, transfer_in
from tests.engine.refs.kit import Kit, kit
from tests.registry_fixture import RegistryProcess, push_image
from tools.cli.caches import read_sources, read_targets

CREATED = 1_700_000_000_123_456_789


@dataclass(frozen=True)
class Project:
    """A base image, a step on it in another stage, and two steps that the image is made of."""

    graph: Graph
    solution: Solution
    image: Mapping[str, Any]

    @property
    def steps(self) -> tuple[Vertex, ...]:
        """other, first, second."""
        return self.graph.vertices[1:]

    @property
    def layers(self) -> list[str]:
        """Digests of all blobs: base, other, first, second."""
        return [layer["digest"] for layer in self.image["layers"]]

    def asking(self) -> Asking:
        return Asking(self.graph, self.solution.keys, {}, {})


def project(registry: RegistryProcess, repository: str, *, salt: str = "") -> Project:
    """A project that was built, by build `b0`; its layers are in `repository`."""
    names = ("base", "other", "first", "second")
    image = push_image(registry.host, repository, [{name: (salt + name).encode() * 500} for name in names])
    provider = Provider.of(registry.host, repository)
    found = [
        Layer(Digest(one["diff_id"]), Descriptor.from_json(one), (provider,), created=CREATED * (number > 0) + number)
        for number, one in enumerate(image["layers"])
    ]
    base_layer = ImageLayer(Digest(image["layers"][0]["diff_id"]), Descriptor.from_json(image["layers"][0]))
    source = vertex(
        ImageSource("base", sha256(b"manifest"), "linux/amd64", provider, (base_layer,)), (), "FROM base"
    )
    other = vertex(Run(("other",), (), "/"), (source.digest,), "RUN other")
    first = vertex(Run(("first", salt), (), "/"), (source.digest,), "RUN first")
    second = vertex(Run(("second",), (), "/"), (first.digest,), "RUN second")
    graph = Graph((source, other, first, second), (Result(second.digest, "linux/amd64", {}),))
    base = of_image([base_layer], provider)
    refs = {
        source.digest: base,
        first.digest: Remote("b0-first-1", (*base.layers, found[2])),
        second.digest: Remote("b0-second-1", (*base.layers, found[2], found[3])),
    }
    known = {other.digest: Remote("b0-other-1", (*base.layers, found[1]))}
    keys: dict[Digest, CacheKey] = {}
    for one in graph.vertices:
        keys[one.digest] = cache_key(one.op, [keys[digest].digest for digest in one.inputs])
    by_content = cache_key(second.op, [sha256(b"what first made")])
    resolved = {**keys, second.digest: by_content}
    origins = {other.digest: "older"}
    return Project(graph, Solution(refs, known, keys, resolved, origins), image)


class Before:
    """A Past of two builds."""

    def started(self, build: str) -> int:
        return {"b0": 1000, "older": 500}.get(build, 0)

    def components(self, _key: Digest) -> tuple[tuple[str, str], ...]:
        return ()


@dataclass(frozen=True)
class Caches:
    """What one build has to export and import with."""

    parts: Kit

    def exporter(self, made: Project, chains: Chains | None = None) -> CacheExporter:
        ledger = Ledger(self.parts.root.log, "b0")
        source, target = WithLayouts(self.parts.registry), WithLayoutTargets(self.parts.registry, "b0")
        transfer = transfer_in(self.parts, NothingKnown(), "b0")
        return CacheExporter(
            "b0", transfer, Mover(source, target, transfer.reader, transfer.locks), target, ledger, Before(),
            made.graph, made.solution, None, chains or {},
        )  # fmt: skip

    async def export(self, made: Project, *targets: str, chains: Chains | None = None) -> list[str]:
        return await self.exporter(made, chains).export(read_targets(targets))

    async def load(self, made: Project, *sources: str, chains: ChainKeys | None = None) -> CacheImports:
        ledger = Ledger(self.parts.root.log, "b1")
        blobs = self.parts.materializer.blobs
        found = CacheImports(read_sources(sources), WithLayouts(self.parts.registry), blobs, ledger, chains)
        await found.load(made.asking())
        await ledger.flush()
        return found


@contextmanager
def caches(directory: Path) -> Iterator[Caches]:
    """The parts, in a root at `directory`; to be used in one event loop."""
    with kit(directory, build="b0", erofs=False) as parts:
        yield Caches(parts)


def found_for(made: Project, imports: CacheImports) -> dict[str, list[Found]]:
    """What is found for each step, by its name, under its key by definition."""
    return {
        one.name: list(imports.lookup(one.digest, made.solution.keys[one.digest].digest)) for one in made.steps
    }


def names(founds: Mapping[str, Sequence[Found]]) -> list[str]:
    """The steps that something is found for."""
    return [name for name, found in founds.items() if found]


