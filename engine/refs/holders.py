"""Who still has a blob that is about to be let go: asked with HEAD, in parallel and bounded. No layer byte moves.

Stricter than engine/refs/presence.py, which asks whether a build may go on: here a registry that refuses an answer is
one that was not asked, for nothing is thrown away on its word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from engine.errors import RegistryError, VerificationError
from engine.refs.places import Places, is_loss, kind_of
from engine.refs.presence import LOST, PARALLEL, UNREACHABLE
from engine.together import together
from storage.digest import Digest
from storage.errors import FailureKind
from storage.interfaces.images import Provider
from storage.interfaces.registry import RegistrySource

Lost = Callable[[Digest, Provider, FailureKind, str], Awaitable[None]]
"""Told of a blob that a provider says it does not have (any more)."""


@dataclass(slots=True)
class Holders:
    """Asks `registry`. What was found out once is not asked again, and who did not answer is not asked for more."""

    registry: RegistrySource
    lost: Lost
    places: Places = field(default_factory=Places)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    _silent: set[str] = field(default_factory=set)

    async def find(self, blobs: Mapping[Digest, Iterable[Provider]]) -> dict[Digest, Provider | str]:
        """The first provider that has each blob; bytes-lost when every one says no, provider-unreachable when one
        could not be asked. Raises LogError."""
        found = await together(self._first(digest, providers) for digest, providers in blobs.items())
        return dict(zip(blobs, found, strict=True))

    async def _first(self, digest: Digest, providers: Iterable[Provider]) -> Provider | str:
        reason = LOST
        for place in self.places.of(providers, digest):
            async with self._slots:
                answer = await self._has(digest, place)
            if answer:
                return place
            if answer is None and not place.mirror_of:
                reason = UNREACHABLE
        return reason

    async def _has(self, digest: Digest, provider: Provider) -> bool | None:
        if provider.registry in self._silent:
            return None
        try:
            if await self.registry.exists(provider, digest):
                return True
            kind: FailureKind = "missing"
            error = ""
        except (RegistryError, VerificationError) as failure:
            self.places.failed(provider, digest, failure)
            kind, error = kind_of(failure), str(failure)
        if kind == "transport":
            self._silent.add(provider.registry)
        if kind != "missing":
            return None
        if is_loss(provider, kind):
            await self.lost(digest, provider, kind, error)
        return False
