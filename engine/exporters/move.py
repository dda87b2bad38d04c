"""A layer on its way to a registry: mounted where that can be, streamed from another one, uploaded from here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import RefledgerError
from engine.exporters.transfer import Transfer
from engine.refs.ref import Layer
from storage.interfaces import ByteStream, Provider, RegistrySource, RegistryTarget

PARALLEL = 4
"""Layers on their way at once."""


@dataclass(slots=True)
class Mover:
    """Moves packed layers, those that are there already not at all."""

    source: RegistrySource
    target: RegistryTarget
    transfer: Transfer
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))

    async def move(
        self, layer: Layer, target: Provider, name: str, also: Sequence[Provider] = ()
    ) -> dict[str, object]:
        """Have the blob of `layer` at `target`; returns what `Exported.layers` says of it. `name`: what is written
        there, for progress; `also`: who else has it now. Raises RegistryError, MaterializationError,
        VerificationError."""
        async with self._slots:
            return await self._move(layer, target, name, also)

    async def _move(self, layer: Layer, target: Provider, name: str, also: Sequence[Provider]) -> dict[str, object]:
        blob = layer.blob
        assert blob is not None, "layers are packed before they move"
        digest = blob.digest

        def moved(transport: str, size: int, source: str) -> dict[str, object]:
            return {"digest": str(digest), "transport": transport, "bytes": size, "source": source}

        if await self.source.exists(target, digest):
            return moved("present", 0, f"{target.registry}/{target.repository}")
        for provider in dict.fromkeys((*also, *layer.providers)):
            if provider.registry == target.registry and provider.repository != target.repository:
                try:
                    if await self.target.mount(target, digest, provider):
                        return moved("mounted", 0, str(provider))
                except RefledgerError:
                    continue  # a refused mount is no failure: the bytes can still travel
        here = self.transfer.is_here(layer)
        transport = "uploaded" if here else "streamed"
        shown = self.transfer.progress(name, blob, transport, None)

        def chunks() -> ByteStream:
            return self.transfer.read(layer, shown)

        await self.target.upload(target, blob, chunks)
        source = "" if here else str(next(iter(layer.providers), ""))
        return moved(transport, blob.size, source)
