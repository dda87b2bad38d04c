"""An image as a person looks at it: what its manifest and config say, and which of its bytes are where. Pure.

Nothing in it is to be trusted: it was written by whoever pushed the image. Texts are as they came, not escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.images.combine import platform_name, platform_of, subject_of
from engine.images.place import descriptors
from engine.images.read import Manifest
from engine.refs.ref import Layer
from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.images import Descriptor, Provider, Referrer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Where:
    """Three facts of a layer, none of which implies another (I7): can it be mounted here, does its blob lie here, and
    who is known to have it."""

    mountable: bool = False
    stored: bool = False
    providers: tuple[Provider, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer, with `made_by` what history says of it ("" for nothing). Of a step's layer that was never packed there
    is no blob."""

    layer: Layer
    where: Where
    annotations: Mapping[str, str] = field(default_factory=dict)
    made_by: str = ""

    @property
    def size(self) -> int:
        """Bytes of the blob; 0 when there is none."""
        return self.layer.blob.size if self.layer.blob else 0

    @property
    def to_come(self) -> bool:
        """Would it have to be fetched to be used here?"""
        return not (self.where.mountable or self.where.stored)

    def to_json(self) -> Json:
        """`digest`, `media_type`, `size`, `diff_id`, `snapshot`, `annotations`, `mountable`, `stored`, `providers`,
        `made_by`; "" for what is not known."""
        blob = self.layer.blob
        return {
            "digest": str(blob.digest) if blob else "", "media_type": blob.media_type if blob else "",
            "size": self.size, "diff_id": str(self.layer.diff_id or ""), "snapshot": self.layer.snapshot,
            "annotations": dict(self.annotations), "mountable": self.where.mountable, "stored": self.where.stored,
            "providers": [provider.to_json() for provider in self.where.providers], "made_by": self.made_by,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A line of history; `layer`: which of the image's it made, from 0, None for none."""

    created: str
    made_by: str
    comment: str
    layer: int | None


@dataclass(frozen=True, slots=True)
class ImageView:
    """One manifest that lists no others. `config` as stored, {} of what is no image; `config_blob` its descriptor."""

    manifest: Manifest
    platform: str
    config_blob: Descriptor | None
    config: Json
    layers: tuple[LayerView, ...]
    history: tuple[Step, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all layers as they travel, each once."""
        return layers_size(self.layers)

    @property
    def to_pull(self) -> int:
        """Bytes that a RUN on it would bring here."""
        return bytes_to_pull(self.layers)

    @property
    def runs(self) -> Json:
        """What a container of it is told, by the names of the config's `config`."""
        runs = self.config.get("config")
        return runs if isinstance(runs, dict) else {}

    def to_json(self) -> Json:
        """What there is to know, by name."""
        runs, config = self.runs, self.config_blob
        return {
            **_described(self.manifest), "platform": self.platform,
            "config": {"digest": str(config.digest), "media_type": config.media_type, "size": config.size}
            if config else None,
            "created": text(self.config.get("created")), "author": text(self.config.get("author")),
            "entrypoint": texts(runs.get("Entrypoint")), "cmd": texts(runs.get("Cmd")),
            "env": texts(runs.get("Env")), "user": text(runs.get("User")), "workdir": text(runs.get("WorkingDir")),
            "ports": names(runs.get("ExposedPorts")), "volumes": names(runs.get("Volumes")),
            "labels": pairs(runs.get("Labels")), "stop_signal": text(runs.get("StopSignal")),
            "layers": [layer.to_json() for layer in self.layers],
            "history": [
                {"created": step.created, "made_by": step.made_by, "comment": step.comment, "layer": step.layer}
                for step in self.history
            ],
            "layers_size": self.size, "to_pull": self.to_pull,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """What an index lists. `name`: its platform, or what else it is; `attests`: the digest that it attests something
    of, "" for an image."""

    blob: Descriptor
    name: str
    attests: str = ""

    def to_json(self) -> Json:
        """`digest`, `media_type`, `size`, `platform`, `attests`, `annotations`."""
        return {
            "digest": str(self.blob.digest), "media_type": self.blob.media_type, "size": self.blob.size,
            "platform": "" if self.attests else self.name, "attests": self.attests,
            "annotations": dict(self.blob.annotations),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inspected:
    """What `reference` names: `top`, with its `entries` when that is an index, and the one `image` that was looked at
    closer; `referrers` of either, by digest, when they were asked for."""

    reference: str
    top: Manifest
    entries: tuple[Entry, ...] = ()
    image: ImageView | None = None
    referrers: Mapping[str, Sequence[Referrer]] | None = None

    def to_json(self) -> Json:
        """The fields, by name."""
        out: Json = {"reference": self.reference, **_described(self.top)}
        out["manifests"] = [entry.to_json() for entry in self.entries]
        out["image"] = self.image.to_json() if self.image else None
        if self.referrers is not None:
            out["referrers"] = [
                {
                    "subject": subject, "digest": str(one.manifest.digest), "media_type": one.manifest.media_type,
                    "size": one.manifest.size, "artifact_type": one.artifact_type,
                    "annotations": dict(one.manifest.annotations),
                }
                for subject, found in self.referrers.items() for one in found
            ]  # fmt: skip
        return out


@dataclass(frozen=True, slots=True)
class RefView:
    """What the log knows of a ref, whose config and manifest it need not have. `kind`: remote (an image) or local (a
    step's result), made in `build`."""

    ref: str
    kind: str
    build: str
    layers: tuple[LayerView, ...]

    @property
    def size(self) -> int:
        """As of an ImageView; layers that have no blob count nothing."""
        return layers_size(self.layers)

    @property
    def to_pull(self) -> int:
        """As of an ImageView."""
        return bytes_to_pull(self.layers)

    def to_json(self) -> Json:
        """The fields, by name, and `layers_size` and `to_pull`."""
        return {
            "ref": self.ref, "kind": self.kind, "build": self.build,
            "layers": [layer.to_json() for layer in self.layers], "layers_size": self.size, "to_pull": self.to_pull,
        }  # fmt: skip


def index_entries(index: Manifest, where: str) -> tuple[Entry, ...]:
    """What `index` lists, in its order. Raises VerificationError."""
    listed = descriptors(index.fields, "manifests", where)
    return tuple(Entry(blob, platform_name(entry), subject_of(entry)) for blob, entry in listed)


def image_layers(manifest: Manifest, config: Json, where: str) -> list[Layer]:
    """The layers that a manifest lists, with the diff IDs that its config has, where it has one for each. Raises
    VerificationError."""
    blobs = [blob for blob, _ in descriptors(manifest.fields, "layers", where)]
    rootfs = config.get("rootfs")
    told = texts(rootfs.get("diff_ids")) if isinstance(rootfs, dict) else []
    try:
        diff_ids: list[Digest | None] = [Digest(item) for item in told]
    except InputError:
        diff_ids = []
    if len(diff_ids) != len(blobs):
        diff_ids = [None] * len(blobs)
    return [Layer(diff_id, blob) for diff_id, blob in zip(diff_ids, blobs, strict=True)]


def image_view(
    manifest: Manifest, config_blob: Descriptor | None, config: Json, layers: Sequence[Layer], wheres: Sequence[Where]
) -> ImageView:
    """All of one image; `wheres` of its `layers`, in their order."""
    history = _history(config.get("history"), len(layers))
    made_by = {step.layer: step.made_by for step in history if step.layer is not None}
    views = [
        LayerView(layer, where, layer.blob.annotations if layer.blob else {}, made_by.get(number, ""))
        for number, (layer, where) in enumerate(zip(layers, wheres, strict=True))
    ]
    platform = platform_of({"platform": config})
    return ImageView(manifest, str(platform or ""), config_blob, config, tuple(views), history)


def _history(told: object, layers: int) -> tuple[Step, ...]:
    """History, each line that made a layer with the next one (config.md, `history`)."""
    entries = [entry for entry in told if isinstance(entry, dict)] if isinstance(told, list) else []
    steps, number = [], 0
    for entry in entries:
        made = number if entry.get("empty_layer") is not True and number < layers else None
        number += made is not None
        created, made_by, comment = (text(entry.get(key)) for key in ("created", "created_by", "comment"))
        steps.append(Step(created, made_by, comment, made))
    return tuple(steps)


def _described(manifest: Manifest) -> Json:
    fields = manifest.fields
    subject = fields.get("subject")
    return {
        "digest": str(manifest.digest), "media_type": manifest.media_type, "size": len(manifest.data),
        "artifact_type": text(fields.get("artifactType")), "annotations": pairs(fields.get("annotations")),
        "subject": text(subject.get("digest")) if isinstance(subject, dict) else "",
    }  # fmt: skip


def layers_size(layers: Sequence[LayerView]) -> int:
    """Bytes of the blobs of `layers`, each once."""
    return sum({str(view.layer.blob.digest): view.size for view in layers if view.layer.blob}.values())


def bytes_to_pull(layers: Sequence[LayerView]) -> int:
    """Bytes of those that would have to be fetched."""
    return layers_size([view for view in layers if view.to_come])


# ---------------------------------------------------------------- fields that may be anything


def text(value: object) -> str:
    """A text; "" for anything else."""
    return value if isinstance(value, str) else ""


def texts(value: object) -> list[str]:
    """The texts in a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def names(value: object) -> list[str]:
    """The keys of an object, in order."""
    return sorted(value) if isinstance(value, dict) else []


def pairs(value: object) -> dict[str, str]:
    """An object of texts."""
    return {str(key): item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}
