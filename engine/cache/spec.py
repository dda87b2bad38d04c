"""Which caches a build was told to read and to write."""

from __future__ import annotations

from typing import Literal

from engine.record import Record
from storage.interfaces.images import Compression, Reference


class CacheSource(Record):
    """One `--cache-from`. `written` as the user did; `reference` in a registry, or in an OCI layout of this disk."""

    written: str
    reference: Reference


class CacheTarget(Record):
    """One `--cache-to`. `reference`: None for `inline`, which goes where the image goes; `mode`: min holds what the
    images are made of, max every step; `image_manifest`: written as an image manifest, which every registry keeps,
    else as an index (all that BuildKit before 0.12 reads); `oci`: with OCI's media types, else with Docker's;
    `ignore_error`: a failure is a warning; `compression` of the layers in it."""

    written: str
    kind: Literal["registry", "local", "inline"]
    reference: Reference | None = None
    mode: Literal["min", "max"] = "min"
    image_manifest: bool = True
    oci: bool = True
    ignore_error: bool = False
    compression: Compression = Compression()
