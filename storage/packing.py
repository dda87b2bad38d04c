"""Snapshots to blobs: tar, compress, hash and store in one pass, nothing buffered whole.

The compressor's threads work on the blocks before while this one makes the tar, takes the diff ID and stores the blob.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.compression import BLOCK, COMPRESSOR_VERSION, Compressor, compressor
from storage.digest import Digest, Hasher
from storage.errors import VerificationError
from storage.interfaces import BlobStore, BlobWriter, Descriptor, PackedBlob, SnapshotStore

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True)
class BlobPacker:
    """Implements LayerPacker with gzip."""

    snapshots: SnapshotStore
    blobs: BlobStore

    def pack(self, snapshot: str, clamp_mtime: int | None) -> PackedBlob:
        """See LayerPacker.pack. Raises DiskError."""
        return pack_tar(self.blobs, lambda write: self.snapshots.pack(snapshot, write, clamp_mtime=clamp_mtime))


def pack_tar(
    blobs: BlobStore, give: Callable[[Callable[[bytes], Any]], None], expected: Digest | None = None
) -> PackedBlob:
    """Store the tar that `give` writes, compressed. Raises DiskError, what `give` raises, and, keeping nothing,
    VerificationError when its diff ID is not `expected`."""
    writer = blobs.writer()
    layer = _Layer(compressor("gzip"), writer)
    try:
        give(layer.write)
        layer.finish()
        diff_id = layer.diff.digest()
        if expected is not None and diff_id != expected:
            hint = "a build that may ask its registry fetches it again"
            raise VerificationError("the layer is not what it was", where=f"layer {expected.short}", hint=hint)
        digest, size = writer.commit()
    finally:
        layer.packed.close()
        writer.abort()
    return PackedBlob(diff_id, Descriptor(LAYER_GZIP, digest, size), COMPRESSOR_VERSION)


class _Layer:
    """A tar on its way into a blob. It comes in small pieces (headers), which would cost a call each further on."""

    def __init__(self, packed: Compressor, writer: BlobWriter) -> None:
        self.diff = Hasher()
        self.packed = packed
        self._writer = writer
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        """Add bytes of the tar. Raises DiskError."""
        self._pending += data
        while len(self._pending) >= BLOCK:
            self._pass_on(BLOCK)

    def finish(self) -> None:
        """Hand the rest to the blob's writer, which has all of it then. Raises DiskError."""
        self._pass_on(len(self._pending))
        self._store(self.packed.flush())

    def _pass_on(self, count: int) -> None:
        with memoryview(self._pending)[:count] as view:
            block = bytes(view)
        del self._pending[:count]
        self.diff.update(block)
        self._store(self.packed.compress(block))

    def _store(self, data: bytes) -> None:
        if data:
            self._writer.write(data)
