"""ADD of a local tar archive: what it holds is merged into a directory of the image (Dockerfile reference, "ADD").

The destination directory is the `/` of the archive: absolute names and links, and links of the image below the
destination, resolve inside it; a name that climbs out with `..` is an error. Owners are the archive's numbers unless
--chown gives others; --chmod does not apply. A directory is merged into what is there, also through a symlink to one;
anything else replaces what is there, as `tar -x` does. Devices and FIFOs are made.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from typing import IO, BinaryIO, cast

from engine.errors import InputError
from engine.ops.rootfs import RootDir
from engine.ops.select import printable
from storage.digest import Digest

_CHUNK = 1 << 20
_BLOCK = 512
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ZSTD = b"\x28\xb5\x2f\xfd"
_CODECS: tuple[tuple[bytes, Callable[[IO[bytes]], IO[bytes]]], ...] = (
    (b"\x1f\x8b\x08", lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file))),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_XATTR = "SCHILY.xattr."
_KEPT_XATTRS = ("user.", "security.capability")
_BROKEN = (
    tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
    EOFError, ValueError, OverflowError, RecursionError,  # the last three of absurd numbers and nested long names
)  # fmt: skip
_SPECIAL = {tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK}


def is_archive(file: BinaryIO) -> bool:
    """Is it a tar, plain or compressed with gzip, bzip2 or xz? Told by content alone. `file` is at its start, then and
    after. Raises InputError for zstd, which could not be unpacked."""
    try:
        header = _decompressed(file).read(_BLOCK)
    except _BROKEN:
        return False
    except OSError as error:
        if error.errno is not None:  # the disk, not the decoder
            raise
        return False
    finally:
        file.seek(0)
    return _is_header(header)


def unpack_into(archive: BinaryIO, root: RootDir, dest: str, *, owner: tuple[int, int] | None, now_ns: int) -> Digest:
    """Merge `archive` (from its start) into the existing directory `dest` of `root`; returns the digest of its bytes.

    `owner`: (uid, gid) for everything, None for the archive's own. `now_ns`: the time of directories that the archive
    implies but does not hold. Blocking. Raises InputError for a broken or escaping archive, and OSError.
    """
    source = _Hashing(archive)
    fd = root.open(dest, _DIR_FLAGS)
    try:
        with RootDir(f"/proc/self/fd/{fd}") as inner:
            _Unpacker(inner, owner, now_ns).run(_decompressed(cast("BinaryIO", source), archive))
    except _BROKEN as error:
        raise _malformed(str(error)) from error
    except OSError as error:
        if error.errno is None:  # what bz2 says of bad data
            raise _malformed(str(error)) from error
        raise
    finally:
        os.close(fd)
    while source.read(_CHUNK):
        pass
    return source.digest()


class _Hashing:
    """A file that knows the digest of what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> Digest:
        return Digest("sha256:" + self._hash.hexdigest())


