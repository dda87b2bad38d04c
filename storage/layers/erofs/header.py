"""What the first bytes of a layer image say: read when a layer is mounted, without what makes images."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from storage.digest import Digest, Hasher, canonical_json, parse_json
from storage.errors import DiskError, InputError
from storage.interfaces.blobs import ByteSource
from storage.layers.checked import MOST_NOTED
from storage.regular import open_regular

SUFFIX = ".erofs"
"""Ends the names of image files."""
HEADER_SIZE = 1024
VERSION = 1
SEAL = 0x5EA1ED * 10**9
"""The time of an image that nobody wrote to since it was made, ns since the epoch: whole seconds, which every copy that
keeps times keeps."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Image:
    """What the header of the image at `path` says: `tar` and `implied_at` are (offset, size) in it.
    `name`: whose it is, a diff ID or a snapshot; `rest`: digest of all but the tar (storage/layers/erofs/check.py), for
    which `header` is what it says without that; all empty in older images."""

    path: Path
    diff_id: Digest
    tar: tuple[int, int]
    implied_at: tuple[int, int]
    name: str = ""
    rest: str = ""
    header: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the whole image."""
        return sum(self.implied_at)

    @classmethod
    def open(cls, path: Path) -> Image:
        """Read the header. Raises DiskError when the file is no image of ours, OSError."""
        with open_regular(path) as file:
            start = file.read(HEADER_SIZE)
        try:
            said: dict[str, Any] = parse_json(start.rstrip(b"\0"))
            if said["refledger"] != VERSION:
                raise ValueError(f"version {said['refledger']}")
            rest = str(said.pop("rest", ""))
            tar, implied = _place(said["tar"]), _place(said["implied"])
            if sum(tar) > implied[0] or implied[1] > MOST_NOTED:
                raise ValueError("its parts lie where they cannot")
            return cls(
                path, Digest(said["diff_id"]), tar, implied, str(said.get("name", "")), rest, canonical_json(said)
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, InputError) as error:
            raise DiskError(
                f"not a layer image of this Refledger: {error}", where=str(path),
                hint="a build that needs it fetches or makes it again",
            ) from error  # fmt: skip

    def implied(self) -> frozenset[bytes]:
        """Paths of directories that the layer only implies. Raises OSError."""
        at, size = self.implied_at
        with open_regular(self.path) as file:
            file.seek(at)
            return frozenset(file.read(size).split(b"\0")[:-1])

    @contextmanager
    def open_tar(self) -> Iterator[ByteSource]:
        """The layer's tar, from its start. Raises OSError, also when the file is shorter than the header says."""
        at, size = self.tar
        with open_regular(self.path) as file:
            file.seek(at)
            yield _Part(file, size)


def _place(said: Any) -> tuple[int, int]:
    """Offset and size. Raises ValueError, TypeError."""
    offset, size = said
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (offset, size)):
        raise ValueError("a place that is none")
    return offset, size


def rest_digest(fd: int, header: bytes, tar: tuple[int, int], end: int) -> str:
    """The digest of all of the image `fd` but its `tar` (offset, size): the header's canonical JSON (without this
    digest), what stands before the tar, and what stands behind it, up to `end`. Raises OSError."""
    hasher = Hasher()
    hasher.update(header)
    for start, stop in ((HEADER_SIZE, tar[0]), (sum(tar), end)):
        at = start
        while at < stop and (data := os.pread(fd, min(_CHUNK, stop - at), at)):
            hasher.update(data)
            at += len(data)
    return str(hasher.digest())


class Hashing:
    """`source`, hashed as it is read."""

    def __init__(self, source: ByteSource, algorithm: str) -> None:
        self._source = source
        self._hasher = Hasher(algorithm)

    def read(self, size: int = -1, /) -> bytes:
        """See ByteSource.read."""
        data = self._source.read(size)
        self._hasher.update(data)
        return data

    def digest(self) -> Digest:
        """Of all of it: what was not read yet is read now. Raises what `source` raises."""
        while self.read(_CHUNK):
            pass
        return self._hasher.digest()


class _Part:
    def __init__(self, file: FileIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        if wanted and not data:
            raise OSError(errno.EIO, "the image is truncated", self._file.name)
        self._left -= len(data)
        return data
