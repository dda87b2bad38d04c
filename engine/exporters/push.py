"""Push: mount first, stream registry to registry second, upload what lies here last.

Order (I11): layers, configs, manifests by digest, index by digest, tags. An interrupted push leaves no tag that points
at a hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import RefledgerError
from engine.events import Exported, ExportStarted
from engine.exporters.image import Bundle, Image
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

    async def push(self, made: Bundle, names: Sequence[Reference]) -> None:
        """Push `made` under all `names`. Raises RegistryError, MaterializationError, VerificationError."""
        seen: set[Provider] = set()
        for name in names:
            target = Provider(name.registry, name.repository, f"repository:{name.repository}:pull,push")
            await self._push(made, name, target, tuple(seen))
            seen.add(name.provider)

    async def _push(self, made: Bundle, name: Reference, target: Provider, also: tuple[Provider, ...]) -> None:
        started = await self.facts.record(
            ExportStarted(
                kind="image",
                target=str(name),
                digest=str(made.digest),
                layers=tuple(map(str, made.layers)),
            )
        )
        slots = asyncio.Semaphore(PARALLEL)

        async def move(layer: Layer) -> dict[str, object]:
            async with slots:
                return await self._layer(layer, target, str(name), also)

        moved = await together(move(layer) for layer in made.layers.values())
        await together(self._manifest(image, target) for image in made.images)
        if made.index:
            await self.target.put_manifest(target, str(made.digest), made.media_type, made.index)
        await self.target.put_manifest(target, name.tag or "latest", made.media_type, made.top)
        await self.facts.record(
            Exported(
                kind="image",
                target=str(name),
                digest=str(made.digest),
                layers=tuple(moved),
                provider=name.provider.to_json(),
            ),
            cause=started,
        )

    async def _manifest(self, image: Image, target: Provider) -> None:
        """Config, then manifest, of an image whose layers are there."""
        if not await self.source.exists(target, image.config_blob.digest):
            await self.target.upload(target, image.config_blob, lambda: of_bytes(image.config))
        await self.target.put_manifest(target, str(image.digest), image.media_type, image.manifest)

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
