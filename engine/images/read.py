"""Manifests, indexes and configs of images, verified, and kept: what is here is not asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import VerificationError
from engine.refs.places import Places
from storage.digest import Digest, parse_json
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistrySource
from storage.media_types import INDEX, MANIFEST

CONFIG_LIMIT = 8 * 1024 * 1024
"""Bytes of an image config at most: a registry must not fill our memory."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or an index: `data` as stored, and what it says. Of a hostile registry only the digest is sure."""

    digest: Digest
    data: bytes
    fields: Mapping[str, Any]

    @property
    def media_type(self) -> str:
        """What it says it is, else what its fields show (docker's and OCI's look the same otherwise)."""
        stated = self.fields.get("mediaType")
        if isinstance(stated, str) and stated:
            return stated
        return INDEX if self.is_index else MANIFEST

    @property
    def is_index(self) -> bool:
        """Does it list manifests?"""
        return "manifests" in self.fields

    @property
    def descriptor(self) -> Descriptor:
        """Of these bytes."""
        return Descriptor(self.media_type, self.digest, len(self.data))


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads what images are made of, but for their layers. `where` names the image in errors."""

    registry: RegistrySource
    blobs: BlobStore
    places: Places = field(default_factory=Places)

    async def manifest(self, provider: Provider, digest: Digest, where: str) -> Manifest:
        """The manifest or index `digest`. Raises RegistryError, VerificationError, DiskError."""
        data = stored(self.blobs, digest) or await self._fetched(provider, digest)
        try:
            fields = parse_json(data)
        except ValueError as error:
            raise VerificationError("the manifest is not JSON", where=where) from error
        if not isinstance(fields, dict):
            raise VerificationError("the manifest is not a JSON object", where=where)
        return Manifest(digest, data, fields)

    async def config(self, provider: Provider, blob: Descriptor, where: str) -> bytes:
        """A small blob, an image's config. Raises RegistryError, VerificationError, also for one of more than
        CONFIG_LIMIT bytes, DiskError."""
        here = stored(self.blobs, blob.digest)
        if here is not None:
            return here
        if blob.size > CONFIG_LIMIT:
            raise VerificationError(f"its config of {blob.size} bytes is larger than {CONFIG_LIMIT}", where=where)
        data, _ = await self.places.first([provider], blob.digest, lambda place: whole(self.registry, place, blob))
        self.blobs.put(data)
        return data

    async def _fetched(self, provider: Provider, digest: Digest) -> bytes:
        (_, data), _ = await self.places.first([provider], digest, lambda place: self.registry.manifest(place, digest))
        self.blobs.put(data)
        return data


def stored(blobs: BlobStore, digest: Digest) -> bytes | None:
    """A small blob of this root; None also for a damaged one, which can be fetched again. Raises DiskError."""
    try:
        return blobs.get(digest) if blobs.size(digest) is not None else None
    except FileNotFoundError:
        return None


async def whole(registry: RegistrySource, place: Provider, blob: Descriptor) -> bytes:
    """A blob that fits into memory, as whoever asks has made sure: no more than `blob.size` bytes come. Raises
    RegistryError, VerificationError."""
    parts = []
    async with registry.blob(place, blob) as stream:
        async for chunk in stream:
            parts.append(chunk)  # noqa: PERF401  # an async comprehension would hide the bound that Descriptor.size sets
    return b"".join(parts)
