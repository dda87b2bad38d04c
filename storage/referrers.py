"""What refers to a manifest, where no registry keeps the list: an index under a tag made of the manifest's digest.

Source: OCI distribution-spec 1.1 ("Referrers Tag Schema", "Pushing Manifests with Subject"). Layouts have no API
either, and the same tag serves there (as regctl writes it; oras finds the manifests through the index).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.errors import InputError, RegistryError
from storage.interfaces.images import Descriptor, Provider, Referrer
from storage.media_types import INDEX

_FALLBACK = re.compile("(sha256|sha512)-[0-9a-f]{64}")

Read = Callable[[Provider, str], Awaitable[bytes | None]]
"""The manifest that a tag names, None when there is no such tag."""
Put = Callable[[Provider, str, str, bytes], Awaitable[Digest]]
"""As RegistryTarget.put_manifest."""


def fallback_tag(subject: Digest) -> str:
    """The tag that lists the referrers of `subject` (a sha512 digest is cut, as the specification asks)."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def is_fallback_tag(tag: str) -> bool:
    """Does `tag` read like one of those?"""
    return _FALLBACK.fullmatch(tag) is not None


def read_referrers(data: bytes, where: str) -> list[Referrer]:
    """The entries of an index of referrers. Raises RegistryError for anything else."""
    try:
        entries = parse_json(data)["manifests"]
        return [Referrer.from_json(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        what = "what the registry has as the list of referrers is no image index"
        raise RegistryError(what, kind="transport", where=where, hint="somebody else uses that tag") from error


def referring(data: bytes, media_type: str) -> tuple[Digest, Referrer] | None:
    """What the manifest `data` refers to, and its own entry in the list of that; None when it has no `subject`.
    Raises InputError for a `subject` that is no descriptor."""
    if b'"subject"' not in data:
        return None
    try:
        manifest: Any = parse_json(data)
        subject = manifest.get("subject")
    except (ValueError, AttributeError):
        return None
    if subject is None:
        return None
    try:
        refers_to = Descriptor.from_json(subject).digest
        annotations = {str(key): str(value) for key, value in (manifest.get("annotations") or {}).items()}
        config = manifest.get("config") or {}
        artifact_type = str(manifest.get("artifactType") or config.get("mediaType") or "")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("the manifest's subject is no descriptor") from error
    return refers_to, Referrer(Descriptor(media_type, sha256(data), len(data), annotations), artifact_type)


class FallbackTag:
    """Reads and keeps the lists of any number of repositories, one change at a time. Two processes that change the
    same list at the same moment can still lose an entry: registries have no way to exclude that."""

    def __init__(self, read: Read, put: Put) -> None:
        self._read = read
        self._put = put
        self._locks: dict[tuple[str, str, Digest], asyncio.Lock] = {}

    async def list(self, provider: Provider, subject: Digest) -> list[Referrer]:
        """What refers to `subject`. Raises RegistryError."""
        tag = fallback_tag(subject)
        data = await self._read(provider, tag)
        return [] if data is None else read_referrers(data, f"{provider}:{tag}")

    async def add(self, target: Provider, subject: Digest, entry: Referrer) -> None:
        """Have `entry` in the list of `subject`; all that is there stays as it is. Raises RegistryError."""
        key = (target.registry, target.repository, subject)
        async with self._locks.setdefault(key, asyncio.Lock()):
            tag = fallback_tag(subject)
            data = await self._read(target, tag)
            index: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
            if data is not None:
                known = read_referrers(data, f"{target}:{tag}")
                if any(one.manifest.digest == entry.manifest.digest for one in known):
                    return
                index = parse_json(data)
            index["manifests"] = [*index["manifests"], entry.to_json()]
            await self._put(target, tag, INDEX, canonical_json(index))
