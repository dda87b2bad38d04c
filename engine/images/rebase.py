"""`rebase`: an image on another base, as a graph: the new base's layers, and the image's own on top. Pure.

Nothing of a layer is looked at. Sources: OCI image-spec annotations.md (`org.opencontainers.image.base.*`), and what
`crane rebase` and `regctl image mod --rebase` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.errors import InputError
from engine.frontend.config import ImageConfig
from engine.frontend.contexts import image_title
from engine.graph import Graph, ImageSource, Merge, Op, ResolvedImage, Result, Scratch, merged, vertex
from engine.images.contents import check_described
from engine.images.definition import Json, Take, platforms_of
from engine.images.inherited import entries, fitted, moved, own_history
from engine.images.resolver import Resolver
from storage.platform import NoPlatformError
from storage.reference import LAYOUT, parse_reference

BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"


@dataclass(frozen=True, slots=True)
class Rebase:
    """Put `image` from base `old` on base `new` ("" for what its annotations or the log say) on `platforms` (none: all
    that it and both bases have); `keep_config`: nothing of its config is taken for inherited."""

    FRONTEND: ClassVar = "rebase.v0"
    image: str
    old: str = ""
    new: str = ""
    platforms: tuple[str, ...] = ()
    keep_config: bool = False

    @property
    def frontend(self) -> str:
        """See Definition.frontend."""
        return self.FRONTEND

    def to_json(self) -> Json:
        """See Definition.to_json."""
        return {
            "image": self.image, "from": self.old, "to": self.new, "platforms": list(self.platforms),
            "keep_config": self.keep_config,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rebase:
        """The inverse of `to_json`. Raises KeyError, TypeError."""
        return cls(data["image"], data["from"], data["to"], tuple(data["platforms"]), data["keep_config"])

    async def read(self, _take: Take) -> Rebase:
        """See Definition.read: everything is in registries."""
        return self

    async def compile(self, resolver: Resolver) -> Graph:
        """See Definition.compile."""
        platforms = await platforms_of(self.image, self.platforms, resolver)
        images = await resolver.resolve([(self.image, platform) for platform in platforms])
        graphs, left_out = [], []
        for platform in platforms:
            try:
                graphs.append(await self._one(images[(self.image, platform)], resolver, several=len(platforms) > 1))
            except NoPlatformError as error:
                if self.platforms or len(platforms) == 1:
                    raise
                left_out.append((platform, error))
        if not graphs:
            raise left_out[0][1]
        graph = merged(graphs)
        warnings = [f"{platform} is left out: {error}" for platform, error in left_out]
        return Graph(graph.vertices, graph.results, (*graph.warnings, *warnings))

    async def _one(self, image: ResolvedImage, resolver: Resolver, *, several: bool) -> Graph:
        platform = image.platform
        names = _bases(image, self.old, self.new, _said(image, resolver))
        found = await resolver.resolve([(name, platform) for name in names])
        old, new = (found[(name, platform)] for name in names)
        _check_prefix(image, old)
        configs = [_config(item) for item in (image, old, new)]
        for item, config in zip((old, new), configs[1:], strict=True):
            if (config.top.get("os"), config.top.get("architecture")) != _machine(configs[0]):
                what = f"the base is for {config.platform or 'no platform'}, the image for {configs[0].platform}"
                raise NoPlatformError(what, where=item.reference)
        own = image.layers[len(old.layers) :]
        layers = (*new.layers, *own)
        check_described(layers, new.provider, image.reference)
        prefix = f"[{platform}] " if several else ""
        steps = [
            vertex(_source(new, new.layers), (), f"{prefix}FROM {image_title(new.reference)}"),
            vertex(_source(image, own), (), f"{prefix}{_counted(len(own))} of {image_title(image.reference)}"),
        ]
        blobs = tuple(str(layer.blob.digest) for layer in layers)
        name = f"{prefix}rebase {image_title(image.reference)} onto {image_title(new.reference)}"
        made = vertex(Merge(blobs), tuple(step.digest for step in steps), name)
        result = Result(
            made.digest, platform, moved(*configs, keep=self.keep_config).to_json(),
            base_history=(*_history(new), *_own_history(image, old)), annotations=_annotations(image, new),
        )  # fmt: skip
        unique = {step.digest: step for step in (*steps, made)}
        warnings = []
        if old.manifest == new.manifest:
            warnings.append(f"{prefix}{image.reference} stands on {new.reference} already: its layers stay as they are")
        return Graph(tuple(unique.values()), (result,), tuple(warnings))


def _said(image: ResolvedImage, resolver: Resolver) -> Mapping[str, str]:
    """What the image says it was built on, else what is known of it here, in the same words."""
    if BASE_NAME in image.annotations:
        return image.annotations
    found = resolver.base_of(image.manifest)
    if found is None or found[0].startswith(LAYOUT):
        return {}
    return {BASE_NAME: found[0], BASE_DIGEST: str(found[1])}


def _bases(image: ResolvedImage, old: str, new: str, said: Mapping[str, str]) -> tuple[str, str]:
    """The names of both bases; those that were not given as they are `said`. Raises InputError."""
    name, digest = said.get(BASE_NAME, ""), said.get(BASE_DIGEST, "")
    if not (old and new) and not name:
        raise InputError(
            f"the image does not say what it was built on: it has no annotation {BASE_NAME}", where=image.reference,
            hint="this root did not make it either: name both bases, --from OLD_BASE --to NEW_BASE",
        )  # fmt: skip
    if not old and not digest:
        raise InputError(
            f"the image does not say which {name[:200]} it was built on: it has no annotation {BASE_DIGEST}",
            where=image.reference, hint="name that base: --from OLD_BASE",
        )  # fmt: skip
    for text in [f"{name.partition('@')[0]}@{digest}"] * (not old) + [name] * (not new):
        try:
            parse_reference(text)  # reason: an image must not make us read a path of this machine
        except InputError as error:
            raise InputError(f"its annotation {BASE_NAME}: {error.what}", where=image.reference) from error
    return old or f"{name.partition('@')[0]}@{digest}", new or name


def _check_prefix(image: ResolvedImage, old: ResolvedImage) -> None:
    """Raises InputError unless `image` begins with the layers of `old`."""
    hint = "name the base that it was built on with --from; refledger inspect shows the layers of both"
    text = f"{image.reference} is not based on {old.reference} ({image.platform}): "
    if len(image.layers) < len(old.layers):
        text += f"it has {_counted(len(image.layers))}, the base {len(old.layers)}"
        raise InputError(text, hint=hint)
    for number, (ours, theirs) in enumerate(zip(image.layers, old.layers, strict=False), 1):
        if ours.diff_id != theirs.diff_id:
            text += f"layer {number} of {len(old.layers)} is {theirs.diff_id} in the base, {ours.diff_id} in the image"
            raise InputError(text, hint=hint)


def _config(image: ResolvedImage) -> ImageConfig:
    try:
        return ImageConfig.of_image(image.config)
    except InputError as error:
        raise InputError(error.what, where=image.reference) from error


def _machine(config: ImageConfig) -> tuple[Any, Any]:
    return config.top.get("os"), config.top.get("architecture")


def _source(image: ResolvedImage, layers: tuple[Any, ...]) -> Op:
    if not layers:
        return Scratch()
    return ImageSource(image.reference, image.manifest, image.platform, image.provider, layers)


def _history(image: ResolvedImage) -> list[Json]:
    return fitted(entries(image.config), len(image.layers), image.reference)


def _own_history(image: ResolvedImage, old: ResolvedImage) -> list[Json]:
    own = own_history(entries(image.config), entries(old.config), len(old.layers))
    return fitted(own, len(image.layers) - len(old.layers), image.reference)


def _annotations(image: ResolvedImage, new: ResolvedImage) -> dict[str, str]:
    """The image's, with what it stands on now; a base that is a path of this machine is nobody's business."""
    kept = {name: text for name, text in image.annotations.items() if name not in {BASE_NAME, BASE_DIGEST}}
    if new.reference.startswith(LAYOUT):
        return kept
    name = parse_reference(new.reference)
    tagged = f"{name.registry}/{name.repository}:{name.tag}" if name.tag else str(name)
    return kept | {BASE_NAME: tagged, BASE_DIGEST: str(new.digest)}


def _counted(layers: int) -> str:
    return f"{layers} layer" if layers == 1 else f"{layers} layers"
