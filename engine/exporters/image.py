"""An image's config and manifest, made of refs. Pure: the same refs, config and form give the same bytes.

Sources: OCI image-spec config.md, manifest.md and layer.md; distribution's manifest-v2-2.md (docker's media types);
buildkit docs/annotations.md. Times come from the layers (when the step ran, not when it was
exported), so a build that is all cached exports the same digest again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from engine.graph import Result
from engine.output import Form, Part
from engine.refs.ref import Layer
from storage.digest import Digest, canonical_json, sha256
from storage.interfaces.images import Descriptor
from storage.media_types import CONFIG, DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_TO_OCI = {
    f"{docker}{'.' if kind else ''}{kind}": f"{oci}{'+' if kind else ''}{kind}"
    for docker, oci in ((_DOCKER_LAYER, _OCI_LAYER), (_DOCKER_FOREIGN, _OCI_FOREIGN))
    for kind in ("gzip", "zstd", "")
}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """`layers` have `blob` and `diff_id`, bottom first; `manifest` and `config` are the bytes to be stored. `platform`
    as `os/architecture[/variant]`; `annotations` of the manifest's descriptor."""

    layers: tuple[Layer, ...]
    manifest: bytes
    media_type: str
    config: bytes
    config_blob: Descriptor
    platform: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """The manifest's digest."""
        return sha256(self.manifest)

    @property
    def descriptor(self) -> Descriptor:
        """Of the manifest."""
        return Descriptor(self.media_type, self.digest, len(self.manifest), self.annotations)


@dataclass(frozen=True, slots=True)
class Attested:
    """What is attached to one image: `manifest` lies beside it in the index, `referrers` refer to it."""

    manifest: Image
    referrers: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What an export writes: one image, or several below `index` (bytes to be stored, b"" for one image), which then is
    of `index_type` and whose own descriptor has `annotations`; `attests` are listed behind the images, of which they
    say something; `referrers` refer to those (by `subject`): they go where they go, but into no archive, which has no
    place for them."""

    images: tuple[Image, ...]
    index: bytes = b""
    index_type: str = INDEX
    annotations: Mapping[str, str] = field(default_factory=dict)
    attests: tuple[Image, ...] = ()
    referrers: tuple[Image, ...] = ()

    @property
    def listed(self) -> tuple[Image, ...]:
        """All that the index lists."""
        return (*self.images, *self.attests)

    @property
    def top(self) -> bytes:
        """What a name points at: the index, or the one image's manifest."""
        return self.index or self.images[0].manifest

    @property
    def media_type(self) -> str:
        """Of `top`."""
        return self.descriptor.media_type

    @property
    def digest(self) -> Digest:
        """Of `top`."""
        return self.descriptor.digest

    @property
    def descriptor(self) -> Descriptor:
        """Of `top`."""
        if not self.index:
            return self.images[0].descriptor
        return Descriptor(self.index_type, sha256(self.index), len(self.index), self.annotations)

    @property
    def config(self) -> Digest:
        """The digest of the one image's config; of the index, when there are several images."""
        return self.digest if len(self.images) > 1 else self.images[0].config_blob.digest

    @property
    def layers(self) -> dict[Digest, Layer]:
        """All layers by blob: one that stands twice (an empty one often does, or a base's) moves once. Those that are
        not to be distributed are left out: they stay where their URLs say."""
        return _layers(self.listed)

    @property
    def everything(self) -> dict[Digest, Layer]:
        """The same, and what the referrers are made of."""
        return _layers((*self.listed, *self.referrers))


def _layers(images: Sequence[Image]) -> dict[Digest, Layer]:
    return {
        layer.blob.digest: layer
        for image in images
        for layer in image.layers
        if layer.blob and not layer.blob.media_type.startswith((_OCI_FOREIGN, _DOCKER_FOREIGN))
    }


