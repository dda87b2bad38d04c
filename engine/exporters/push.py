"""Push: mount first, stream registry to registry second, upload what lies here last.

Order (I11): layers, config, manifest by digest, tags. An interrupted push leaves no tag that points at a hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import RefledgerError
from engine.events import Exported, ExportStarted
from engine.exporters.image import Image
from engine.exporters.transfer import Transfer, of_bytes
from engine.ledger import Facts
from engine.refs.ref import Layer
from engine.together import together
from storage.interfaces import ByteStream, Provider, Reference, RegistrySource, RegistryTarget

PARALLEL = 4
"""Layers on their way at once."""


@dataclass(slots=True)
class Pusher:
    """Pushes images to registries."""

    source: RegistrySource
    target: RegistryTarget
    transfer: Transfer
    facts: Facts

    async def push(self, image: Image, names: Sequence[Reference]) -> None:
        """Push `image` under all `names`. Raises RegistryError, MaterializationError, VerificationError."""
        seen: set[Provider] = set()
        for name in names:
            target = Provider(name.registry, name.repository, f"repository:{name.repository}:pull,push")
            await self._push(image, name, target, tuple(seen))
            seen.add(name.provider)

    async def _push(self, image: Image, name: Reference, target: Provider, also: tuple[Provider, ...]) -> None:
        started = await self.facts.record(
            ExportStarted(
                kind="image",
                target=str(name),
                digest=str(image.digest),
                layers=tuple(str(layer.blob.digest) for layer in image.layers if layer.blob),
            )
        )
        slots = asyncio.Semaphore(PARALLEL)

        async def move(layer: Layer) -> dict[str, object]:
            async with slots:
                return await self._layer(layer, target, str(name), also)

        # A layer may stand twice in an image (an empty one often does): it moves once.
        unique = {layer.blob.digest: layer for layer in image.layers if layer.blob}
        moved = await together(move(layer) for layer in unique.values())
        if not await self.source.exists(target, image.config_blob.digest):
            await self.target.upload(target, image.config_blob, lambda: of_bytes(image.config))
        await self.target.put_manifest(target, str(image.digest), image.media_type, image.manifest)
        await self.target.put_manifest(target, name.tag or "latest", image.media_type, image.manifest)
        await self.facts.record(
            Exported(
                kind="image",
                target=str(name),
                digest=str(image.digest),
                layers=tuple(moved),
                provider=name.provider.to_json(),
            ),
            cause=started,
        )

    async def _layer(
        self, layer: Layer, target: Provider, name: str, also: tuple[Provider, ...]
    ) -> dict[str, object]:
        blob = layer.blob
        assert blob is not None
        digest = blob.digest

        def moved(transport: str, size: int, source: str) -> dict[str, object]:
            return {"digest": str(digest), "transport": transport, "bytes": size, "source": source}

        if await self.source.exists(target, digest):
            return moved("present", 0, f"{target.registry}/{target.repository}")
        candidates = dict.fromkeys((*also, *layer.providers))
        for provider in candidates:
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
