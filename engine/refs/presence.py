"""Which layers can still be had: asked of their providers with HEAD, in parallel and bounded, before anybody relies on
them. No layer byte moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import RegistryError, VerificationError
from engine.events import ProviderLost
from engine.ledger import Facts
from engine.refs.ref import Layer
from engine.together import together
from storage.interfaces import Provider, RegistrySource

PARALLEL = 16
"""Questions at once."""
LOST, UNREACHABLE = "bytes-lost", "provider-unreachable"


@dataclass(slots=True)
class HeadPresence:
    """Implements Presence. What was found out once is not asked again."""

    registry: RegistrySource
    facts: Facts
    _answers: dict[str, str] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))

    async def absent(self, layers: Sequence[Layer]) -> Mapping[str, str]:
        """See Presence.absent. A provider that lost a blob is told of in the log."""
        unknown = {layer.name: layer for layer in layers if layer.name not in self._answers}
        await together(self._ask(layer) for layer in unknown.values())
        return {layer.name: answer for layer in layers if (answer := self._answers[layer.name])}

    async def _ask(self, layer: Layer) -> None:
        reason = LOST
        for provider in layer.providers if layer.blob else ():
            found = await self._holds(layer, provider)
            if found is None:
                reason = UNREACHABLE
            elif found:
                reason = ""
                break
        self._answers[layer.name] = reason

    async def _holds(self, layer: Layer, provider: Provider) -> bool | None:
        assert layer.blob is not None
        digest = layer.blob.digest
        try:
            async with self._slots:
                if await self.registry.exists(provider, digest):
                    return True
            kind, error = "missing", ""
        except RegistryError as failure:
            kind, error = failure.kind, str(failure)
        except VerificationError as failure:
            kind, error = "corrupt", str(failure)
        if kind == "transport":
            return None
        self.facts.post(
            ProviderLost(ref=layer.name, digest=str(digest), provider=provider.to_json(), kind=kind, error=error)
        )
        return False
