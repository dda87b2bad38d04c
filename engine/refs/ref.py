"""Refs: immutable results, remote or local. Plain data.

Three facts of a layer are independent (I7) and are asked of whoever knows: *blob here* (BlobStore.size), *mountable
here* (LayerStore.has, SnapshotStore.has), *available at provider* (`Layer.providers`). None of them implies another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.graph import ImageLayer
from storage.digest import Digest, canonical_json, chain_ids
from storage.errors import InputError
from storage.interfaces.images import Descriptor, Provider

Json = dict[str, Any]
SCRATCH = "scratch"
MOST_LAYERS = 900
"""Layers of one ref: the kernel shows 999 (storage/overlay.py)."""
DESCRIBED_LIMIT = 512 * 1024
"""Bytes that the layers of one ref may take in an event, which has 1 MiB."""
FEWER_LAYERS = "join steps: several commands in one RUN, several files in one COPY"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a ref.

    A layer of an image has `diff_id`, `blob` and `providers` from the start. A layer that a step made has `snapshot`
    (the execution's id) and `created` (UTC ns); its diff ID and blob are learned when an export packs it.
    """

    diff_id: Digest | None = None
    blob: Descriptor | None = None
    providers: tuple[Provider, ...] = ()
    snapshot: str = ""
    created: int = 0

    @property
    def name(self) -> str:
        """What identifies it here: the snapshot id of a step's layer, else the diff ID; the blob's digest of one that
        only passes through, whose diff ID nobody asked for."""
        return self.snapshot or str(self.diff_id or (self.blob.digest if self.blob else ""))

    def to_json(self) -> Json:
        """The descriptor (when known), and `diff_id`, `providers`, `snapshot`, `created` unless they are empty."""
        out: Json = self.blob.to_json() if self.blob else {}
        if self.diff_id:
            out["diff_id"] = str(self.diff_id)
        if self.providers:
            out["providers"] = [provider.to_json() for provider in self.providers]
        if self.snapshot:
            out["snapshot"] = self.snapshot
        if self.created:
            out["created"] = self.created
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layer:
        """The inverse of `to_json`. Raises KeyError, TypeError or InputError on anything else."""
        return cls(
            diff_id=Digest(data["diff_id"]) if "diff_id" in data else None,
            blob=Descriptor.from_json(data) if "digest" in data else None,
            providers=tuple(Provider.from_json(item) for item in data.get("providers", ())),
            snapshot=str(data.get("snapshot", "")),
            created=int(data.get("created", 0)),
        )


@dataclass(frozen=True, slots=True)
class Remote:
    """A pointer: nothing is promised to be on this disk. Only `Materializer.materialize` makes it Local."""

    id: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Local:
    """Every layer is mountable here: `lowers` are their directories, bottom first."""

    id: str
    layers: tuple[Layer, ...]
    lowers: tuple[Path, ...]


Ref = Remote | Local


def scratch() -> Remote:
    """The empty file system."""
    return Remote(SCRATCH, ())


def of_image(layers: Sequence[ImageLayer], provider: Provider) -> Remote:
    """The ref of an image in a registry: its id is the chain ID of its layers."""
    if not layers:
        return scratch()
    chain = chain_ids([layer.diff_id for layer in layers])[-1]
    return Remote(str(chain), tuple(Layer(layer.diff_id, layer.blob, (provider,)) for layer in layers))


def of_layer(layer: ImageLayer, created: int) -> Remote:
    """The ref of one layer whose blob is stored here, made at `created` (UTC ns)."""
    return Remote(str(layer.diff_id), (Layer(layer.diff_id, layer.blob, created=created),))


def of_step(execution: str, base: Ref, created: int) -> Remote:
    """The ref of a step: `base` and one more layer, the snapshot that this execution made at `created` (UTC ns)."""
    return Remote(execution, (*base.layers, Layer(snapshot=execution, created=created)))


def layers_to_json(layers: Sequence[Layer]) -> list[Json]:
    """For events and the cache index. Raises InputError for more than the kernel shows, or an event has room for."""
    out = [layer.to_json() for layer in layers]
    if why := _too_much(out):
        raise InputError(why, hint=FEWER_LAYERS)
    return out


def too_much(layers: Sequence[Layer]) -> str:
    """Why `layers` cannot be those of one ref; "" when they can."""
    return _too_much([layer.to_json() for layer in layers])


def _too_much(layers: Sequence[Json]) -> str:
    if len(layers) > MOST_LAYERS:
        return f"{len(layers)} layers, more than {MOST_LAYERS}"
    size = len(canonical_json(layers))
    if size > DESCRIBED_LIMIT:
        return f"{len(layers)} layers that take {size} bytes to describe, more than {DESCRIBED_LIMIT}"
    return ""


def layers_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """The inverse of `layers_to_json`."""
    return tuple(Layer.from_json(item) for item in data)
