"""Layers as blobs and as tars, and the archives that they are written to."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from storage.digest import Digest
from storage.interfaces.blobs import ByteSource
from storage.interfaces.images import Compression, Descriptor


@dataclass(frozen=True, slots=True)
class PackedBlob:
    """A step's layer as a blob in the blob store; `compressor`: name, version and level."""

    diff_id: Digest
    blob: Descriptor
    compressor: str


class LayerPacker(Protocol):
    """Turns snapshots into blobs."""

    def pack(self, snapshot: str, clamp_mtime: int | None, compression: Compression) -> PackedBlob:
        """Write the snapshot's layer into the blob store; `clamp_mtime` as in SnapshotStore.pack. The bytes depend on
        nothing else. Blocking. Raises DiskError, VerificationError, InputError for a level that there is not."""
        ...


class LayerConverter(Protocol):
    """Turns blobs into others that hold the same layer."""

    def convert(
        self, source: ByteSource, media_type: str | None, diff_id: Digest, compression: Compression,
        clamp_mtime: int | None = None, *, even_if_same: bool = True,
    ) -> PackedBlob | None:  # fmt: skip
        """Write what `source` decompresses to, whose digest is `diff_id`, into the blob store as `compression`; without
        a `media_type` it is that already, even where its first name looks like the beginning of a gzip file. With
        `clamp_mtime` no time in it is later than so many seconds since the epoch. The result has a diff ID of its own
        when that changed something, and as an eStargz. Not `even_if_same`: None, and nothing is kept, when the diff ID
        is the same. Consumes `source` to its end. Blocking. Raises VerificationError, with nothing kept, DiskError,
        InputError, and what `source` raises."""
        ...


class LayerTars(Protocol):
    """Layers of images that are laid out here such that the tar they came as can be had."""

    def has(self, diff_id: Digest) -> bool:
        """Can that of the layer be had?"""
        ...

    def open(self, diff_id: Digest) -> AbstractContextManager[ByteSource]:
        """The tar, not verified. Blocking. Raises DiskError, VerificationError."""
        ...


class OutFile(Protocol):
    """A file on its way out: complete after `commit`, gone after `abort`. Methods raise DiskError."""

    def write(self, data: bytes) -> None:
        """Append `data`."""
        ...

    def commit(self) -> None:
        """Finish the file and give it its name."""
        ...

    def abort(self) -> None:
        """Leave nothing. Harmless after `commit`."""
        ...


class Archive(Protocol):
    """A tar file on its way out: complete after `commit`, gone after `abort`."""

    def add(self, name: str, data: bytes) -> None:
        """Add a small file."""
        ...

    def begin(self, name: str, size: int) -> None:
        """Start a file of `size` bytes, whose data follows by `write`."""
        ...

    def write(self, data: bytes) -> None:
        """The next bytes of the file begun."""
        ...

    def commit(self) -> None:
        """Finish the archive and give it its name."""
        ...

    def abort(self) -> None:
        """Leave nothing. Harmless after `commit`."""
        ...