class _Header(tarfile.TarInfo):
    """A header that is garbage in the middle of an archive is an error; the library would take it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and any(buf):
                raise tarfile.ReadError(str(error)) from None
            raise


class _Unpacker:
    def __init__(self, root: RootDir, owner: tuple[int, int] | None, now_ns: int) -> None:
        self._root = root
        self._owner = owner
        self._now_ns = now_ns
        self._times: dict[str, int] = {}

    def run(self, stream: IO[bytes]) -> None:
        with tarfile.open(
            fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape", tarinfo=_Header
        ) as archive:
            while (member := archive.next()) is not None:
                self._unpack(archive, member)
                archive.members = []  # type: ignore[attr-defined]  # else memory grows with every member
        for path, time in self._times.items():
            with suppress(FileNotFoundError, NotADirectoryError), self._open(path) as fd:  # a later member replaced it
                os.utime(fd, ns=(time, time))

    def _unpack(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _inside(member.name)
        if not path:
            return
        parent, name = posixpath.split(path)
        self._make(parent)
        if member.isdir():
            self._directory(member, path)
            return
        with self._open(parent) as fd:
            if not member.islnk():
                _remove(fd, name)
            if member.isreg():
                self._file(archive, member, fd, name)
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=fd)
                self._own_name(member, fd, name)
            elif member.islnk():
                self._hard_link(member, fd, name)
            elif member.type in _SPECIAL:
                device = os.makedev(member.devmajor, member.devminor)
                os.mknod(name, _SPECIAL[member.type] | 0o600, device, dir_fd=fd)
                self._own_name(member, fd, name)
            else:
                raise _malformed(f"{printable(member.name)!r} is of unknown type {member.type!r}")

    def _make(self, path: str) -> None:
        """The directories above a member; they may be links to directories."""
        try:
            for made in self._root.makedirs(path):
                self._times[made] = self._now_ns
        except (NotADirectoryError, FileExistsError):
            raise InputError(
                f"the archive has {printable(path)!r} for a directory, and that is something else",
                hint="choose another destination, or remove it in the image first",
            ) from None

    def _directory(self, member: tarfile.TarInfo, path: str) -> None:
        try:
            there = stat.S_ISDIR(self._root.stat(path).st_mode)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP}:
                raise
            there = False
        if not there:
            parent, name = posixpath.split(path)
            with self._open(parent) as fd:
                _remove(fd, name)
        self._make(path)
        with self._open(path) as fd:
            self._own(member, fd)
        self._times[self._root.resolve(path)] = _time(member)

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
        source = archive.extractfile(member)
        assert source is not None  # the member is a regular file
        fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)
        with open(fd, "wb", buffering=0) as file, source:  # noqa: PTH123  a descriptor has no Path
            while data := source.read(_CHUNK):
                file.write(data)
            self._own(member, fd)
            os.utime(fd, ns=(_time(member), _time(member)))

    def _hard_link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        directory, first = posixpath.split(_inside(member.linkname))
        try:
            with self._open(directory) as fd:
                info = os.stat(first, dir_fd=fd, follow_symlinks=False)
                with suppress(FileNotFoundError):
                    if os.path.samestat(info, os.stat(name, dir_fd=parent, follow_symlinks=False)):
                        return
                _remove(parent, name)
                os.link(first, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            raise _malformed(f"{printable(member.name)!r} links to {printable(member.linkname)!r}, no file") from None

    def _own(self, member: tarfile.TarInfo, fd: int) -> None:
        os.fchown(fd, *(self._owner or (member.uid, member.gid)))
        os.fchmod(fd, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if key.startswith(_XATTR) and name.startswith(_KEPT_XATTRS):
                os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))

    def _own_name(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        """The same for what cannot be opened. A link has no mode."""
        os.chown(name, *(self._owner or (member.uid, member.gid)), dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=parent)
        os.utime(name, ns=(_time(member), _time(member)), dir_fd=parent, follow_symlinks=False)

    @contextmanager
    def _open(self, path: str) -> Iterator[int]:
        fd = self._root.open(path or "/", _DIR_FLAGS)
        try:
            yield fd
        finally:
            os.close(fd)


def _decompressed(file: BinaryIO, peek: BinaryIO | None = None) -> IO[bytes]:
    """The plain bytes of `file`; what it is compressed with is read from `peek`, which is put back to its start."""
    peek = peek or file
    magic = peek.read(6)
    peek.seek(0)
    for start, codec in _CODECS:
        if magic.startswith(start):
            return codec(file)
    if magic.startswith(_ZSTD):
        raise InputError(
            "ADD cannot unpack zstd archives", hint="use COPY to add the file as it is, or compress it with gzip or xz"
        )
    return file


def _is_header(block: bytes) -> bool:
    """Has the first block of a tar the right checksum? (POSIX ustar; some old ones sum signed bytes)"""
    if len(block) < _BLOCK or not any(block):
        return False
    try:
        stored = tarfile.nti(block[148:156])  # type: ignore[attr-defined]  # typeshed leaves it out
    except tarfile.HeaderError:
        return False
    return stored in tarfile.calc_chksums(block)  # type: ignore[attr-defined]


def _inside(name: str) -> str:
    """`name` relative to the destination, "" for that itself. Raises InputError when it climbs out."""
    path = posixpath.normpath(name.lstrip("/") or ".")
    if path == ".." or path.startswith("../"):
        raise InputError(
            f"the archive names {printable(name)!r}, which is outside of the destination",
            hint="make the archive again without .. in its names",
        )
    return "" if path == "." else path


def _time(member: tarfile.TarInfo) -> int:
    """Modification time in ns; the extended header has digits that a float drops. What no file system holds is 0."""
    try:
        time = int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 1_000_000_000)
    except (InvalidOperation, OverflowError, ValueError):
        return 0
    return time if 0 <= time < 1 << 63 else 0


def _remove(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EISDIR:
            raise
        shutil.rmtree(name, dir_fd=parent)


def _malformed(why: str) -> InputError:
    hint = "check it with `tar -t`, or use COPY to add it as it is"
    return InputError(f"cannot unpack the archive: {why}", hint=hint)
