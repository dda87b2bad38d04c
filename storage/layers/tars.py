"""Layers that lie in a root, as uncompressed tars: for whoever must take them elsewhere. Nothing is mounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from storage.decompression import decompress
from storage.digest import Digest
from storage.errors import DiskError
from storage.interfaces.blobs import BlobStore, ByteSource
from storage.interfaces.images import Descriptor
from storage.interfaces.layers import SnapshotStore
from storage.layers.erofs.header import SUFFIX, Image
from storage.tar.reader import REGULAR, TarReader

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredTars:
    """`layers`: the directory of layers of images; `images`: that of snapshots that are kept as images; `snapshots`
    those of steps; `blobs` stored in the root."""

    layers: Path
    images: Path
    snapshots: SnapshotStore
    blobs: BlobStore

    def write(
        self, write: Callable[[bytes], Any], *, snapshot: str = "", diff_id: Digest | None = None,
        blob: Descriptor | None = None,
    ) -> bool:  # fmt: skip
        """Write the tar of a layer, however it is known here; False when its exact bytes are not here. Blocking.
        Raises DiskError, VerificationError, and what `write` raises."""
        # reason: a store that mounts nothing does not count images as here, but packs them all the same
        if snapshot and (self.snapshots.has(snapshot) or (self.images / f"{snapshot}{SUFFIX}").is_file()):
            self.snapshots.pack(snapshot, write)
            return True
        try:
            if blob is not None and self.blobs.size(blob.digest) is not None:
                with self.blobs.open(blob.digest) as file:
                    _pump(decompress(file, blob.media_type), write)
                return True
            image = self.layers / f"{diff_id.hex}{SUFFIX}" if diff_id is not None else None
            if image is not None and image.is_file():
                with Image.open(image).open_tar() as tar:
                    _pump(tar, write)
                return True
        except OSError as error:
            raise DiskError.of(error, "reading a layer") from error
        return False


def regular_files(tar: BinaryIO) -> Iterator[tuple[bytes, int, Iterator[memoryview]]]:
    """Name, time (ns since the epoch) and content of each file of an uncompressed tar; not of sparse ones, which are as
    large as they say. Raises VerificationError."""
    reader = TarReader(tar)
    for entry in reader:
        if entry.type == REGULAR and entry.segments is None:
            yield entry.name, entry.mtime, reader.data()


def _pump(source: ByteSource, write: Callable[[bytes], Any]) -> None:
    while data := source.read(_READ):
        write(data)
