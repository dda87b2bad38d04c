"""Image names as the log knows them: what they were when somebody last asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.graph import ResolvedImage
from engine.images.resolver import ImageResolver
from engine.offline.missing import Missing, NotHere
from engine.offline.nobody import Refused
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Reference
from storage.interfaces.registry import RegistrySource
from storage.reference import LAYOUT_REGISTRY


class KnownImages(Protocol):
    """What earlier builds learned of image names: a projection answers."""

    def image(self, name: str, platform: str) -> str | None:
        """The digest that the complete name last had, best for `platform`."""
        ...


@dataclass(frozen=True, slots=True)
class RecalledNames:
    """Implements Names from the log. Layouts are on this disk, and asked as ever through `registry`."""

    known: KnownImages
    registry: RegistrySource

    async def resolve(self, reference: Reference, platform: str) -> Descriptor:
        """See Names.resolve. Raises Refused for a name that the log does not know."""
        if reference.registry == LAYOUT_REGISTRY:
            return await self.registry.resolve(reference)
        if reference.digest is not None:
            return Descriptor("", reference.digest, 0)
        digest = self.known.image(str(reference), platform)
        if digest is None:
            raise Refused("the log does not know what the name is", str(reference))
        return Descriptor("", Digest(digest), 0)


@dataclass(frozen=True, slots=True)
class OfflineResolver:
    """Implements Resolver: `inner`, which recalls names, with all that is missing told at once."""

    inner: ImageResolver

    async def resolve(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], ResolvedImage]:
        """See ImageResolver.resolve. Raises NotHere."""
        found: dict[tuple[str, str], ResolvedImage] = {}
        missing: list[Missing] = []
        for reference, platform in dict.fromkeys(wanted):
            try:
                found.update(await self.inner.resolve([(reference, platform)]))
            except Refused as refused:
                missing.append(_missing(reference, platform, refused))
        if missing:
            raise NotHere(missing)
        return found

    def base_of(self, manifest: Digest) -> tuple[str, Digest] | None:
        """See Resolver.base_of."""
        return self.inner.base_of(manifest)

    async def platforms(self, written: str) -> tuple[str, ...]:
        """See Resolver.platforms. Raises NotHere."""
        try:
            return await self.inner.platforms(written)
        except Refused as refused:
            raise NotHere([_missing(written, "", refused)]) from None


def _missing(reference: str, platform: str, refused: Refused) -> Missing:
    where = refused.where
    detail = refused.what.removeprefix("offline: ")
    if "@" in where and "@" not in reference:
        detail += f": {where.partition('@')[2]}"
    shown = f"{reference} ({platform})" if platform else reference
    return Missing("image", shown, elsewhere=(where.partition("@")[0],), detail=detail)
