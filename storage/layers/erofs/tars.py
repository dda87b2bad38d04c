"""Layers of images that lie here as EROFS images: the tar that they came as is inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.digest import Digest
from storage.errors import DiskError
from storage.interfaces.blobs import ByteSource
from storage.layers.erofs.header import SUFFIX, Image


@dataclass(frozen=True, slots=True)
class ImageTars:
    """Implements LayerTars for the images in `layers`."""

    layers: Path

    def has(self, diff_id: Digest) -> bool:
        """See LayerTars.has."""
        return self._image(diff_id).is_file()

    @contextmanager
    def open(self, diff_id: Digest) -> Iterator[ByteSource]:
        """See LayerTars.open."""
        try:
            with Image.open(self._image(diff_id)).open_tar() as tar:
                yield tar
        except OSError as error:
            raise DiskError.of(error, f"reading layer {diff_id.short}") from error

    def _image(self, diff_id: Digest) -> Path:
        return self.layers / (diff_id.hex + SUFFIX)
