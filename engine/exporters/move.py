"""A layer on its way to a registry: mounted where that can be, streamed from another one, uploaded from here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engine.errors import RefledgerError
from engine.exporters.transfer import Transfer
from engine.refs.ref import Layer
from storage.digest import Digest
from storage.interfaces import ByteStream, Provider, RegistrySource, RegistryTarget

PARALLEL = 4
"""Layers on their way at once."""


@dataclass(slots=True)
class Mover:
    """Moves packed layers, those that are there already not at all. It remembers who has what since: a second name or a
    cache in the same registry takes a layer from the first one."""

    source: RegistrySource
    target: RegistryTarget
    transfer: Transfer
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    _placed: dict[Digest, list[Provider]] = field(default_factory=dict)

    async def move(self, layer: Layer, target: Provider, name: str) -> dict[str, object]:
        """Have the blob of `layer` at `target`; returns what `Exported.layers` says of it. `name`: what is written
        there, for progress. Raises RegistryError, MaterializationError, VerificationError."""
        assert layer.blob is not None, "layers are packed before they move"
        async with self._slots:
            moved = await self._move(layer, target, name)
        self._placed.setdefault(layer.blob.digest, []).append(target)
        return moved

    async def _move(self, layer: Layer, target: Provider, name: str) -> dict[str, object]:
        blob = layer.blob
        assert blob is not None
        digest = blob.digest

        def moved(transport: str, size: int, source: str) -> dict[str, object]:
            return {"digest": str(digest), "transport": transport, "bytes": size, "source": source}

        if await self.source.exists(target, digest):
            return moved("present", 0, f"{target.registry}/{target.repository}")
        for provider in dict.fromkeys((*self._placed.get(digest, ()), *layer.providers)):
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
