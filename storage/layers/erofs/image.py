"""One file a layer: what it is, the superblock, the layer's tar, EROFS metadata that points into it, implied paths.

The 1024 bytes that EROFS leaves to others at the start say as JSON where the rest is. Image and tar are the same
bytes: nothing is unpacked, and the layer can be had again as the tar it came as.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storage.digest import Digest, canonical_json
from storage.durable import write_all
from storage.layers.erofs.encode import TAR_START, encode, write_at
from storage.layers.erofs.header import HEADER_SIZE, SEAL, VERSION, rest_digest
from storage.layers.erofs.tree import LONGEST_PATH, LayerTree
from storage.layers.implied import noted

_WRITEBACK = 8 << 20  # bytes between two nudges to the kernel to begin writing
_SYNC_FILE_RANGE_WRITE = 2  # <linux/fs.h>

_libc = ctypes.CDLL(None, use_errno=True)


class ImageWriter:
    """A new image at `path`. Write the tar with `write`, describe it in `tree`, then `finish`.

    All methods raise OSError.
    """

    def __init__(self, path: Path, *, longest_path: int = LONGEST_PATH) -> None:
        """`longest_path`: see LayerTree."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.lseek(self._fd, TAR_START, os.SEEK_SET)
        self._nudged = TAR_START
        self.tree = LayerTree(longest_path=longest_path)
        self.tar_size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the tar."""
        self.tar_size += len(data)
        write_all(self._fd, data)
        end = TAR_START + self.tar_size
        if end - self._nudged >= _WRITEBACK:
            # the disk works while the rest comes in; without, all of it would wait for the flush at the end
            _libc.sync_file_range(
                self._fd, ctypes.c_int64(self._nudged), ctypes.c_int64(end - self._nudged), _SYNC_FILE_RANGE_WRITE
            )
            self._nudged = end

    def finish(self, diff_id: Digest, name: str = "") -> None:
        """Write what follows the tar, seal the image as that of `name` (who has one), and make it durable. Raises
        VerificationError for what the format cannot hold."""
        implied = noted(self.tree.finish())
        end = encode(self._fd, self.tree, TAR_START + self.tar_size, bytes.fromhex(diff_id.hex)[:16])
        write_at(self._fd, implied, end)
        said: dict[str, Any] = {
            "refledger": VERSION, "diff_id": str(diff_id), "tar": [TAR_START, self.tar_size],
            "implied": [end, len(implied)], "bytes": self.tree.bytes, "name": name,
        }  # fmt: skip
        size = end + len(implied)
        said["rest"] = rest_digest(self._fd, canonical_json(said), (TAR_START, self.tar_size), size)
        write_at(self._fd, canonical_json(said).ljust(HEADER_SIZE, b"\0"), 0)
        os.utime(self._fd, ns=(SEAL, SEAL))
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