def bundle(
    images: Sequence[Image], form: Form, attests: Sequence[Image] = (), referrers: Sequence[Image] = ()
) -> Bundle:
    """The `images` of one build, below an index when there are several, or something `attests` one: that comes behind
    them (image-index.md; BuildKit docs/attestations/attestation-storage.md)."""
    if len(images) == 1 and not attests:
        return Bundle(tuple(images))
    index: Json = {
        "schemaVersion": 2,
        "mediaType": INDEX if form.oci else DOCKER_LIST,
        "manifests": [
            {**image.descriptor.to_json(), "platform": _platform(image.platform)} for image in (*images, *attests)
        ],
    }
    if noted := _annotations(form, "index"):
        index["annotations"] = noted
    noted = _annotations(form, "index-descriptor")
    return Bundle(tuple(images), canonical_json(index), index["mediaType"], noted, tuple(attests), tuple(referrers))


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def _annotations(form: Form, part: Part, platform: str = "") -> dict[str, str]:
    """What is to be said of `part`; what is said of `platform` goes before what is said of all."""
    found = [one for one in form.annotations if one.part == part and one.platform in ("", platform)]
    return {one.key: one.value for one in sorted(found, key=lambda one: one.platform)}


def compose(
    result: Result,
    layers: Sequence[Layer],
    base_layers: int,
    epoch: int | None,
    *,
    now: int,
    extra: Mapping[str, Any],
    form: Form = Form(),  # noqa: B008  it is immutable
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
    annotations = result.annotations
    return _image(
        tuple(_formed(layer, form) for layer in layers), canonical_json(config), form, result.platform, annotations
    )


def _image(
    layers: tuple[Layer, ...], config: bytes, form: Form, platform: str, annotations: Mapping[str, str]
) -> Image:
    config_blob = Descriptor(CONFIG if form.oci else DOCKER_CONFIG, sha256(config), len(config))
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": MANIFEST if form.oci else DOCKER_MANIFEST,
        "config": config_blob.to_json(),
        "layers": [layer.blob.to_json() for layer in layers if layer.blob],
    }
    noted = {**(annotations if form.oci else {}), **_annotations(form, "manifest", platform)}
    if noted:
        manifest["annotations"] = noted
    described = _annotations(form, "manifest-descriptor", platform)
    data = canonical_json(manifest)
    return Image(layers, data, manifest["mediaType"], config, config_blob, platform, described)


def _formed(layer: Layer, form: Form) -> Layer:
    """`layer` as an image of `form` describes it: docker's manifests have no annotations, and a layer of others stays
    foreign only where it is said to be had (BuildKit's prefer-nondist-layers)."""
    blob = layer.blob
    assert blob is not None, "layers are packed before they are composed"
    media_type = layer_type(blob.media_type, oci=True)
    foreign = form.foreign and bool(blob.urls)
    kind = media_type.removeprefix(_OCI_FOREIGN).removeprefix(_OCI_LAYER)
    if media_type.startswith((_OCI_FOREIGN, _OCI_LAYER)):
        media_type = f"{_OCI_FOREIGN if foreign else _OCI_LAYER}{kind}"
    return replace(
        layer,
        blob=replace(
            blob,
            media_type=layer_type(media_type, oci=form.oci),
            annotations=blob.annotations if form.oci else {},
            urls=blob.urls if foreign else (),
        ),
    )


def layer_type(media_type: str, *, oci: bool) -> str:
    """OCI's, or Docker's, name for the layer format `media_type`; `media_type` where there is none."""
    if oci:
        return _TO_OCI.get(media_type, media_type)
    return {oci: docker for docker, oci in _TO_OCI.items()}.get(media_type, media_type)


def _base_created(history: Sequence[Mapping[str, Any]]) -> str:
    return max((str(entry["created"]) for entry in history if entry.get("created")), default="")


def _stamp(time: int) -> str:
    """RFC 3339 with microseconds, or whole seconds when there are none."""
    moment = datetime.fromtimestamp(time // 1_000_000_000, UTC).replace(microsecond=time % 1_000_000_000 // 1000)
    return moment.isoformat(timespec="auto").replace("+00:00", "Z")
