"""All exporters together, and the order of a build's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.exporters.archive import ArchiveExporter
from engine.exporters.image import Image, compose
from engine.exporters.local import LocalExporter
from engine.exporters.push import Pusher
from engine.exporters.transfer import Transfer
from engine.graph import Result
from engine.output import Output
from engine.refs.materializer import Clock
from engine.refs.ref import Ref
from storage.interfaces import Reference


@dataclass(frozen=True, slots=True)
class Exporters:
    """Takes results out of the root."""

    transfer: Transfer
    pusher: Pusher
    archiver: ArchiveExporter
    local: LocalExporter
    clock: Clock

    async def export(
        self,
        result: Result,
        ref: Ref,
        base_layers: int,
        outputs: Sequence[Output],
        names: Sequence[Reference],
        epoch: int | None,
    ) -> Image | None:
        """Write `ref` to all `outputs`, one after the other; returns the image, when one of them needed it.
        Raises RegistryError, MaterializationError, VerificationError, DiskError."""
        image: Image | None = None
        if any(output.kind != "local" for output in outputs):
            layers = await self.transfer.pack(ref, epoch, str(result.vertex))
            image = compose(result, layers, base_layers, epoch, now=self.clock.now())
        for output in outputs:
            if output.kind == "local":
                await self.local.export(ref, output.dest)
                continue
            assert image is not None
            if output.kind == "image":
                await self.pusher.push(image, names)
            else:
                await self.archiver.export(image, output.kind, output.dest, names)
        return image
