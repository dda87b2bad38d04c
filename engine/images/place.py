"""Images placed in a repository with all they need: indexes down to their blobs, of any artifact type.

Two steps, as a log must be able to say what will be read before any of it is (I2): `gather` reads manifests, `place`
moves. Order (I11): layers, configs, manifests, the indexes above them. Tags are the caller's, and last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import VerificationError
from engine.exporters.move import Mover
from engine.images.read import ImageReader, Manifest
from engine.refs.kept import Known
from engine.refs.ref import Layer
from engine.together import together
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider
from storage.media_types import ARTIFACT, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST

MANIFEST_TYPES = frozenset({MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST, ARTIFACT, ""})
"""What an index lists beside blobs (which BuildKit's caches list); one that does not say is a manifest."""
PARALLEL = 8
"""Manifests that are read, or put, at once."""
DEPTH_LIMIT, COUNT_LIMIT = 8, 5000
"""Indexes in indexes, and manifests in all: whoever wrote them must not keep us busy for ever."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A manifest (or a blob, as the media type says), and who has it and all it needs, the first one asked first."""

    top: Descriptor
    providers: tuple[Provider, ...]


@dataclass(frozen=True, slots=True)
class Cargo:
    """All that has to be somewhere: `manifests` before those that list them; each thing once."""

    manifests: tuple[Manifest, ...]
    layers: tuple[Layer, ...]
    configs: tuple[Layer, ...]

    def without(self, digest: Digest) -> Cargo:
        """All but the manifest `digest`."""
        return replace(self, manifests=tuple(one for one in self.manifests if one.digest != digest))


@dataclass(slots=True)
class Placer:
    """Puts images where they are not yet."""

    images: ImageReader
    mover: Mover
    known: Known
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))

    async def gather(self, wanted: Sequence[Wanted], target: Provider) -> Cargo:
        """What `target` must have to have all of `wanted`; nothing for what it has itself. Reads manifests only. Raises
        RegistryError, VerificationError, DiskError."""
        trees = _Trees(self)
        there = target.coordinates
        missing = [item for item in wanted if there not in {provider.coordinates for provider in item.providers}]
        await together(trees.read(item.top, item.providers, 0) for item in missing)
        return trees.cargo(missing)

    async def place(self, cargo: Cargo, target: Provider, name: str) -> list[dict[str, object]]:
        """Have all of `cargo` at `target`; returns what `Exported.layers` says of the layers. `name`: what is written
        there, for progress. Raises RegistryError, MaterializationError, VerificationError."""
        moved = await together(self.mover.move(layer, target, name) for layer in cargo.layers)
        await together(self.mover.move(config, target, name) for config in cargo.configs)
        await together(self._put(one, target) for one in cargo.manifests if not one.is_index)
        for one in cargo.manifests:
            if one.is_index:
                await self._put(one, target)
        return moved

    async def _put(self, manifest: Manifest, target: Provider) -> None:
        async with self._slots:
            await self.mover.target.put_manifest(target, manifest.digest, manifest.media_type, manifest.data)

    async def manifest(self, digest: Digest, provider: Provider) -> Manifest:
        """Read one, not too many at once."""
        async with self._slots:
            return await self.images.manifest(provider, digest, f"{provider}@{digest}")

    def layer(self, blob: Descriptor, providers: Sequence[Provider]) -> Layer:
        """The blob with all who are known to have it: some may be nearer to where it goes."""
        known = self.known.providers(blob.digest)
        return Layer(blob=blob, providers=tuple(dict.fromkeys((*providers, *known))))


def descriptors(fields: Mapping[str, Any], key: str, where: str) -> list[tuple[Descriptor, Mapping[str, Any]]]:
    """The descriptors that a manifest lists as `key` (`layers`, `manifests`, or the one `config`), each with all its
    fields. Raises VerificationError."""
    listed = fields.get(key) or []
    items = listed if isinstance(listed, list) else [listed]
    try:
        if not all(isinstance(item.get("annotations") or {}, dict) for item in items):
            raise TypeError("annotations are no object")
        return [(Descriptor.from_json(item), item) for item in items]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(f"the manifest is malformed: {key} lists what is no descriptor", where=where) from error


def is_elsewhere(fields: Mapping[str, Any]) -> bool:
    """Is the layer one that registries need not have (foreign, non-distributable), as it says where else it is?"""
    kind = str(fields.get("mediaType"))
    return bool(fields.get("urls")) and (".foreign." in kind or ".nondistributable." in kind)


class _Trees:
    """Manifests with what they list, read from the top down."""

    def __init__(self, placer: Placer) -> None:
        self._placer = placer
        self._count = 0
        self._read: dict[Digest, Manifest] = {}
        self._holders: dict[Digest, dict[Provider, None]] = {}

    async def read(self, top: Descriptor, providers: Sequence[Provider], depth: int) -> None:
        self._holders.setdefault(top.digest, {}).update(dict.fromkeys(providers))
        if top.media_type not in MANIFEST_TYPES:
            return
        where = f"{providers[0]}@{top.digest}"
        self._count += 1
        if depth > DEPTH_LIMIT or self._count > COUNT_LIMIT:
            raise VerificationError("too many manifests below one index, or too deep", where=where)
        manifest = await self._placer.manifest(top.digest, providers[0])
        self._read[top.digest] = manifest
        for key in ("config", "layers", "blobs"):
            for blob, _ in descriptors(manifest.fields, key, where):
                self._holders.setdefault(blob.digest, {}).update(dict.fromkeys(providers))
        below = descriptors(manifest.fields, "manifests", where)
        await together(self.read(child, providers, depth + 1) for child, _ in below)

    def cargo(self, tops: Sequence[Wanted]) -> Cargo:
        """All that was read, in the order in which it is listed, however the answers came."""
        manifests: dict[Digest, Manifest] = {}
        layers: dict[Digest, Descriptor] = {}
        configs: dict[Digest, Descriptor] = {}
        for top in tops:
            for blob, manifest in self._walk(top.top):
                if manifest is None:
                    layers.setdefault(blob.digest, blob)
                    continue
                manifests.setdefault(manifest.digest, manifest)
                for key in ("layers", "blobs"):
                    for layer, fields in descriptors(manifest.fields, key, ""):
                        if not is_elsewhere(fields):
                            layers.setdefault(layer.digest, layer)
                for config, _ in descriptors(manifest.fields, "config", ""):
                    configs.setdefault(config.digest, config)
        return Cargo(
            tuple(manifests.values()), self._layers(layers.values()),
            self._layers(config for config in configs.values() if config.digest not in layers),
        )  # fmt: skip

    def _walk(self, top: Descriptor) -> Iterator[tuple[Descriptor, Manifest | None]]:
        """What is below `top`, then itself; with its manifest, unless it is a blob."""
        manifest = self._read.get(top.digest)
        if manifest is not None:
            for child, _ in descriptors(manifest.fields, "manifests", ""):
                yield from self._walk(child)
        yield top, manifest

    def _layers(self, blobs: Iterable[Descriptor]) -> tuple[Layer, ...]:
        return tuple(self._placer.layer(blob, tuple(self._holders[blob.digest])) for blob in blobs)
