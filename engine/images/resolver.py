"""Image names to what they point at: manifest and config, never a layer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine.events import SourceResolved
from engine.graph import ResolvedImage
from engine.images.contents import platform_of, read_annotations, read_config_blob, read_layers
from engine.images.read import ImageReader
from engine.ledger import Facts
from engine.refs.places import Places
from engine.together import together
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider, Reference
from storage.interfaces.registry import RegistrySource
from storage.platform import choose_platform, host_platform, list_platforms, parse_platform
from storage.reference import LAYOUT, parse_layout, parse_reference

if TYPE_CHECKING:
    from engine.policy.gate import Gate  # reason: what only builds with a policy need is not loaded for all


class Resolver(Protocol):
    """What images are. See ImageResolver."""

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        """All of `wanted` (reference as written, platform)."""
        ...

    async def platforms(self, written: str) -> tuple[str, ...]:
        """The platforms that an image is there for: those of its index, or the one that its config names. This
        machine's, where it names none. Raises InputError, RegistryError, VerificationError."""
        ...


    def base_of(self, manifest: Digest) -> tuple[str, Digest] | None:
        """See Bases.base_of."""
        ...


class Bases(Protocol):
    """What images that were made here were built on."""

    def base_of(self, manifest: Digest) -> tuple[str, Digest] | None:
        """Name, as it was written, and manifest of the image at the bottom of the one that has `manifest`. None where
        nobody knows."""
        ...


class Names(Protocol):
    """What names of images are, for those who do not ask a registry."""

    async def resolve(self, reference: Reference, platform: str) -> Descriptor:
        """The manifest or index that `reference` names for `platform`. Only the digest need be right."""
        ...


@dataclass(slots=True)
class ImageResolver:
    """Resolves names through `registry`, or as `names` recalls them; `bases` knows images that were made here; `gate`
    says which may be used. Manifests and configs stay in `blobs`: an unchanged tag costs one HEAD."""

    registry: RegistrySource
    blobs: BlobStore
    facts: Facts
    names: Names | None = None
    places: Places = field(default_factory=Places)
    bases: Bases | None = None
    gate: Gate | None = None
    _images: ImageReader = field(init=False)
    _tops: dict[str, asyncio.Task[tuple[Descriptor, Provider]]] = field(default_factory=dict)
    """What a name points at: asked once a build, so that all its platforms come from one index."""

    def __post_init__(self) -> None:
        self._images = ImageReader(self.registry, self.blobs, self.places)

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        """All of `wanted` (reference as written, platform) at once. Raises InputError, RegistryError,
        VerificationError, PolicyViolation."""
        unique = list(dict.fromkeys(wanted))
        images = await together(self._resolve(reference, platform) for reference, platform in unique)
        return dict(zip(unique, images, strict=True))

    async def _resolve(self, written: str, platform: str) -> ResolvedImage:
        reference = self._let_in(written)
        provider = reference.provider
        top, resolved_by = await self._top(reference, platform)
        where = str(reference)
        image = await self._images.manifest(provider, top.digest, where)
        if image.is_index:
            chosen = choose_platform(image.fields, parse_platform(platform))
            image = await self._images.manifest(provider, chosen.digest, where)
        config_blob = read_config_blob(image.fields, where)
        config_bytes = await self._images.config(provider, config_blob, where)
        layers, config = read_layers(image.fields, config_bytes, provider, where)
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
        if self.gate is not None:
            await self.gate.resolved(reference, top.digest, image.digest, provider, config)
        return ResolvedImage(
            written, top.digest, image.digest, platform, provider, layers, config, read_annotations(image.fields)
        )

    async def platforms(self, written: str) -> tuple[str, ...]:
        """See Resolver.platforms."""
        reference = self._let_in(written)
        provider, where = reference.provider, str(reference)
        host = str(host_platform())
        top, _ = await self._top(reference, host)
        image = await self._images.manifest(provider, top.digest, where)
        if image.is_index:
            return tuple(map(str, list_platforms(image.fields))) or (host,)
        config = await self._images.config(provider, read_config_blob(image.fields, where), where)
        return (platform_of(config, where) or host,)

    def base_of(self, manifest: Digest) -> tuple[str, Digest] | None:
        """See Resolver.base_of."""
        return self.bases.base_of(manifest) if self.bases is not None else None

    def _let_in(self, written: str) -> Reference:
        """What `written` says, once it is known that it may be asked for."""
        reference = parse_image(written)
        if self.gate is not None:
            self.gate.named(reference)
        return reference

    async def _top(self, reference: Reference, platform: str) -> tuple[Descriptor, Provider | None]:
        """What the name is, and who says so."""
        if self.names is not None:
            return await self.names.resolve(reference, platform), None
        written = reference.written
        if written not in self._tops:
            self._tops[written] = asyncio.ensure_future(self.places.resolve(reference, self.registry.resolve))
        return await self._tops[written]


def parse_image(written: str) -> Reference:
    """An image's name as `FROM` may have it. Raises InputError."""
    return parse_layout(written) if written.startswith(LAYOUT) else parse_reference(written)
