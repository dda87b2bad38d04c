"""Tars to blobs: compress, hash and store in one pass, nothing buffered whole.

The compressor's threads work on the blocks before while this one makes the tar, takes the diff ID and stores the blob.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from storage.compression import BLOCK, checked, compressor, version
from storage.decompression import decompress
from storage.digest import Digest, Hasher
from storage.errors import VerificationError
from storage.interfaces.blobs import BlobStore, BlobWriter, ByteSource
from storage.interfaces.images import Compression, Descriptor
from storage.interfaces.layers import SnapshotStore
from storage.interfaces.packing import PackedBlob
from storage.layers.erofs.header import Hashing
from storage.tar.clamp import Clamped

Give = Callable[[Callable[[bytes], Any]], None]


@dataclass(frozen=True, slots=True)
class BlobPacker:
    """Implements LayerPacker."""

    snapshots: SnapshotStore
    blobs: BlobStore

    def pack(self, snapshot: str, clamp_mtime: int | None, compression: Compression) -> PackedBlob:
        """See LayerPacker.pack. Raises DiskError, InputError."""
        packed = _pack(self.blobs, compression, partial(self.snapshots.pack, snapshot, clamp_mtime=clamp_mtime))
        assert packed is not None, "kept whatever it is"
        return packed


@dataclass(frozen=True, slots=True)
class BlobConverter:
    """Implements LayerConverter."""

    blobs: BlobStore

    def convert(
        self, source: ByteSource, media_type: str | None, diff_id: Digest, compression: Compression,
        clamp_mtime: int | None = None, *, even_if_same: bool = True,
    ) -> PackedBlob | None:  # fmt: skip
        """See LayerConverter.convert."""

        def give(write: Callable[[bytes], Any]) -> None:
            plain = source if media_type is None else decompress(source, media_type)
            hashed = Hashing(plain, diff_id.algorithm)
            tar = hashed if clamp_mtime is None else Clamped(hashed, clamp_mtime)
            while data := tar.read(BLOCK):
                write(data)
            if (found := hashed.digest()) != diff_id:
                raise VerificationError(f"the layer's content has the digest {found}", where=f"layer {diff_id.short}")

        return _pack(self.blobs, compression, give, None if even_if_same else diff_id)


def _pack(blobs: BlobStore, compression: Compression, give: Give, unwanted: Digest | None = None) -> PackedBlob | None:
    """Store the tar that `give` writes; nothing, when its diff ID is `unwanted`. Raises DiskError, InputError, and what
    `give` raises."""
    kind = checked(compression.kind, compression.level)
    writer = blobs.writer()
    layer = _sink(compression)
    try:
        pieces = _Pieces(layer, writer)
        give(pieces.write)
        pieces.finish()
        if layer.diff_id == unwanted:
            return None
        digest, size = writer.commit()
    finally:
        layer.close()
        writer.abort()
    blob = Descriptor(kind.media_type, digest, size, layer.annotations)
    return PackedBlob(layer.diff_id, blob, version(compression.kind, compression.level))


class _Sink(Protocol):
    """A tar on its way into a blob. `diff_id` and `annotations` are known when it is finished."""

    @property
    def diff_id(self) -> Digest: ...

    @property
    def annotations(self) -> Mapping[str, str]: ...

    def write(self, data: bytes) -> bytes:
        """Take bytes of the tar, give those of the blob."""
        ...

    def finish(self) -> bytes: ...

    def close(self) -> None: ...


def _sink(compression: Compression) -> _Sink:
    if compression.kind != "estargz":
        return _Stream(compression)
    from storage.parts.estargz import Estargz  # reason: few ask for it

    return Estargz(compression.level)


class _Stream:
    """A tar that is compressed as it is."""

    def __init__(self, compression: Compression) -> None:
        self._diff = Hasher()
        self._packed = compressor(compression.kind, level=compression.level)
        self.annotations: Mapping[str, str] = {}

    @property
    def diff_id(self) -> Digest:
        return self._diff.digest()

    def write(self, data: bytes) -> bytes:
        self._diff.update(data)
        return self._packed.compress(data)

    def finish(self) -> bytes:
        return self._packed.flush()

    def close(self) -> None:
        self._packed.close()


class _Pieces:
    """A tar comes in small pieces (headers), which would cost a call each further on."""

    def __init__(self, layer: _Sink, writer: BlobWriter) -> None:
        self._layer = layer
        self._writer = writer
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        """Add bytes of the tar. Raises DiskError."""
        if not self._pending and len(data) == BLOCK:
            self._store(self._layer.write(data))
            return
        self._pending += data
        while len(self._pending) >= BLOCK:
            self._pass_on(BLOCK)

    def finish(self) -> None:
        """Hand the rest to the blob's writer, which has all of it then. Raises DiskError."""
        self._pass_on(len(self._pending))
        self._store(self._layer.finish())

    def _pass_on(self, count: int) -> None:
        with memoryview(self._pending)[:count] as view:
            block = bytes(view)
        del self._pending[:count]
        self._store(self._layer.write(block))

    def _store(self, data: bytes) -> None:
        if data:
            self._writer.write(data)
