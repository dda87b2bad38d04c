"""What came of a blob, read from its start by the thread that unpacks it while more of it comes.

The bytes go through a partial blob, so neither side holds the other back, memory does not grow with the blob, and what
came before the process died is read like what comes now: all of it counts for the digest.
"""

from __future__ import annotations

import threading

from storage.digest import Digest, Hasher
from storage.errors import VerificationError
from storage.interfaces.blobs import PartialBlob
from storage.interfaces.images import Descriptor

READ_BYTES = 1 << 20
"""Bytes that the reader gets at most at a time."""


class Abandoned(Exception):
    """Nobody brings the rest; whoever does not knows why."""


class Spool:
    """`write` and `abandon` belong to those who fetch (any thread), `read` to the one thread that unpacks."""

    def __init__(self, partial: PartialBlob, blob: Descriptor) -> None:
        self._partial = partial
        self._blob = blob
        self._hasher = Hasher(blob.digest.algorithm)
        self._news = threading.Condition()
        self._written = 0
        self._abandoned = False
        self.found: Digest | None = None
        """The digest of all bytes, once the reader has seen them."""

    def gaps(self) -> list[tuple[int, int]]:
        """See PartialBlob.gaps."""
        return self._partial.gaps()

    def write(self, offset: int, data: bytes) -> None:
        """Keep `data` and tell the reader. Blocking. Raises DiskError."""
        self._partial.write(offset, data)
        with self._news:
            self._written += 1
            self._news.notify()

    def abandon(self) -> None:
        """The reader's next `read` raises Abandoned, whatever is here."""
        with self._news:
            self._abandoned = True
            self._news.notify()

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes (READ_BYTES for -1), b"" at the end. Blocks. Raises Abandoned, DiskError, and
        VerificationError instead of ending when the digest is wrong."""
        size = min(size, READ_BYTES) if size >= 0 else READ_BYTES
        while self._hasher.size < self._blob.size:
            with self._news:
                if self._abandoned:
                    raise Abandoned
                written = self._written
            data = self._partial.read(self._hasher.size, size)
            if data:
                self._hasher.update(data)
                return data
            with self._news:
                while self._written == written and not self._abandoned:
                    self._news.wait()
        self.found = self._hasher.digest()
        if self.found != self._blob.digest:
            raise VerificationError(f"the blob's bytes have the digest {self.found}")
        return b""
