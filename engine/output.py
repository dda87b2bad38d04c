"""Where a build's result is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Output:
    """`kind` image pushes to the names, the others write to `dest` (a path, `-` for standard output)."""

    kind: Literal["image", "oci", "docker", "local"]
    dest: str = ""
