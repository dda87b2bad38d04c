"""An image's config and manifest, made of refs. Pure: the same refs and config give the same bytes.

Sources: OCI image-spec config.md and manifest.md. Times come from the layers (when the step ran, not when it was
exported), so a build that is all cached exports the same digest again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from engine.graph import Result
from engine.refs.ref import Layer
from storage.digest import Digest, canonical_json, sha256
from storage.interfaces import Descriptor

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_TO_OCI = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image:
    """`layers` have `blob` and `diff_id`, bottom first; `manifest` and `config` are the bytes to be stored."""

    layers: tuple[Layer, ...]
    manifest: bytes
    media_type: str
    config: bytes
    config_blob: Descriptor

    @property
    def digest(self) -> Digest:
        """The manifest's digest."""
        return sha256(self.manifest)


@dataclass(frozen=True, slots=True)
class Bundle:
    """What an export writes: one image, or several below `index` (bytes to be stored, b"" for one image)."""

    images: tuple[Image, ...]
    index: bytes = b""

    @property
    def top(self) -> bytes:
        """What a name points at: the index, or the one image's manifest."""
        return self.index or self.images[0].manifest

    @property
    def media_type(self) -> str:
        """Of `top`."""
        return INDEX if self.index else self.images[0].media_type

    @property
    def digest(self) -> Digest:
        """Of `top`."""
        return sha256(self.top)

    @property
    def config(self) -> Digest:
        """The digest of the one image's config; of the index, when there are several."""
        return self.digest if self.index else self.images[0].config_blob.digest

    @property
    def layers(self) -> dict[Digest, Layer]:
        """All layers by blob: one that stands twice (an empty one often does, or a base's) moves once."""
        return {layer.blob.digest: layer for image in self.images for layer in image.layers if layer.blob}


def bundle(images: Sequence[Image], platforms: Sequence[str]) -> Bundle:
    """`images` for `platforms` (`os/architecture[/variant]`); an index when there are several (image-index.md)."""
    if len(images) == 1:
        return Bundle(tuple(images))
    manifests = [
        {
            "mediaType": image.media_type, "digest": str(image.digest), "size": len(image.manifest),
            "platform": _platform(platform),
        }
        for image, platform in zip(images, platforms, strict=True)
    ]  # fmt: skip
    return Bundle(tuple(images), canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def compose(
    result: Result, layers: Sequence[Layer], base_layers: int, epoch: int | None, *, now: int, extra: Mapping[str, Any]
) -> Image:
    """The image of `result` on `layers` (packed, bottom first), of which the first `base_layers` are the base's.

    `epoch`: SOURCE_DATE_EPOCH in seconds, which then is every time this build adds; `now`: UTC ns, only used when
    nothing else tells a time; `extra`: further fields of the config. Raises AssertionError when the history does not
    fit the layers (a bug).
    """
    stamp = _stamp(epoch * 1_000_000_000) if epoch is not None else ""
    latest = _base_created(result.base_history)
    entries: list[dict[str, Any]] = [dict(entry) for entry in result.base_history]
    added = iter(layers[base_layers:])
    for step in result.history:
        entry: dict[str, Any] = {"created_by": step.created_by, "comment": step.comment}
        if step.vertex is None:
            entry["empty_layer"] = True
        else:
            latest = _stamp(next(added).created)
        if stamp or latest:
            entry["created"] = stamp or latest
        entries.append(entry)
    assert next(added, None) is None, "more layers than history tells of"
    config = {key: value for key, value in result.image.items() if value not in (None, "")}
    config["created"] = stamp or latest or _stamp(now)
    config["rootfs"] = {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]}
    config["history"] = entries
    config |= extra
    return _image(tuple(map(_as_oci, layers)), canonical_json(config), MANIFEST, CONFIG, result.annotations)


def as_docker(image: Image) -> Image:
    """The same image with Docker's media types, as `docker load` expects them."""
    layers = tuple(
        replace(layer, blob=replace(blob, media_type=layer_type(blob.media_type, oci=False)))
        for layer in image.layers
        if (blob := layer.blob)
    )
    return _image(layers, image.config, DOCKER_MANIFEST, DOCKER_CONFIG)


def _image(
    layers: tuple[Layer, ...], config: bytes, media_type: str, config_type: str,
    annotations: Mapping[str, str] | None = None,
) -> Image:  # fmt: skip
    config_blob = Descriptor(config_type, sha256(config), len(config))
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config_blob.to_json(),
        "layers": [layer.blob.to_json() for layer in layers if layer.blob],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    return Image(layers, canonical_json(manifest), media_type, config, config_blob)


def layer_type(media_type: str, *, oci: bool) -> str:
    """OCI's, or Docker's, name for the layer format `media_type`; `media_type` where there is none."""
    if oci:
        return _TO_OCI.get(media_type, media_type)
    return {oci: docker for docker, oci in _TO_OCI.items()}.get(media_type, media_type)


def _as_oci(layer: Layer) -> Layer:
    assert layer.blob is not None, "layers are packed before they are composed"
    return replace(layer, blob=replace(layer.blob, media_type=layer_type(layer.blob.media_type, oci=True)))


def _base_created(history: Sequence[Mapping[str, Any]]) -> str:
    return max((str(entry["created"]) for entry in history if entry.get("created")), default="")


def _stamp(time: int) -> str:
    """RFC 3339 with microseconds, or whole seconds when there are none."""
    moment = datetime.fromtimestamp(time // 1_000_000_000, UTC).replace(microsecond=time % 1_000_000_000 // 1000)
    return moment.isoformat(timespec="auto").replace("+00:00", "Z")
