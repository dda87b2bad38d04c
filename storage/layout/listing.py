"""What OCI layouts on this disk have: tags, and what refers to what."""

from __future__ import annotations

import asyncio
from pathlib import Path

from storage.digest import Digest
from storage.interfaces.images import Provider, Referrer
from storage.interfaces.registry import RegistryListing
from storage.layout.source import layout_entries, read_small, tag_of
from storage.reference import LAYOUT_REGISTRY
from storage.referrers import fallback_tag, read_referrers, referring


class WithLayoutListing:
    """RegistryListing: of providers that are layouts (LAYOUT_REGISTRY) from their directories, of others by `inner`."""

    def __init__(self, inner: RegistryListing) -> None:
        self._inner = inner

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """See RegistryListing.tags. Raises InputError where there is no layout."""
        if provider.registry != LAYOUT_REGISTRY:
            return await self._inner.tags(provider)
        entries = await asyncio.to_thread(layout_entries, Path(provider.repository), str(provider))
        return tuple(dict.fromkeys(tag for entry in entries if (tag := tag_of(entry))))

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str = "") -> tuple[Referrer, ...]:
        """See RegistryListing.referrers. Raises InputError where there is no layout."""
        if provider.registry != LAYOUT_REGISTRY:
            return await self._inner.referrers(provider, subject, artifact_type)
        found = await asyncio.to_thread(_referrers, Path(provider.repository), subject)
        return tuple(one for one in found if artifact_type in {"", one.artifact_type})


async def read_tagged(provider: Provider, tag: str) -> bytes | None:
    """The manifest that `tag` names in a layout, None when there is none. See referrers.Read."""
    return await asyncio.to_thread(_tagged, Path(provider.repository), tag)


def _tagged(layout: Path, tag: str) -> bytes | None:
    entries = layout_entries(layout, str(layout))
    named = next((entry for entry in reversed(entries) if tag_of(entry) == tag), None)
    return None if named is None else read_small(layout, named.digest)


def _referrers(layout: Path, subject: Digest) -> list[Referrer]:
    """As the tag lists them, and what else stands in index.json, where oras and others put them."""
    listed = _tagged(layout, fallback_tag(subject))
    found = {one.manifest.digest: one for one in read_referrers(listed, str(layout))} if listed else {}
    for entry in layout_entries(layout, str(layout)):
        refers = referring(read_small(layout, entry.digest), entry.media_type)
        if refers is not None and refers[0] == subject:
            found.setdefault(entry.digest, refers[1])
    return list(found.values())
