"""Snapshots to blobs: tar, compress, hash and store in one pass, nothing buffered whole."""

from __future__ import annotations

from dataclasses import dataclass

from storage.compression import COMPRESSOR_VERSION, compressor
from storage.digest import Hasher
from storage.interfaces import BlobStore, Descriptor, PackedBlob, SnapshotStore

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
BUFFER = 1 << 20
"""Bytes of tar given to the compressor at once: many small headers would cost a call each."""


@dataclass(frozen=True, slots=True)
class BlobPacker:
    """Implements LayerPacker with gzip."""

    snapshots: SnapshotStore
    blobs: BlobStore

    def pack(self, snapshot: str, clamp_mtime: int | None) -> PackedBlob:
        """See LayerPacker.pack. Raises DiskError."""
        diff, packed, writer = Hasher(), compressor("gzip"), self.blobs.writer()
        pending = bytearray()

        def flush() -> None:
            data = bytes(pending)
            pending.clear()
            diff.update(data)
            writer.write(packed.compress(data))

        def write(data: bytes) -> None:
            pending.extend(data)
            if len(pending) >= BUFFER:
                flush()

        try:
            self.snapshots.pack(snapshot, write, clamp_mtime=clamp_mtime)
            flush()
            writer.write(packed.flush())
            digest, size = writer.commit()
        finally:
            writer.abort()
        return PackedBlob(diff.digest(), Descriptor(LAYER_GZIP, digest, size), COMPRESSOR_VERSION)
