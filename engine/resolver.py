"""Image names to what they point at: manifest and config, never a layer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.errors import VerificationError
from engine.events import SourceResolved
from engine.graph import ImageLayer, ResolvedImage
from engine.images.read import ImageReader
from engine.ledger import Facts
from engine.refs.places import Places
from engine.together import together
from storage.digest import Digest, parse_json
from storage.interfaces import BlobStore, Descriptor, Provider, Reference, RegistrySource
from storage.platform import choose_platform, parse_platform
from storage.reference import LAYOUT, parse_layout, parse_reference

LAYERS_LIMIT = 500
"""The kernel's overlay takes no more lowers than this."""


class Resolver(Protocol):
    """What images are. See ImageResolver."""

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        """All of `wanted` (reference as written, platform)."""
        ...


class Names(Protocol):
    """What names of images are, for those who do not ask a registry."""

    async def resolve(self, reference: Reference, platform: str) -> Descriptor:
        """The manifest or index that `reference` names for `platform`. Only the digest need be right."""
        ...


@dataclass(slots=True)
class ImageResolver:
    """Resolves names through `registry`, or as `names` recalls them. Manifests and configs stay in `blobs`: an
    unchanged tag costs one HEAD."""

    registry: RegistrySource
    blobs: BlobStore
    facts: Facts
    names: Names | None = None
    places: Places = field(default_factory=Places)
    _images: ImageReader = field(init=False)
    _tops: dict[str, asyncio.Task[tuple[Descriptor, Provider]]] = field(default_factory=dict)
    """What a name points at: asked once a build, so that all its platforms come from one index."""

    def __post_init__(self) -> None:
        self._images = ImageReader(self.registry, self.blobs, self.places)

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        """All of `wanted` (reference as written, platform) at once. Raises InputError, RegistryError,
        VerificationError."""
        unique = list(dict.fromkeys(wanted))
        images = await together(self._resolve(reference, platform) for reference, platform in unique)
        return dict(zip(unique, images, strict=True))

    async def _resolve(self, written: str, platform: str) -> ResolvedImage:
        reference = parse_layout(written) if written.startswith(LAYOUT) else parse_reference(written)
        provider = reference.provider
        top, resolved_by = await self._top(reference, platform)
        where = str(reference)
        image = await self._images.manifest(provider, top.digest, where)
        if image.is_index:
            chosen = choose_platform(image.fields, parse_platform(platform))
            image = await self._images.manifest(provider, chosen.digest, where)
        manifest = image.fields
        try:
            config_blob = Descriptor.from_json(manifest["config"])
            blobs = [Descriptor.from_json(item) for item in manifest["layers"]]
            config = parse_json(await self._images.config(provider, config_blob, where))
            diff_ids = [Digest(item) for item in config["rootfs"]["diff_ids"]]
            if len(diff_ids) != len(blobs):
                raise ValueError(f"{len(blobs)} layers but {len(diff_ids)} diff IDs")
            if not isinstance(config.get("config") or {}, dict):
                raise TypeError("its config is not an object")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VerificationError(
                f"not an image Refledger understands: {error}",
                where=where,
                hint="inspect it with: skopeo inspect --raw",
            ) from error
        if len(blobs) > LAYERS_LIMIT:
            raise VerificationError(f"{len(blobs)} layers are more than the kernel mounts: {LAYERS_LIMIT}", where=where)
        self.facts.post(
            SourceResolved(
                reference=written,
                digest=str(top.digest),
                platform=platform,
                provider=provider.to_json(),
                manifest=str(image.digest),
                config=str(config_blob.digest),
                recalled=self.names is not None,
                resolved_by=resolved_by.to_json() if resolved_by else None,
            )
        )
        layers = tuple(ImageLayer(diff_id, blob) for diff_id, blob in zip(diff_ids, blobs, strict=True))
        return ResolvedImage(
            written, top.digest, image.digest, platform, provider, layers, config_blob.digest, config
        )

    async def _top(self, reference: Reference, platform: str) -> tuple[Descriptor, Provider | None]:
        """What the name is, and who says so."""
        if self.names is not None:
            return await self.names.resolve(reference, platform), None
        written = reference.written
        if written not in self._tops:
            self._tops[written] = asyncio.ensure_future(self.places.resolve(reference, self.registry.resolve))
        return await self._tops[written]
