"""Caches that a build was given: what they know, as remotes. Manifests, configs and facts are read, no layer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.cache import config as cache_config
from engine.cache import facts, manifest
from engine.cache.assemble import INLINE_FIELD, Chains
from engine.cache.chain import CacheChain, ChainKeys, upwards
from engine.cache.config import CacheConfig, ConfigLayer, ConfigResult, Link
from engine.cache.facts import CacheFacts
from engine.cache.manifest import CacheManifest, ImageManifest
from engine.cache.spec import CacheSource
from engine.errors import DiskError, InputError, RefledgerError, RegistryError, VerificationError
from engine.events import CacheImported, CacheImportFailed
from engine.images.read import stored, whole
from engine.ledger import Facts
from engine.refs.places import Places, kind_of
from engine.refs.ref import Layer, Remote, too_much
from engine.solver.answers import Asking, Found
from engine.solver.cache import Component
from engine.together import together
from storage.digest import Digest, chain_ids, parse_json
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistrySource

CONFIG_LIMIT = 16 << 20
"""Bytes of a cache's config or facts, or of an image's config, at most."""


@dataclass(slots=True)
class CacheImports:
    """Implements Imports. `chains`: who knows how BuildKit names the steps, None: its records are not looked for;
    `naming`: they are wanted in any case, for an export. `named` has them once it is loaded."""

    sources: Sequence[CacheSource]
    registry: RegistrySource
    blobs: BlobStore
    facts: Facts
    chains: ChainKeys | None = None
    naming: bool = False
    places: Places = field(default_factory=Places)
    named: Chains = field(default_factory=dict)
    _caches: list[Cache] = field(default_factory=list)

    async def load(self, asking: Asking) -> None:
        """See Imports.load."""
        loaded = await together(self._load(source) for source in self.sources)
        self._caches = [cache for caches in loaded for cache in caches]
        if self.chains is not None and (self.naming or any(cache.config.records for cache in self._caches)):
            self.named = await self.chains.chains(asking)

    def lookup(self, vertex: Digest, key: Digest) -> Sequence[Found]:
        """See Imports.lookup."""
        wanted = self.named.get(vertex, ())
        return [found for cache in self._caches for found in (*cache.under(str(key)), *cache.matching(wanted))]

    def started(self, build: str) -> int:
        """When a build of another machine started, as its cache says (UTC ns); 0: it does not."""
        return next((cache.facts.builds[build] for cache in self._caches if build in cache.facts.builds), 0)

    def components(self, key: Digest) -> tuple[Component, ...]:
        """The plain text of a key, as a cache says; empty: none does."""
        known = (cache.facts.keys[key].components for cache in self._caches if key in cache.facts.keys)
        return next((components for components in known if components), ())

    async def _load(self, source: CacheSource) -> list[Cache]:
        reading = _Reading(source, self.registry, self.blobs, self.places)
        try:
            top, _ = await self.places.resolve(source.reference, self.registry.resolve)
            caches = await reading.caches(top)
        except RefledgerError as error:
            kind = _kind(error)
            self.facts.post(CacheImportFailed(source=source.written, kind=kind, error=str(error)))
            return []
        self.facts.post(
            CacheImported(
                source=source.written,
                digest=str(top.digest),
                records=sum(len(cache.config.records) for cache in caches),
                bytes=reading.received,
                metadata=tuple(map(str, reading.metadata)),
                provider=source.reference.provider.to_json(),
            )
        )
        return caches


def _kind(error: RefledgerError) -> str:
    match error:
        case RegistryError() | VerificationError():
            return kind_of(error)
        case DiskError():
            return "disk"
        case InputError():
            return "missing"  # a layout that is not there
    return "transport"


@dataclass(slots=True)
class Cache:
    """One cache that was read: `layers` as the config numbers them, None where one cannot be used."""

    importer: str
    config: CacheConfig
    layers: Sequence[Layer | None]
    facts: CacheFacts
    _named: dict[str, list[int]] = field(default_factory=dict)
    """Digest of records → their indexes."""
    _matched: dict[CacheChain, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, record in enumerate(self.config.records):
            self._named.setdefault(record.digest, []).append(number)

    def under(self, key: str) -> Iterator[Found]:
        """What is recorded under a key of ours, or linked to by its record."""
        for number in self._named.get(key, ()):
            match self.config.records[number].inputs:
                case ():
                    yield from self._found(number, key)
                case ((Link(record=linked, selector=""),),):
                    yield from self._found(linked, key)

    def matching(self, chains: Sequence[CacheChain]) -> Iterator[Found]:
        """What is recorded as one of `chains`, whoever recorded it."""
        for chain in chains:
            for number in sorted(self._matches(chain)):
                yield from self._found(number, "")

    def _matches(self, chain: CacheChain) -> set[int]:
        """The records that are `chain`."""
        for one in upwards(chain, self._matched):
            self._matched[one] = {number for number in self._named.get(one.digest, ()) if self._is(number, one)}
        return self._matched[chain]

    def _is(self, number: int, chain: CacheChain) -> bool:
        inputs = self.config.records[number].inputs
        if len(inputs) != len(chain.inputs):
            return False
        for links, wanted in zip(inputs, chain.inputs, strict=True):
            there = {(link.record, link.selector) for link in links}
            if not any((match, selector) in there for source, selector in wanted for match in self._matched[source]):
                return False
        return True

    def _found(self, number: int, key: str) -> Iterator[Found]:
        """The results of a record, the newest first."""
        known = self.facts.keys.get(key)
        for result in sorted(self.config.records[number].results, key=lambda one: -one.created):
            layers = self._layers(result)
            if not layers:
                continue
            if known is None:
                ref = str(chain_ids([layer.diff_id for layer in layers if layer.diff_id])[-1])
                yield Found(Remote(ref, layers), "", importer=self.importer)
                continue
            if len(known.created) == len(layers):
                layers = tuple(
                    replace(layer, created=time) for layer, time in zip(layers, known.created, strict=True)
                )
            yield Found(Remote(known.ref, layers), known.build, known.resolved, self.importer)

    def _layers(self, result: ConfigResult) -> tuple[Layer, ...]:
        """Bottom first; empty when one of them cannot be used."""
        layers = [self.layers[index] for index in self.config.chain(result)]
        *below, top = layers or [None]
        if top is None or None in below:
            return ()
        if result.created and not top.created:
            top = replace(top, created=result.created)
        found = (*(layer for layer in below if layer), top)
        return () if too_much(found) else found


@dataclass(slots=True)
class _Reading:
    """Reads one source. `received`: bytes over the wire; `metadata`: documents that are stored now."""

    source: CacheSource
    registry: RegistrySource
    blobs: BlobStore
    places: Places
    received: int = 0
    metadata: list[Digest] = field(default_factory=list)

    @property
    def provider(self) -> Provider:
        return self.source.reference.provider

    async def caches(self, top: Descriptor) -> list[Cache]:
        """The caches that the manifest or index `top` has: one, or those of its images. Raises RegistryError,
        VerificationError, DiskError."""
        found = await self._manifest(top.digest)
        match found:
            case CacheManifest():
                return [await self._cache(found)]
            case ImageManifest():
                return await self._of_images([found])
            case _:  # an ImageIndex
                below = await together(self._manifest(entry.digest) for entry in found.manifests)
                return await self._of_images([image for image in below if isinstance(image, ImageManifest)])

    async def _manifest(self, digest: Digest) -> manifest.Manifest:
        where = f"{self.provider}@{digest}"
        if (here := stored(self.blobs, digest)) is not None:
            return manifest.read(here, where)
        (_, data), _ = await self.places.first(
            [self.provider], digest, lambda place: self.registry.manifest(place, digest)
        )
        self.received += len(data)
        found = manifest.read(data, where)
        self.blobs.put(data)
        return found

    async def _cache(self, found: CacheManifest) -> Cache:
        where = f"{self.provider}@{found.config.digest}"
        data, *more = await together(self._document(one) for one in (found.config, found.facts) if one is not None)
        config = cache_config.read(data, where)
        said = facts.read(more[0], f"{self.provider}@{found.facts.digest}") if found.facts else CacheFacts()
        return Cache(self.source.written, config, [self._layer(found, layer) for layer in config.layers], said)

    def _layer(self, found: CacheManifest, known: ConfigLayer) -> Layer | None:
        blob = found.layers.get(known.blob)
        layer = manifest.layer_of(blob, known) if blob is not None else None
        return layer and replace(layer, providers=(self.provider,))

    async def _of_images(self, images: Sequence[ImageManifest]) -> list[Cache]:
        caches = await together(self._inline(image) for image in images)
        return [cache for cache in caches if cache is not None]

    async def _inline(self, image: ImageManifest) -> Cache | None:
        """The cache that is in an image's config, None when there is none."""
        where = f"{self.provider}@{image.config.digest}"
        try:
            config: Any = parse_json(await self._document(image.config))
            encoded = config.get(INLINE_FIELD)
            if not encoded:
                return None
            records = base64.b64decode(encoded, validate=True)
            layers = _image_layers(config, image.layers, self.provider)
            said = facts.from_json(config[facts.IMAGE_FIELD]) if config.get(facts.IMAGE_FIELD) else CacheFacts()
        except manifest.MALFORMED as error:
            raise VerificationError(f"its inline cache cannot be used: {str(error)[:200]}", where=where) from error
        known = [ConfigLayer(blob.digest, number - 1) for number, blob in enumerate(image.layers)]
        return Cache(self.source.written, cache_config.read_records(records, known, where), layers, said)

    async def _document(self, blob: Descriptor) -> bytes:
        """A small blob, from here when it is here. Raises RegistryError, VerificationError, DiskError."""
        if (here := stored(self.blobs, blob.digest)) is not None:
            self.metadata.append(blob.digest)
            return here
        if not 0 < blob.size <= CONFIG_LIMIT:
            what = f"the cache cannot be used: a document of {blob.size} bytes, of at most {CONFIG_LIMIT}"
            raise VerificationError(what, where=f"{self.provider}@{blob.digest}")
        data, _ = await self.places.first(
            [self.provider], blob.digest, lambda place: whole(self.registry, place, blob)
        )
        self.received += len(data)
        self.metadata.append(self.blobs.put(data))
        return data


def _image_layers(config: Mapping[str, Any], blobs: Sequence[Descriptor], provider: Provider) -> list[Layer]:
    """The layers of an image with its `config`. Raises ValueError, KeyError, TypeError or InputError."""
    diff_ids = [Digest(item) for item in config["rootfs"]["diff_ids"]]
    made = [entry.get("created") for entry in config.get("history") or () if not entry.get("empty_layer")]
    if len(diff_ids) != len(blobs):
        raise ValueError(f"{len(blobs)} layers but {len(diff_ids)} diff IDs")
    times = [cache_config.time_of(text) for text in made] if len(made) == len(blobs) else [0] * len(blobs)
    return [
        Layer(diff_id, blob, (provider,), created=time)
        for diff_id, blob, time in zip(diff_ids, blobs, times, strict=True)
    ]
