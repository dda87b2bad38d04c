"""`append`: an image with more layers, which came as files, as a graph. Pure; the base's layers are not looked at.

Sources: what `crane append`, `regctl image mod --layer-add` and `docker import --change` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from engine.errors import InputError
from engine.frontend.config import ImageConfig
from engine.frontend.contexts import image_title
from engine.graph import (
    Graph,
    HistoryStep,
    ImageSource,
    LayerSource,
    Merge,
    ResolvedImage,
    Result,
    Scratch,
    Vertex,
    merged,
    vertex,
)
from engine.images.change import apply_changes
from engine.images.contents import check_described
from engine.images.definition import Given, Json, Take, platforms_of
from engine.images.inherited import entries, fitted
from engine.images.resolver import Resolver, parse_image
from storage.interfaces.images import Provider

SCRATCH = "scratch"
COMMENT = "refledger.append.v0"
_LATEST = 2**63 - 1
"""The last time that can be told in ns: what a config says may be the year 9999."""


@dataclass(frozen=True, slots=True)
class Append:
    """Put the layers in `files` (names as written), bottom first, on `image` (`scratch`: on nothing) on `platforms`
    (none: all that it has; of scratch one must be named). `changes`: instructions of a Dockerfile that touch the config
    alone; `given`: the layers, once the files were read."""

    FRONTEND: ClassVar = "append.v0"
    image: str
    files: tuple[str, ...]
    platforms: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    given: tuple[Given, ...] = ()

    @property
    def frontend(self) -> str:
        """See Definition.frontend."""
        return self.FRONTEND

    def to_json(self) -> Json:
        """See Definition.to_json."""
        return {
            "image": self.image, "files": list(self.files), "platforms": list(self.platforms),
            "changes": list(self.changes), "layers": [item.to_json() for item in self.given],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Append:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError or InputError on anything else."""
        given = tuple(Given.from_json(item) for item in data["layers"])
        return cls(data["image"], tuple(data["files"]), tuple(data["platforms"]), tuple(data["changes"]), given)

    async def read(self, take: Take) -> Append:
        """See Definition.read. One after the other, as one of them may be standard input; what else is wrong is told
        before."""
        if self.given:
            return self
        if self.image != SCRATCH:
            parse_image(self.image)
        apply_changes(ImageConfig({}, {}), self.changes, COMMENT)
        return replace(self, given=tuple([await take(name) for name in self.files]))

    async def compile(self, resolver: Resolver) -> Graph:
        """See Definition.compile."""
        if self.image == SCRATCH:
            return merged([self._on(None, platform, len(self.platforms) > 1) for platform in self.platforms])
        platforms = await platforms_of(self.image, self.platforms, resolver)
        images = await resolver.resolve([(self.image, platform) for platform in platforms])
        return merged([self._on(images[(self.image, item)], item, len(platforms) > 1) for item in platforms])

    def _on(self, image: ResolvedImage | None, platform: str, several: bool) -> Graph:
        prefix = f"[{platform}] " if several else ""
        below = image.layers if image else ()
        layers = (*below, *(item.layer for item in self.given))
        check_described(layers, image.provider if image else Provider("", "", ""), self.image)
        config = _config(image, platform)
        title = image_title(self.image) if image else SCRATCH
        base = vertex(_source(image), (), f"{prefix}FROM {title}")
        added = _vertices(self.given, _created(image))
        made = vertex(
            Merge(tuple(str(layer.blob.digest) for layer in layers)), (base.digest, *(item.digest for item in added)),
            f"{prefix}append {_counted(self.given)} to {title}",
        )  # fmt: skip
        history = [
            HistoryStep(f"refledger append {item.name}", step.digest, COMMENT)
            for item, step in zip(self.given, added, strict=True)
        ]
        history += apply_changes(config, self.changes, COMMENT)
        told = fitted(entries(image.config), len(below), image.reference) if image else ()
        result = Result(
            made.digest, platform, config.to_json(), base_history=tuple(told), history=tuple(history),
            annotations=image.annotations if image else {},
        )  # fmt: skip
        unique = {step.digest: step for step in (base, *added, made)}
        return Graph(tuple(unique.values()), (result,))


def _source(image: ResolvedImage | None) -> Scratch | ImageSource:
    if image is None or not image.layers:
        return Scratch()
    return ImageSource(image.reference, image.manifest, image.platform, image.provider, image.layers)


def _vertices(given: Sequence[Given], created: int) -> list[Vertex]:
    """Layers are as old as the newest file in them, so that the same files give the same image everywhere, and none is
    older than what it stands on."""
    made = []
    for item in given:
        created = max(created, item.newest * 10**9)
        made.append(vertex(LayerSource(item.layer, created), (), f"layer {item.name}"))
    return made


def _config(image: ResolvedImage | None, platform: str) -> ImageConfig:
    if image is None:
        config = ImageConfig({}, {})
        config.set_platform(platform)
        return config
    try:
        return ImageConfig.of_image(image.config)
    except InputError as error:
        raise InputError(error.what, where=image.reference) from error


def _created(image: ResolvedImage | None) -> int:
    """When the image was made, in ns since the epoch; 0 when it does not say so in a way that can be read."""
    if image is None:
        return 0
    latest = 0
    for entry in (image.config, *entries(image.config)):
        try:
            moment = datetime.fromisoformat(str(entry.get("created")))
        except ValueError:
            continue
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        latest = max(latest, int(moment.timestamp()) * 10**9)
    return min(latest, _LATEST)


def _counted(given: Sequence[Given]) -> str:
    return "1 layer" if len(given) == 1 else f"{len(given)} layers"
