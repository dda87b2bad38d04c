"""Where a build's result is wanted."""

from __future__ import annotations

from typing import Literal

from engine.record import Record
from storage.interfaces import Compression


class Output(Record):
    """`kind` image pushes to the names, the others write to `dest` (a path, `-` for standard output); `compression` of
    the layers in it."""

    kind: Literal["image", "oci", "docker", "local"]
    dest: str = ""
    compression: Compression = Compression()
