"""Writes bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO

from storage.archive import TarArchive
from storage.bundle.form import BLOBS, EVENTS, INDEX, SMALL, Index, Member, trailer
from storage.compression import compressor
from storage.digest import Digest, Hasher, canonical_json, plain_json, sha256
from storage.errors import VerificationError
from storage.interfaces.log import Event
from storage.tar.reader import BLOCK

_READ = 1 << 20


def write_bundle(
    dest: str, index: Index, events: Iterable[Event], open_blob: Callable[[Digest], BinaryIO]
) -> int:
    """Write the bundle `dest` (complete, or not there at all); returns its size in bytes. Raises DiskError,
    VerificationError when a blob is not what the index says, and what `open_blob` raises."""
    lines = b"".join(plain_json(event.to_json()) + b"\n" for event in events)
    about = {"count": lines.count(b"\n"), "bytes": len(lines), "digest": str(sha256(lines))}
    tar = _Compressed(dest)
    try:
        for name, data in ((INDEX, canonical_json(index.to_json(about))), (EVENTS, lines)):
            tar.add(name, data)
            tar.end_frame()
        for member in index.blobs:
            if member.role not in SMALL:
                tar.end_frame()
            with open_blob(member.digest) as file:
                tar.begin(BLOBS + member.digest.hex, member.size)
                _copy(file, member, tar.write)
        tar.commit()
        return tar.size
    finally:
        tar.abort()


def _copy(file: BinaryIO, member: Member, write: Callable[[bytes], None]) -> None:
    hasher = Hasher()
    while data := file.read(_READ):
        if hasher.size + len(data) > member.size:
            break
        hasher.update(data)
        write(data)
    if data or hasher.size != member.size or hasher.digest() != member.digest:
        raise VerificationError(f"a blob changed while it was bundled: {member.digest}")


class _Compressed(TarArchive):
    """A tar in zstd frames."""

    def __init__(self, dest: str) -> None:
        self._zstd = compressor("zstd")
        self._begun = False
        self.size = 0
        self._hasher = Hasher()
        super().__init__(dest)

    def end_frame(self) -> None:
        """What follows can be read without what came before."""
        if self._begun:
            rest = self._zstd.flush()
            self._zstd.close()
            self._zstd, self._begun = compressor("zstd"), False
            self._store(rest)

    def commit(self) -> None:
        """See Archive.commit."""
        self._put(bytes(2 * BLOCK))
        self.end_frame()
        self._store(trailer(self._hasher.digest()))
        self._file.commit()

    def abort(self) -> None:
        """See Archive.abort."""
        super().abort()
        self._zstd.close()

    def _put(self, data: bytes) -> None:
        self._begun = True
        self._store(self._zstd.compress(data))

    def _store(self, data: bytes) -> None:
        self.size += len(data)
        self._hasher.update(data)
        super()._put(data)
