"""OCI image layouts in a directory (`type=oci,tar=false`; image-spec image-layout.md): what is there already stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.events import Exported, ExportStarted
from engine.exporters.archive import entries
from engine.exporters.image import Bundle
from engine.exporters.move import Mover
from engine.exporters.reading import of_bytes
from engine.ledger import Facts, fitting
from engine.output import Output
from engine.together import together
from storage.interfaces.images import Descriptor, Provider
from storage.reference import LAYOUT_REGISTRY

Enter = Callable[[Provider, Sequence[dict[str, Any]]], Awaitable[None]]


@dataclass(slots=True)
class LayoutExporter:
    """Writes images into layouts, as into a registry; `enter` adds entries to the index.json of one."""

    mover: Mover
    facts: Facts
    enter: Enter

    async def export(self, made: Bundle, output: Output) -> None:
        """Write `made` to the directory `output.dest`. Raises DiskError,
        MaterializationError, VerificationError, InputError for a layout that is none."""
        dest, compression = output.dest, output.form.compression.written
        target = _layout(dest)
        layers = fitting([*map(str, made.layers)])
        started = await self.facts.record(
            ExportStarted(
                kind="oci", target=dest, digest=str(made.digest), layers=layers, compression=compression
            )
        )
        moved = await together(self.mover.move(layer, target, dest) for layer in made.everything.values())
        for image in made.listed:
            await self._put(target, image.config_blob, image.config)
            await self._put(target, image.descriptor, image.manifest)
        if made.index:
            await self._put(target, made.descriptor, made.index)
        for one in made.referrers:
            await self._put(target, one.config_blob, one.config)
            await self.mover.target.put_manifest(target, str(one.digest), one.media_type, one.manifest)
        await self.enter(target, entries(made, output.names))
        await self.facts.record(
            Exported(
                kind="oci", target=dest, digest=str(made.digest), layers=fitting(moved), compression=compression
            ),
            cause=started,
        )

    async def _put(self, target: Provider, blob: Descriptor, data: bytes) -> None:
        if not await self.mover.source.exists(target, blob.digest):
            await self.mover.target.upload(target, blob, lambda: of_bytes(data))


def _layout(dest: str) -> Provider:
    return Provider(LAYOUT_REGISTRY, str(Path(dest).absolute()), "")
