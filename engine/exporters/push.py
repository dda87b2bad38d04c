"""Push: mount first, stream registry to registry second, upload what lies here last.

Order (I11): layers, configs, manifests by digest, index by digest, what refers to them, tags. An interrupted push
leaves no tag that points at a hole. The one manifest that a tag points at is put under the tag alone: registries store
it before they name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.events import Exported, ExportStarted
from engine.exporters.image import Bundle, Image
from engine.exporters.move import Mover
from engine.exporters.reading import of_bytes
from engine.ledger import Facts, fitting
from engine.together import together
from storage.interfaces.images import Provider, Reference
from storage.interfaces.registry import RegistrySource, RegistryTarget


@dataclass(slots=True)
class Pusher:
    """Pushes images to registries."""

    source: RegistrySource
    target: RegistryTarget
    mover: Mover
    facts: Facts

    async def push(
        self, made: Bundle, names: Sequence[Reference], *, by_digest: bool = False, compression: str = ""
    ) -> None:
        """Push `made` under all `names`, or only to their repositories when `by_digest`; `compression`: what was asked
        for. Raises RegistryError, MaterializationError, VerificationError."""
        for name in names:
            target = name.target
            tag = str(made.digest) if by_digest else name.tag or "latest"
            shown = f"{target}@{tag}" if by_digest else str(name)
            await self._push(made, target, tag, shown, compression)

    async def _push(self, made: Bundle, target: Provider, tag: str, shown: str, compression: str) -> None:
        started = await self.facts.record(
            ExportStarted(
                kind="image",
                target=shown,
                digest=str(made.digest),
                layers=fitting([*map(str, made.layers)]),
                compression=compression,
            )
        )
        moved = await together(self.mover.move(layer, target, shown) for layer in made.everything.values())
        await together(self._config(image, target) for image in (*made.listed, *made.referrers))
        if made.index:
            await together(
                self.target.put_manifest(target, str(image.digest), image.media_type, image.manifest)
                for image in made.listed
            )
            await self.target.put_manifest(target, str(made.digest), made.media_type, made.index)
        await together(
            self.target.put_manifest(target, str(one.digest), one.media_type, one.manifest) for one in made.referrers
        )
        if tag != str(made.digest) or not made.index:
            await self.target.put_manifest(target, tag, made.media_type, made.top)
        await self.facts.record(
            Exported(
                kind="image",
                target=shown,
                digest=str(made.digest),
                layers=fitting(moved),
                provider=Provider.of(target.registry, target.repository).to_json(),
                compression=compression,
            ),
            cause=started,
        )

    async def _config(self, image: Image, target: Provider) -> None:
        if not await self.source.exists(target, image.config_blob.digest):
            await self.target.upload(target, image.config_blob, lambda: of_bytes(image.config))
