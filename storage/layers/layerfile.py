"""Layers that come as files: a tar as it is, or in gzip or zstd. Read once: stored, hashed twice, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from storage.digest import Digest, Hasher
from storage.errors import DiskError, VerificationError
from storage.interfaces.blobs import BlobStore, BlobWriter
from storage.interfaces.images import Descriptor
from storage.interfaces.layers import StagedLayer, StoredLayer
from storage.layers.erofs.tree import LayerTree
from storage.layers.readahead import ReadAhead
from storage.tar.reader import TarReader

_TYPE = "application/vnd.oci.image.layer.v1.tar"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"LZIP": "lzip", b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip"}
"""How files begin that people take for layers, and that no image can have."""


class BlobIntake:
    """Implements LayerIntake. A layer that expands to more than `limit` bytes is refused, and so is one that could not
    be laid out: whoever pulls the image would find out otherwise."""

    def __init__(self, blobs: BlobStore, limit: int) -> None:
        self._blobs = blobs
        self._limit = limit

    def read(self, file: BinaryIO, now: int) -> StagedLayer:
        """See LayerIntake.read."""
        writer = self._blobs.writer()
        source = _Kept(file, writer)
        try:
            return self._read(source, now)
        except VerificationError as error:
            writer.abort()
            raise _no_layer(error, source.start) from error
        except BaseException as error:
            writer.abort()
            if isinstance(error, OSError):
                raise DiskError.of(error, "reading the layer") from error
            raise

    def _read(self, source: _Kept, now: int) -> _Staged:
        hasher = Hasher()
        with ReadAhead(source, "", hasher, self._limit) as tar:
            newest = _newest(tar, now)
        if not hasher.size:
            raise VerificationError("the file is empty")
        return _Staged(source.writer, source.media_type, hasher.digest(), newest)


def _no_layer(error: VerificationError, start: bytes) -> VerificationError:
    kind = next((kind for beginning, kind in _OTHERS.items() if start.startswith(beginning)), "")
    if kind:
        hint = "compress it with gzip or zstd, or not at all"
        return VerificationError(f"it is {kind}, which no layer can be in", hint=hint)
    return VerificationError(f"it is no layer: {error.what}", hint=error.hint)


@dataclass(frozen=True, slots=True)
class _Staged:
    """Implements StagedLayer."""

    writer: BlobWriter
    media_type: str
    diff_id: Digest
    newest: int

    def commit(self) -> StoredLayer:
        """See StagedLayer.commit."""
        digest, size = self.writer.commit()
        return StoredLayer(Descriptor(self.media_type, digest, size), self.diff_id, self.newest)

    def abort(self) -> None:
        """See StagedLayer.abort."""
        self.writer.abort()


def _newest(source: ReadAhead, now: int) -> int:
    """Read the whole tar: the latest time in it up to `now`. Raises VerificationError for what no file system can
    hold."""
    tar, tree, newest = TarReader(source), LayerTree(), 0
    for entry in tar:
        tree.add(entry)
        seconds = entry.mtime // 10**9
        if newest < seconds <= now:
            newest = seconds
    tar.drain()
    tree.finish()
    return newest


class _Kept:
    """ByteSource over a file: what is read of it is written, too. Read by one thread."""

    def __init__(self, file: BinaryIO, writer: BlobWriter) -> None:
        self._file = file
        self.writer = writer
        self.start = b""

    @property
    def media_type(self) -> str:
        """Of what was read, by how it begins (RFC 1952, RFC 8878)."""
        if self.start[:3] == b"\x1f\x8b\x08":
            return _TYPE + "+gzip"
        if self.start[:4] == b"\x28\xb5\x2f\xfd" or (self.start[1:4] == b"\x2a\x4d\x18" and self.start[:1] >= b"\x50"):
            return _TYPE + "+zstd"
        return _TYPE

    def read(self, size: int = -1, /) -> bytes:
        """See ByteSource."""
        data = self._file.read(size)
        self.start += data[: 16 - len(self.start)]
        self.writer.write(data)
        return data
