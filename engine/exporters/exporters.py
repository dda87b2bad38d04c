"""All exporters together, and the order of a build's outputs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.clock import Clock
from engine.errors import MaterializationError
from engine.exporters.archive import ArchiveExporter
from engine.exporters.image import Attested, Bundle, Image, bundle, compose
from engine.exporters.layout import LayoutExporter
from engine.exporters.local import LocalExporter
from engine.exporters.push import Pusher
from engine.exporters.tar import TarExporter
from engine.exporters.transfer import Transfer
from engine.graph import Graph, ImageSource, Merge, Result
from engine.output import Form, Output
from engine.refs.ref import Layer, Ref, Remote
from storage.digest import Digest
from storage.interfaces.images import Compression


@dataclass(frozen=True, slots=True)
class Built:
    """One result with its ref, of whose layers the first `base_layers` are the base image's."""

    result: Result
    ref: Ref
    base_layers: int


def built_of(graph: Graph, refs: Mapping[Digest, Ref]) -> list[Built]:
    """The results of `graph`, which are `refs` by vertex."""
    return [Built(result, refs[result.vertex], base_layers(graph, result.vertex)) for result in graph.results]


def base_layers(graph: Graph, digest: Digest) -> int:
    """How many layers the result `digest` has from images: all of an image that is edited, and those of the source that
    first inputs lead down to."""
    vertex = graph.by_digest[digest]
    while vertex.inputs and not isinstance(vertex.op, Merge):
        vertex = graph.by_digest[vertex.inputs[0]]
    if isinstance(vertex.op, ImageSource):
        return len(vertex.op.layers)
    return sum(base_layers(graph, item) for item in vertex.inputs)


@dataclass(frozen=True, slots=True)
class Written:
    """One output that is done; `made`: the images that are in it, None for files; `digest`: of those, or of a tar."""

    output: Output
    made: Bundle | None
    digest: Digest | None


Attach = Callable[[Built, Image], Awaitable[Attested]]
"""What is attested of an image."""
Extra = Callable[[Built], Mapping[str, Any]]
"""Further fields of an image's config."""


@dataclass(frozen=True, slots=True)
class Exporters:
    """Takes results out of the root."""

    transfer: Transfer
    pusher: Pusher
    archiver: ArchiveExporter
    layout: LayoutExporter
    local: LocalExporter
    tar: TarExporter
    clock: Clock

    async def export(
        self, built: Sequence[Built], outputs: Sequence[Output], epoch: int | None, extra: Extra | None = None,
        attach: Attach | None = None,
    ) -> tuple[Written, ...]:  # fmt: skip
        """Write what was `built` to all `outputs`, one after the other; `extra`: what else the configs of the images
        hold, `attach` what is attested of them. All images are composed first, so that nothing is out when that cannot
        be done. Raises RegistryError, MaterializationError, VerificationError, DiskError, LogError, InputError."""
        written = []
        try:
            made = await self._compose(built, outputs, epoch, extra, attach)
            for output in outputs:
                image = None if output.of_files else made[output.form]
                written.append(Written(output, image, await self._write(built, output, image, epoch)))
        except MaterializationError as error:
            foreign = {layer.name for item in built for layer in item.ref.layers if layer.blob and layer.blob.urls}
            if error.kind == "missing" and error.layer in foreign:
                error.hint = "its image says who may give it out: prefer-nondist-layers=true leaves it there"
            raise
        return tuple(written)

    async def _compose(
        self, built: Sequence[Built], outputs: Sequence[Output], epoch: int | None, extra: Extra | None,
        attach: Attach | None,
    ) -> dict[Form, Bundle]:  # fmt: skip
        """The images in each form that is wanted; layers are packed once for all forms that have the same."""
        packed: dict[tuple[Compression, bool], list[tuple[Layer, ...]]] = {}
        made: dict[Form, Bundle] = {}
        for form in dict.fromkeys(output.form for output in outputs if not output.of_files):
            way = (form.compression, form.rewrite)
            if way not in packed:
                packed[way] = [await self._pack(item, epoch, form) for item in built]
            images = []
            for item, layers in zip(built, packed[way], strict=True):
                fields = extra(item) if extra is not None else {}
                images.append(self._image(item, layers, epoch, fields, form))
            attested = [await attach(*pair) for pair in zip(built, images, strict=True)] if attach else []
            referrers = [one for item in attested for one in item.referrers]
            made[form] = bundle(images, form, [item.manifest for item in attested], referrers)
        return made

    async def _pack(self, item: Built, epoch: int | None, form: Form) -> tuple[Layer, ...]:
        """The layers of `item`. The times of its base's stay (as in BuildKit since its pull request 4663): rewriting
        them would fetch and upload all of it."""
        ref, vertex = item.ref, str(item.result.vertex)
        if not form.rewrite:
            return await self.transfer.pack(ref, epoch, vertex, form.compression)
        base = Remote(ref.id, ref.layers[: item.base_layers])
        own = Remote(ref.id, ref.layers[item.base_layers :])
        return (
            *await self.transfer.pack(base, epoch, vertex, form.compression),
            *await self.transfer.pack(own, epoch, vertex, form.compression, rewrite=True),
        )

    def _image(
        self, item: Built, layers: Sequence[Layer], epoch: int | None, fields: Mapping[str, Any], form: Form
    ) -> Image:
        now = self.clock.now()
        return compose(item.result, layers, item.base_layers, epoch, now=now, extra=fields, form=form)

    async def _write(
        self, built: Sequence[Built], output: Output, made: Bundle | None, epoch: int | None
    ) -> Digest | None:
        if made is None:
            return await self._write_files(built, output, epoch)
        if output.kind == "image" and output.push:
            compression = output.form.compression.written
            await self.pusher.push(made, output.names, by_digest=output.by_digest, compression=compression)
        elif output.directory:
            await self.layout.export(made, output)
        elif output.kind != "image":
            await self.archiver.export(made, output)
        return made.digest

    async def _write_files(self, built: Sequence[Built], output: Output, epoch: int | None) -> Digest | None:
        split = len(built) > 1 if output.split is None else output.split
        trees = [(item.result.platform.replace("/", "_") if split else "", item.ref) for item in built]
        if output.kind == "tar":
            return await self.tar.export(trees, output.dest, epoch)
        await self.local.export(trees, output.dest, epoch)
        return None


def told_repacked(graph: Graph, built: Sequence[Built], written: Sequence[Written]) -> list[str]:
    """A warning when layers of base images are in other blobs than their registries have them in, unasked."""
    listed = {layer.blob.digest for v in graph.vertices if isinstance(v.op, ImageSource) for layer in v.op.layers}
    again = {
        layer.diff_id
        for one in written
        if one.made is not None and not one.output.form.compression.force
        for item, image in zip(built, one.made.images, strict=True)
        for layer in image.layers[: item.base_layers]
        if layer.blob and layer.blob.digest not in listed
    }
    if not again:
        return []
    return [
        (f"blobs of base layers ({len(again)}) are not here, and were made anew from what is: the image's digest is not"
         " what it would be online, its id is")
    ]
