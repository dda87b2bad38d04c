"""Which layers can still be had: asked of their providers with HEAD, in parallel and bounded, before anybody relies on
them. No layer byte moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import RegistryError, VerificationError
from engine.events import ProviderLost
from engine.ledger import Facts
from engine.refs.places import Places, is_loss, kind_of
from engine.refs.ref import Layer
from engine.together import together
from storage.errors import FailureKind
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistrySource

PARALLEL = 16
"""Questions at once."""
LOST, UNREACHABLE = "bytes-lost", "provider-unreachable"


@dataclass(slots=True)
class HeadPresence:
    """Implements Presence. What was found out once is not asked again: of a layer with the same providers."""

    registry: RegistrySource
    facts: Facts
    places: Places = field(default_factory=Places)
    _answers: dict[tuple[str, tuple[Provider, ...]], str] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))

    async def absent(self, layers: Sequence[Layer]) -> Mapping[str, str]:
        """See Presence.absent. A provider that lost a blob is told of in the log."""
        keys = [(layer.name, layer.providers) for layer in layers]
        unknown = {key: layer for key, layer in zip(keys, layers, strict=True) if key not in self._answers}
        found = await together(self._ask(layer) for layer in unknown.values())
        self._answers |= zip(unknown, found, strict=True)
        return {name: answer for name, providers in keys if (answer := self._answers[name, providers])}

    async def _ask(self, layer: Layer) -> str:
        blob, reason = layer.blob, LOST
        for place in self.places.of(layer.providers, blob.digest) if blob else ():
            assert blob is not None
            found = await self._holds(place, layer, blob)
            if found is None and not place.mirror_of:
                reason = UNREACHABLE
            elif found:
                return ""
        return reason

    async def _holds(self, place: Provider, layer: Layer, blob: Descriptor) -> bool | None:
        kind: FailureKind = "missing"
        error = ""
        try:
            async with self._slots:
                if await self.registry.exists(place, blob.digest):
                    return True
        except (RegistryError, VerificationError) as failure:
            self.places.failed(place, blob.digest, failure)
            kind, error = kind_of(failure), str(failure)
        if kind == "transport":
            return None
        if is_loss(place, kind):
            lost = ProviderLost(
                ref=layer.name, digest=str(blob.digest), provider=place.to_json(), kind=kind, error=error
            )
            self.facts.post(lost)
        return False
