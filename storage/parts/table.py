"""The table of contents of an eStargz as it is written: entries in the order of the tar, each once all is known of it.

Source: stargz-snapshotter, docs/estargz.md, "TOC".
"""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.digest import Digest, canonical_json, sha256
from storage.errors import VerificationError
from storage.tar.reader import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry
from storage.tar.rules import show

_TYPES = {
    REGULAR: "reg", DIRECTORY: "dir", SYMLINK: "symlink", HARD_LINK: "hardlink", CHARACTER: "char",
    BLOCK_DEVICE: "block", FIFO: "fifo",
}  # fmt: skip
_LARGEST = 256 << 20  # bytes
_BOUND = 1 << 63  # of what JSON is read as everywhere
Json = dict[str, Any]
Places = dict[int, tuple[int, str]]
"""Where in the blob each chunk begins, and its digest, by its number, until it is told."""


@dataclass(slots=True)
class Told:
    """An entry of the table: `chunk` is the number of its member; `hashing`: its file is not yet known to the end."""

    told: Json
    chunk: int | None = None
    hashing: bool = False

    def hashed(self, digest: Digest) -> None:
        """All of its file is here."""
        self.told["digest"] = str(digest)
        self.hashing = False


class TableWriter:
    """Writes the table. Methods raise VerificationError for what it cannot say, and when it grows too large."""

    def __init__(self) -> None:
        self._chunks = 0
        self._pending: deque[Told] = deque()
        self._table = bytearray(b'{"entries":[')

    def add(self, entry: Entry, *, hashing: bool) -> Told:
        """The next member; `hashing`: its content's digest is not that of its only chunk, and will be said."""
        told = Told(_described(entry), hashing=hashing)
        if entry.type == REGULAR and not entry.size:
            told.told["digest"] = str(sha256(b""))
        self._pending.append(told)
        return told

    def chunk(self, file: Told, at: int, size: int, *, last: bool) -> int:
        """`file` has a chunk of `size` bytes from `at` on; returns the chunk's number."""
        told = file
        if at:
            told = Told({"name": file.told["name"], "type": "chunk", "chunkOffset": at})
            self._pending.append(told)
        if not last:
            told.told["chunkSize"] = size
        told.chunk, self._chunks = self._chunks, self._chunks + 1
        return told.chunk

    def tell(self, places: Places) -> None:
        """Write the entries of which all is known; what was told of their chunks is taken out of `places`."""
        while self._pending:
            entry = self._pending[0]
            if entry.hashing or (entry.chunk is not None and entry.chunk not in places):
                return
            self._pending.popleft()
            if entry.chunk is not None:
                entry.told["offset"], digest = places.pop(entry.chunk)
                entry.told["chunkDigest"] = digest
                if entry.told["type"] == "reg":
                    entry.told.setdefault("digest", digest)
            self._table += (b"" if self._table.endswith(b"[") else b",") + canonical_json(entry.told)
            if len(self._table) > _LARGEST:
                raise VerificationError(
                    "the layer has too many files for the table of contents of an eStargz", hint="use gzip or zstd"
                )

    def finish(self, places: Places) -> bytes:
        """The table, once `places` has all chunks."""
        self.tell(places)
        assert not self._pending, "all chunks are out"
        self._table += b'],"version":1}'
        return bytes(self._table)


def _described(entry: Entry) -> Json:
    """The entry of the table, without place and digests."""
    if any(not -_BOUND <= number < _BOUND for number in (entry.uid, entry.gid, *entry.device)):
        raise VerificationError(f"{show(entry)}: a number out of range")
    told: Json = {
        "name": _text(entry.name), "type": _TYPES[entry.type], "mode": entry.mode, "uid": entry.uid, "gid": entry.gid,
    }  # fmt: skip
    if entry.mtime and (moment := _time(entry.mtime)):
        told["modtime"] = moment
    if entry.size:
        told["size"] = entry.size
    if entry.type in {SYMLINK, HARD_LINK}:
        told["linkName"] = _text(entry.link)
    if entry.type in {CHARACTER, BLOCK_DEVICE}:
        told["devMajor"], told["devMinor"] = entry.device
    if entry.xattrs:
        told["xattrs"] = {_text(name): b64encode(value).decode() for name, value in entry.xattrs.items()}
    return told


def _text(name: bytes) -> str:
    """JSON has only Unicode: what is none is told as Go tells it, and a reader sees that it is not the name."""
    return name.decode("utf-8", "replace")


def _time(mtime: int) -> str:
    """RFC 3339, with the fraction that there is; "" (unknown) in a year that cannot be written."""
    seconds, fraction = divmod(mtime, 10**9)
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return ""
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{moment.isoformat().removesuffix('+00:00')}{digits}Z"
