"""Copying the bytes of one open file to another: verified, sparse, and inside the kernel where nobody must look."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator

from storage.digest import Digest

_CHUNK = 1 << 20
_NO_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


def copy_bytes(source: int, target: int, info: os.stat_result, *, verify: bool) -> Digest | None:
    """Copy all bytes of `source` (just opened, `info` its metadata) to the empty file `target`; holes stay holes.

    With `verify` the digest of what was copied, also when that is more or less than `info` says. Else None, and
    `info.st_size` bytes at most. Raises OSError.
    """
    if info.st_blocks * 512 < info.st_size > 0:
        return _copy_sparse(source, target, info.st_size, verify=verify)
    if not verify:
        _copy_range(source, target, info.st_size)
        return None
    data = os.read(source, min(info.st_size, _CHUNK) + 1)
    seen = hashlib.sha256(data)
    while data:
        write_all(target, data)
        if len(data) <= info.st_size < _CHUNK:  # a small file that ended where it should needs no second read
            break
        data = os.read(source, _CHUNK)
        seen.update(data)
    return Digest("sha256:" + seen.hexdigest())


def write_all(target: int, data: bytes) -> None:
    """Write all of `data`, however many calls it takes."""
    written = os.write(target, data)
    while written < len(data):
        data = data[written:]
        written = os.write(target, data)


def _copy_range(source: int, target: int, length: int) -> None:
    while length > 0:
        try:
            count = os.copy_file_range(source, target, min(length, 1 << 30))
        except OSError as error:
            if error.errno not in _NO_RANGE:
                raise
            count = 0
        if not count:  # not between these file systems, or some that report 0 instead of saying so
            break
        length -= count
    while length > 0 and (data := os.read(source, min(length, _CHUNK))):
        write_all(target, data)
        length -= len(data)


def _copy_sparse(source: int, target: int, size: int, *, verify: bool) -> Digest | None:
    seen = hashlib.sha256() if verify else None
    zeros = bytes(_CHUNK)
    at = 0
    for start, end in _extents(source, size):
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        if seen is None:
            _copy_range(source, target, end - start)
            continue
        for skipped in range(at, start, _CHUNK):
            seen.update(zeros[: start - skipped])
        at = start
        while at < end and (data := os.read(source, min(end - at, _CHUNK))):
            seen.update(data)
            write_all(target, data)
            at += len(data)
    os.truncate(target, size)
    if seen is None:
        return None
    for skipped in range(at, size, _CHUNK):
        seen.update(zeros[: size - skipped])
    return Digest("sha256:" + seen.hexdigest())


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The stretches that hold data."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at
