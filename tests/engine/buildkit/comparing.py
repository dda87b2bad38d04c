"""Our chains beside the records of a cache config (moby/buildkit cache/remotecache/v1/spec.go)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.buildkit.keys import chains
from engine.cache.chain import CacheChain
from engine.frontend.compile import FrontendOptions, compile_dockerfile
from engine.frontend.dockerignore import parse_dockerignore
from engine.graph import ContextSource, Copy, Graph, ImageLayer, ResolvedImage
from engine.ops.select import select
from engine.ops.selection import Selection
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider

Records = Sequence[Mapping[str, Any]]


def compiled(text: str, images: Mapping[str, Mapping[str, Any]], context: Path) -> Graph:
    """The graph of a Dockerfile on `images` (as registry_fixture.push_image describes them, by reference)."""

    async def resolve(wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        return {(name, platform): _resolved(name, platform, images[name]) for name, platform in wanted}

    ignore = parse_dockerignore((context / ".dockerignore").read_text())
    options = FrontendOptions(ignore=ignore, platform="linux/amd64", build_platform="linux/amd64")
    return asyncio.run(compile_dockerfile(text, options, resolve))


def _resolved(name: str, platform: str, image: Mapping[str, Any]) -> ResolvedImage:
    layers = tuple(
        ImageLayer(Digest(layer["diff_id"]), Descriptor(layer["mediaType"], Digest(layer["digest"]), layer["size"]))
        for layer in image["layers"]
    )
    digest = Digest(image["digest"])
    return ResolvedImage(
        name, digest, digest, platform, Provider.of("registry.invalid", "base"), layers, image["config"]
    )


def named(graph: Graph, context: Path) -> dict[Digest, tuple[CacheChain, ...]]:
    """The chains of a graph whose contexts are all `context`."""
    directories = {v.digest: context for v in graph.vertices if isinstance(v.op, ContextSource)}
    selections: dict[Digest, Selection] = {}
    for vertex in graph.vertices:
        if isinstance(vertex.op, Copy) and vertex.inputs[-1] in directories:
            source = graph.by_digest[vertex.inputs[-1]].op
            assert isinstance(source, ContextSource)
            selections[vertex.digest] = select(vertex.op, context, source.excludes, hash_files=True)
    return chains(graph, selections, directories)


def record_of(records: Records, names: Sequence[CacheChain]) -> int | None:
    """The number of the record that one of `names` matches: its digest is that, and of each input one link matches."""
    found: dict[CacheChain, int | None] = {}

    def match(chain: CacheChain) -> int | None:
        if chain not in found:
            found[chain] = next((n for n, record in enumerate(records) if fits(chain, record)), None)
        return found[chain]

    def fits(chain: CacheChain, record: Mapping[str, Any]) -> bool:
        inputs = record.get("inputs", [])
        return record["digest"] == chain.digest and len(inputs) == len(chain.inputs) and all(
            any(match(link) == there["link"] and selector == there.get("selector", "") for link, selector in links
                for there in theirs)
            for links, theirs in zip(chain.inputs, inputs, strict=True)
        )  # fmt: skip

    return next((number for number in map(match, names) if number is not None), None)


def compare(graph: Graph, names: Mapping[Digest, Sequence[CacheChain]], records: Records) -> list[str]:
    """What is not as it should be: a line for each step without its record, and each layer without a step."""
    wrong: list[str] = []
    seen: set[int] = set()
    for vertex in graph.vertices:
        if isinstance(vertex.op, ContextSource) or not (vertex.inputs or vertex.digest in names):
            continue
        number = record_of(records, names.get(vertex.digest, ()))
        if number is None:
            wrong.append(f"{vertex.name}: no record")
        else:
            seen.add(number)
    for number, record in enumerate(records):
        if record.get("layers") and number not in seen:
            wrong.append(f"record {number} ({record['digest']}): no step")
    return wrong

