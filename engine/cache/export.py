"""Caches on their way out: layers, our facts, the config, then the manifest under its name (I11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.cache import assemble, facts, manifest
from engine.cache import config as cache_config
from engine.cache.assemble import Chains, Past, Step, steps_of
from engine.cache.imports import CONFIG_LIMIT
from engine.cache.spec import CacheTarget
from engine.errors import MaterializationError, RefledgerError, VerificationError
from engine.events import CacheExported, CacheExportFailed, ExportStarted
from engine.exporters.exporters import Built
from engine.exporters.move import Mover
from engine.exporters.reading import of_bytes
from engine.exporters.transfer import Transfer
from engine.graph import Graph
from engine.ledger import Facts, fitting
from engine.record import changed
from engine.refs.ref import Layer, Remote
from engine.solver.answers import Solution
from engine.together import together
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistryTarget


@dataclass(slots=True)
class CacheExporter:
    """Writes what one build knows. `chains`: how BuildKit names the steps, by vertex."""

    build: str
    transfer: Transfer
    mover: Mover
    target: RegistryTarget
    facts: Facts
    past: Past
    graph: Graph
    solution: Solution
    epoch: int | None
    chains: Chains = field(default_factory=dict)
    _inline: list[tuple[int, int]] = field(default_factory=list)

    def inline(self, built: Built, layers: Sequence[Layer]) -> Mapping[str, Any]:
        """The fields that an inline cache adds to the config of what was `built`, on packed `layers`."""
        steps = steps_of(self.graph, self.solution, "min", self.build, self.past)
        records, fields = assemble.inline(steps, self.chains, self.past, built.ref, layers)
        self._inline.append((records, sum(len(str(value)) for value in fields.values())))
        return fields

    async def export(self, targets: Sequence[CacheTarget]) -> list[str]:
        """Write all of `targets`, the images being where they should be; returns warnings. Raises what goes wrong with
        one whose errors are not to be ignored: RegistryError, MaterializationError, VerificationError, DiskError."""
        warnings: list[str] = []
        for target in targets:
            try:
                warnings += await (self._told(target) if target.kind == "inline" else self._write(target))
            except RefledgerError as error:
                if not target.ignore_error:
                    error.what = f"the cache could not be exported: {error.what}"
                    raise
                await self.facts.record(CacheExportFailed(target=target.written, error=str(error)))
                warnings.append(f"cache not exported to {target.written}: {error}")
        return warnings

    async def _told(self, target: CacheTarget) -> list[str]:
        if not self._inline:
            return [f"--cache-to {target.written}: no image was exported that it could go into"]
        records = sum(count for count, _ in self._inline)
        size = sum(size for _, size in self._inline)
        await self.facts.record(
            CacheExported(target=target.written, mode="min", digest="", records=records, bytes=size)
        )
        return []

    async def _write(self, target: CacheTarget) -> list[str]:
        assert target.reference is not None, "only an inline cache goes nowhere of its own"
        name = target.reference
        to = name.target
        wanted = list(steps_of(self.graph, self.solution, target.mode, self.build, self.past))
        steps = await self._packed(wanted, target)
        layers = {layer.blob.digest: layer for step in steps for layer in step.layers if layer.blob}
        digests = fitting([*map(str, layers)])
        started = await self.facts.record(
            ExportStarted(kind="cache", target=target.written, digest="", layers=digests)
        )
        moved, lost = await self._move(layers, to, target.written)
        kept = [step for step in steps if not any(layer.blob and layer.blob.digest in lost for layer in step.layers)]
        if not kept:
            return [f"--cache-to {target.written}: no step has a result that could be kept"]
        config, said = assemble.whole(kept, self.chains, self.past)
        config_blob = await self._put(to, cache_config.MEDIA_TYPE, cache_config.write(config))
        facts_blob = await self._put(to, facts.MEDIA_TYPE, facts.write(said, CONFIG_LIMIT))
        named = dict.fromkeys(layer.blob for layer in config.layers)
        described = [manifest.described(layers[digest], target.oci) for digest in named]
        media_type, data = manifest.write(
            config_blob, described, facts_blob, image_manifest=target.image_manifest, oci=target.oci
        )
        await self.target.put_manifest(to, name.tag or "latest", media_type, data)
        metadata = config_blob.size + facts_blob.size + len(data)
        await self.facts.record(
            CacheExported(
                target=target.written,
                mode=target.mode,
                digest=str(sha256(data)),
                records=len(config.records),
                bytes=metadata + sum(int(str(layer["bytes"])) for layer in moved),
                layers=fitting(moved),
                provider=name.provider.to_json() if target.kind == "registry" else None,
            ),
            cause=started,
        )
        if gone := len(wanted) - len(kept):
            why = f"left out {gone} of {len(wanted)} steps, whose layers nobody has any more"
            return [f"--cache-to {target.written}: {why}"]
        return []

    async def _packed(self, steps: Sequence[Step], target: CacheTarget) -> list[Step]:
        """`steps` for `target` with packed layers, each layer packed once. A step that no image needs, and that cannot
        be had any more, is left out."""
        makers: dict[str, tuple[Layer, Digest]] = {}
        for step in steps:  # in the graph's order, so that the first one that has a layer made it
            for layer in step.layers:
                makers.setdefault(layer.name, (layer, step.vertex))
        needed = {layer.name for ref in self.solution.refs.values() for layer in ref.layers}

        async def pack(layer: Layer, vertex: Digest) -> Layer | None:
            try:
                (packed,) = await self.transfer.pack(
                    Remote(layer.name, (layer,)), self.epoch, str(vertex), target.compression
                )
            except (MaterializationError, VerificationError):
                if layer.name in needed:
                    raise
                return None
            return packed

        packed = await together(pack(layer, vertex) for layer, vertex in makers.values())
        done = {name: layer for name, layer in zip(makers, packed, strict=True) if layer is not None}
        return [
            changed(step, layers=tuple(done[layer.name] for layer in step.layers))
            for step in steps
            if all(layer.name in done for layer in step.layers)
        ]

    async def _move(
        self, layers: Mapping[Digest, Layer], to: Provider, written: str
    ) -> tuple[list[dict[str, object]], set[Digest]]:
        """What was moved, and the blobs that nobody has any more."""
        lost: set[Digest] = set()

        async def move(digest: Digest, layer: Layer) -> dict[str, object] | None:
            try:
                return await self.mover.move(layer, to, written)
            except MaterializationError:  # of a provider: what the target says is a RegistryError
                lost.add(digest)
                return None

        moved = await together(move(digest, layer) for digest, layer in layers.items())
        return [one for one in moved if one is not None], lost

    async def _put(self, to: Provider, media_type: str, data: bytes) -> Descriptor:
        blob = Descriptor(media_type, sha256(data), len(data))
        if not await self.mover.source.exists(to, blob.digest):
            await self.target.upload(to, blob, lambda: of_bytes(data))
        return blob
