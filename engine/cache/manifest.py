"""The manifest of a cache: the config, the layers it speaks of, and our facts. Pure.

BuildKit writes it in two forms (moby/buildkit cache/remotecache/export.go): an image manifest whose config is the cache
config, or an index whose "manifests" are the layers and, among them, the config. What a layer is, annotations tell:
`containerd.io/uncompressed` its diff ID, `buildkit/createdat` when it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.cache import config as cache_config
from engine.cache import facts
from engine.cache.config import time_of, time_text
from engine.errors import InputError, VerificationError
from engine.exporters.image import layer_type
from engine.record import Record
from engine.refs.ref import Layer
from storage.digest import Digest, canonical_json, parse_json
from storage.interfaces.images import Descriptor
from storage.media_types import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST

DIFF_ID, CREATED = "containerd.io/uncompressed", "buildkit/createdat"
_OURS_ALONE = ("containerd.io/uncompressed", "containerd.io/distribution.source", "buildkit/")
"""Beginnings of annotations that say something of the cache or of who wrote it, and are no part of a layer."""
ENTRIES = cache_config.LAYERS
DESCRIBED = 8192
"""Characters of a media type and annotations at most."""
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, InputError)
"""What reading fields of a document that is not as it should be can raise."""
IMAGES = 64
"""Images below an index that are looked into for their inline caches."""


class CacheManifest(Record):
    """A cache: `config` and `facts` (None: it is BuildKit's) to be read, `layers` by digest of the blob."""

    config: Descriptor
    facts: Descriptor | None
    layers: Mapping[Digest, Descriptor]


class ImageManifest(Record):
    """An image, whose config may hold an inline cache."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class ImageIndex(Record):
    """Images for several platforms, by their manifests."""

    manifests: tuple[Descriptor, ...]


Manifest = CacheManifest | ImageManifest | ImageIndex


def described(layer: Layer, oci: bool) -> Descriptor:
    """The descriptor of a packed layer as a cache has it."""
    assert layer.blob is not None and layer.diff_id is not None, "layers are packed before they are described"
    said = {DIFF_ID: str(layer.diff_id)}
    if layer.created:
        said[CREATED] = time_text(layer.created)
    blob = layer.blob
    return Descriptor(layer_type(blob.media_type, oci=oci), blob.digest, blob.size, {**blob.annotations, **said})


def write(
    config: Descriptor, layers: Iterable[Descriptor], extra: Descriptor, *, image_manifest: bool, oci: bool
) -> tuple[str, bytes]:
    """Media type and bytes of a cache's manifest; `extra` has our facts. An image manifest is always OCI's."""
    blobs = [blob.to_json() for blob in (*layers, extra)]
    if image_manifest:
        made: dict[str, Any] = {"mediaType": MANIFEST, "config": config.to_json(), "layers": blobs}
    else:
        made = {"mediaType": INDEX if oci else DOCKER_LIST, "manifests": [*blobs, config.to_json()]}
    return made["mediaType"], canonical_json({"schemaVersion": 2, **made})


def read(data: bytes, where: str) -> Manifest:
    """What the manifest or index `data` is of. Raises VerificationError."""
    try:
        found = parse_json(data)
        if isinstance(entries := found.get("manifests"), list):
            return _index(_descriptors(entries))
        (config,) = _descriptors([found["config"]])
        layers = _descriptors(found["layers"])
    except MALFORMED as error:
        raise VerificationError(f"neither a cache nor an image: {str(error)[:200]}", where=where) from error
    if config.media_type == cache_config.MEDIA_TYPE:
        return _cache(config, layers)
    return ImageManifest(config, layers)


def _descriptors(entries: Sequence[Any]) -> tuple[Descriptor, ...]:
    if len(entries) > ENTRIES:
        raise ValueError(f"{len(entries)} entries are more than {ENTRIES}")
    found = tuple(map(Descriptor.from_json, entries))
    for blob in found:
        if not 0 <= blob.size < 1 << 53:
            raise ValueError("a size is none that a blob can have")
        texts = [blob.media_type, *blob.annotations.keys(), *blob.annotations.values()]
        if not all(isinstance(text, str) for text in texts) or sum(map(len, texts)) > DESCRIBED:
            raise ValueError("what describes a blob is too long, or no text")
    return found


def _index(entries: Sequence[Descriptor]) -> CacheManifest | ImageIndex:
    config = next((entry for entry in entries if entry.media_type == cache_config.MEDIA_TYPE), None)
    if config is not None:
        return _cache(config, entries)
    return ImageIndex(tuple(entry for entry in entries if entry.media_type in (MANIFEST, DOCKER_MANIFEST))[:IMAGES])


def _cache(config: Descriptor, entries: Sequence[Descriptor]) -> CacheManifest:
    extra = next((entry for entry in entries if entry.media_type == facts.MEDIA_TYPE), None)
    apart = (cache_config.MEDIA_TYPE, facts.MEDIA_TYPE)
    return CacheManifest(config, extra, {one.digest: one for one in entries if one.media_type not in apart})


def layer_of(blob: Descriptor, known: cache_config.ConfigLayer) -> Layer | None:
    """The layer that is `blob` in a manifest and `known` in the config; None when nobody says its diff ID."""
    text = blob.annotations.get(DIFF_ID, "")
    try:
        diff_id = Digest(text) if text else known.diff_id
    except InputError:
        return None
    if diff_id is None:
        return None
    kept = {key: value for key, value in blob.annotations.items() if not key.startswith(_OURS_ALONE)}
    created = time_of(blob.annotations.get(CREATED)) or known.created
    return Layer(diff_id, Descriptor(blob.media_type, blob.digest, blob.size, kept), created=created)
