"""A layer on its way to a registry, or to a layout on this disk.

Where its bytes come from, in this order, the first that works:

1. *present*: the target has it. This is asked first where the target is known to have it, or where nothing could be
   mounted; otherwise a mount is tried at once, as that answers the same whether or not the layer was there.
2. *mounted*: from another repository of the same registry, of those that are known to have it. A refusal (any status,
   or no answer) leads to the next one: it is no failure, the bytes can still travel.
3. *uploaded*: the blob lies here.
4. *streamed*: from another registry, the mirrors of each provider before it (engine/refs/places.py).

A layer goes to one repository once at a time, for all processes that share the root: whoever comes second finds it
there. When the first one fails, the second one tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import RefledgerError
from engine.exporters.reading import BlobReader
from engine.refs.ref import Layer
from engine.together import locked
from storage.digest import Digest
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.locks import Locks
from storage.interfaces.registry import ByteStream, RegistrySource, RegistryTarget

PARALLEL = 4
"""Layers on their way at once."""


@dataclass(slots=True)
class Mover:
    """Moves packed layers, those that are there already not at all. It remembers who has what since: a second name or a
    cache in the same registry takes a layer from the first one."""

    source: RegistrySource
    target: RegistryTarget
    reader: BlobReader
    locks: Locks
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    _placed: dict[Digest, list[Provider]] = field(default_factory=dict)

    async def move(self, layer: Layer, target: Provider, name: str) -> dict[str, object]:
        """Have the blob of `layer` at `target`; returns what `Exported.layers` says of it. `name`: what is written
        there, for progress. Raises RegistryError, MaterializationError, VerificationError, DiskError."""
        blob = layer.blob
        assert blob is not None, "layers are packed before they move"
        async with self._slots, locked(self.locks, f"push-{blob.digest}-{target}") as waited:
            placed = self._placed.setdefault(blob.digest, [])
            if any(place.coordinates == target.coordinates for place in placed):
                return _moved(blob, "present", 0, str(target))
            providers = tuple(dict.fromkeys((*placed, *layer.providers)))
            known = list(self.reader.places.of(providers, blob.digest))
            moved = await self._move(layer, blob, target, name, known, likely=waited)
            placed.append(target)
            return moved

    async def _move(
        self, layer: Layer, blob: Descriptor, target: Provider, name: str, known: Sequence[Provider], *, likely: bool
    ) -> dict[str, object]:
        """`known`: who may have the blob; `likely`: somebody else may just have brought it to `target`."""
        itself = target.coordinates
        mountable = [place for place in known if place.registry == target.registry and place.coordinates != itself]
        ask_first = likely or not mountable or any(place.coordinates == itself for place in known)
        if ask_first and await self.source.exists(target, blob.digest):
            return _moved(blob, "present", 0, str(target))
        for place in mountable:
            if await self._mounted(target, blob.digest, place):
                return _moved(blob, "mounted", 0, str(place))
        if not ask_first and await self.source.exists(target, blob.digest):
            return _moved(blob, "present", 0, str(target))
        expected = "uploaded" if self.reader.is_here(layer) else "streamed"
        size, served = await self._send(layer, blob, target, name, expected)
        return _moved(blob, "streamed" if served else "uploaded", size, ", ".join(map(str, served)))

    async def _mounted(self, target: Provider, digest: Digest, place: Provider) -> bool:
        try:
            return await self.target.mount(target, digest, place)
        except RefledgerError:
            return False

    async def _send(
        self, layer: Layer, blob: Descriptor, target: Provider, name: str, transport: str
    ) -> tuple[int, Sequence[Provider]]:
        """Upload the bytes. How many there were (`target` may have had some from an upload that broke off), and who
        gave them."""
        shown = self.reader.progress(name, blob, transport)
        served: list[Provider] = []
        first = blob.size

        def chunks(start: int = 0) -> ByteStream:
            nonlocal first
            first = min(first, start)
            if not start:
                served.clear()
            return self.reader.read(layer, shown, served.append, start)

        await self.reader.anew([layer], lambda: self.target.upload(target, blob, chunks, resume=chunks))
        return blob.size - first, tuple(dict.fromkeys(served))


def _moved(blob: Descriptor, transport: str, size: int, source: str) -> dict[str, object]:
    return {"digest": str(blob.digest), "transport": transport, "bytes": size, "source": source}
