"""Blobs on this disk, whole and in parts."""

from __future__ import annotations

from typing import BinaryIO, Protocol

from storage.digest import Digest
from storage.interfaces.images import Descriptor


class BlobWriter(Protocol):
    """A blob on its way in. Nothing is visible, and nothing stays behind, before `commit`."""

    def write(self, data: bytes) -> None:
        """Append `data`."""
        ...

    def commit(self, expected: Digest | None = None) -> tuple[Digest, int]:
        """Make the blob durable and visible; returns its digest and size in bytes.
        Raises VerificationError, keeping nothing, when it is not `expected`."""
        ...

    def abort(self) -> None:
        """Drop it. Harmless after `commit`."""
        ...


class BlobStore(Protocol):
    """Content-addressed blobs: an OCI image layout that any OCI tool can read."""

    def size(self, digest: Digest) -> int | None:
        """Size in bytes, or None when the blob is not here."""
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """The blob's bytes, from the start; reading them raises DiskError. Raises FileNotFoundError, DiskError."""
        ...

    def put(self, data: bytes) -> Digest:
        """Store small `data` durably; a no-op when it is here already, unharmed."""
        ...

    def get(self, digest: Digest) -> bytes:
        """All bytes of a small blob, verified. Raises FileNotFoundError, also for a damaged one, which is removed;
        VerificationError for that in a store that is only read."""
        ...

    def sound(self, digest: Digest) -> bool:
        """Is the blob here, and its bytes what its digest promises? Reads all of it the first time a process asks about
        one that it did not store itself; a damaged one is removed. Blocking. Raises DiskError."""
        ...

    def writer(self) -> BlobWriter:
        """Begin a new blob."""
        ...


class ByteSource(Protocol):
    """Bytes that arrive from elsewhere; `read` blocks (use it off the event loop)."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, b"" at the end. Raises what broke the source."""
        ...


class PartialBlob(Protocol):
    """What came of one blob so far: bytes that outlive the process that fetched them, and that nobody verified yet.
    Methods may be called from any thread; each gap is filled by one writer. They raise DiskError."""

    def gaps(self) -> list[tuple[int, int]]:
        """The ranges that are missing (offsets in bytes, half open), in order."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Keep `data`, which lies in a gap and begins where that gap does or where the last write into it ended."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; b"" when the byte there has not come yet, and at the end."""
        ...

    def discard(self) -> None:
        """Drop all of it. Only `close` may follow."""
        ...

    def close(self) -> None:
        """Let go of it: what came stays for the next one."""
        ...


class PartialBlobs(Protocol):
    """Blobs that are being fetched, or whose fetching was interrupted."""

    def open(self, blob: Descriptor) -> PartialBlob:
        """What is here of `blob`, if anything. The caller holds the lock `partial-<digest>` until it is closed.
        Raises DiskError."""
        ...
