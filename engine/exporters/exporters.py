"""All exporters together, and the order of a build's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.exporters.archive import ArchiveExporter
from engine.exporters.image import Bundle, bundle, compose
from engine.exporters.local import LocalExporter
from engine.exporters.push import Pusher
from engine.exporters.transfer import Transfer
from engine.graph import Result
from engine.output import Output
from engine.refs.materializer import Clock
from engine.refs.ref import Layer, Ref
from storage.interfaces import Reference


@dataclass(frozen=True, slots=True)
class Built:
    """One result with its ref, of whose layers the first `base_layers` are the base image's."""

    result: Result
    ref: Ref
    base_layers: int


Extra = Callable[[Built, Sequence[Layer]], Mapping[str, Any]]
"""Further fields of an image's config, given its packed layers."""


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
        built: Sequence[Built],
        outputs: Sequence[Output],
        names: Sequence[Reference],
        epoch: int | None,
        extra: Extra | None = None,
    ) -> Bundle | None:
        """Write what was `built` to all `outputs`, one after the other; returns the images, when one of them needed
        them. `extra`: what else their configs hold. Raises RegistryError, MaterializationError, VerificationError,
        DiskError."""
        made: Bundle | None = None
        if any(output.kind != "local" for output in outputs):
            images = []
            for item in built:
                layers = await self.transfer.pack(item.ref, epoch, str(item.result.vertex))
                fields = extra(item, layers) if extra is not None else {}
                now = self.clock.now()
                images.append(compose(item.result, layers, item.base_layers, epoch, now=now, extra=fields))
            made = bundle(images, [item.result.platform for item in built])
        for output in outputs:
            if output.kind == "local":
                for item in built:
                    below = f"/{item.result.platform.replace('/', '_')}" if len(built) > 1 else ""
                    await self.local.export(item.ref, output.dest + below)
                continue
            assert made is not None
            if output.kind == "image":
                await self.pusher.push(made, names)
            else:
                await self.archiver.export(made, output.kind, output.dest, names)
        return made
