"""Layers of images that lie here as EROFS images, as blobs again: the tar that they came as is inside.

The blob is not the one that their registry has, as nobody compresses as somebody else does; the diff ID is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.digest import Digest
from storage.erofs.header import SUFFIX, Image
from storage.errors import DiskError
from storage.interfaces import BlobStore, PackedBlob
from storage.packing import pack_tar

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class TarPacker:
    """Implements LayerRepacker for the images in `layers`."""

    layers: Path
    blobs: BlobStore

    def has(self, diff_id: Digest) -> bool:
        """See LayerRepacker.has."""
        return self._image(diff_id).is_file()

    def pack(self, diff_id: Digest) -> PackedBlob:
        """See LayerRepacker.pack."""

        def give(write: Callable[[bytes], Any]) -> None:
            with Image.open(self._image(diff_id)).open_tar() as tar:
                while data := tar.read(_CHUNK):
                    write(data)

        try:
            return pack_tar(self.blobs, give, diff_id)
        except OSError as error:
            raise DiskError.of(error, f"packing layer {diff_id.short}") from error

    def _image(self, diff_id: Digest) -> Path:
        return self.layers / (diff_id.hex + SUFFIX)
