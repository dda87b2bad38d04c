"""What the first bytes of a layer image say: read when a layer is mounted, without what makes images."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from storage.digest import Digest, parse_json
from storage.errors import DiskError
from storage.interfaces import ByteSource

SUFFIX = ".erofs"
"""Ends the names of image files."""
HEADER_SIZE = 1024
VERSION = 1


@dataclass(frozen=True, slots=True)
class Image:
    """What the header of the image at `path` says: `tar` and `implied_at` are (offset, size) in it; `file_bytes` is the
    sum of its regular files' sizes."""

    path: Path
    diff_id: Digest
    tar: tuple[int, int]
    implied_at: tuple[int, int]
    file_bytes: int

    @classmethod
    def open(cls, path: Path) -> Image:
        """Read the header. Raises DiskError when the file is no image of ours, OSError."""
        with path.open("rb") as file:
            start = file.read(HEADER_SIZE)
        try:
            said: dict[str, Any] = parse_json(start.rstrip(b"\0"))
            if said["refledger"] != VERSION:
                raise ValueError(f"version {said['refledger']}")
            tar, implied = said["tar"], said["implied"]
            return cls(
                path, Digest(said["diff_id"]), (int(tar[0]), int(tar[1])), (int(implied[0]), int(implied[1])),
                int(said["bytes"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DiskError(
                f"not a layer image of this Refledger: {error}", where=str(path),
                hint="delete the file: the layer will be fetched or made again",
            ) from error  # fmt: skip

    def implied(self) -> frozenset[bytes]:
        """Paths of directories that the layer only implies. Raises OSError."""
        at, size = self.implied_at
        with self.path.open("rb") as file:
            file.seek(at)
            return frozenset(file.read(size).split(b"\0")[:-1])

    @contextmanager
    def open_tar(self) -> Iterator[ByteSource]:
        """The layer's tar, from its start. Raises OSError, also when the file is shorter than the header says."""
        at, size = self.tar
        with self.path.open("rb", buffering=0) as file:
            file.seek(at)
            yield _Part(file, size)


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
