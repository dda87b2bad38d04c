"""ADD of a local tar archive: what it holds is merged into a directory of the image (Dockerfile reference, "ADD").

The destination directory is the `/` of the archive: absolute names and links, and links of the image below the
destination, resolve inside it; a name that climbs out with `..` is an error. Owners are the archive's numbers unless
--chown gives others; --chmod does not apply. A directory is merged into what is there, also through a symlink to one;
anything else replaces what is there, as `tar -x` does. Devices and FIFOs are made. An archive is read twice: for what
it holds, as a later member may replace an earlier one, and for the content.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import IO, BinaryIO, Literal, cast

from engine.errors import InputError
from engine.ops.layer import Below, Directory, Found, Inode, Tree, need
from engine.ops.origin import Origin
from engine.ops.selection import Entry, changed, printable
from engine.ops.xattrs import KEPT
from storage.digest import Digest, sha256
from storage.interfaces.layers import LayerWriter, Look

_CHUNK = 1 << 20
_BLOCK = 512
_ZSTD = b"\x28\xb5\x2f\xfd"
_CODECS: tuple[tuple[bytes, Callable[[IO[bytes]], IO[bytes]]], ...] = (
    (b"\x1f\x8b\x08", lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file))),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_XATTR = "SCHILY.xattr."
_BROKEN = (
    tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
    EOFError, ValueError, OverflowError, RecursionError,  # the last three of absurd numbers and nested long names
)  # fmt: skip
_SPECIAL: dict[bytes, Literal["fifo", "char", "block"]] = {
    tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
}  # fmt: skip
_EXTENSIONS = frozenset({b"x", b"X", b"g", b"L", b"K"})
_LARGEST_EXTENSION = 1 << 20  # bytes, as of layers (storage/tar/reader.py)
_NAME_MAX, _PATH_MAX = 255, 4096  # bytes: <linux/limits.h>
_XATTR_NAME_MAX, _XATTR_SIZE_MAX = 255, 65536
_NO_ID = 2**32 - 1  # the uid that means none
_LATEST = 2**63 // 1_000_000_000  # seconds since the epoch


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


@dataclass(slots=True, eq=False)
class Archive:
    """What an archive adds to a plan. `files`: where content goes, by the number of its member; `digest` of all bytes
    of the archive; `entry`: what it was selected as."""

    digest: Digest
    files: dict[int, Inode]
    entry: Entry | None = None

    def check(self) -> None:
        """Raises InputError when it is not what was selected."""
        if self.entry is not None and self.entry.digest not in {None, self.digest}:
            raise changed(self.entry.path)

    def write(self, origin: Origin, writer: LayerWriter) -> None:
        """Write the files that are still in the plan (their `path` says so), in the archive's order. Raises InputError
        when the archive changed since it was planned, and what `origin` and `writer` raise."""
        assert self.entry is not None
        with open(origin.open(self.entry)[0], "rb") as file:  # noqa: PTH123  a descriptor has no Path
            source = _Hashing(file)
            with _malformed_when_broken(), _opened(source, file) as archive:
                for number, member in _members(archive):
                    inode = self.files.get(number)
                    if inode is not None and inode.path is not None:
                        writer.file(inode.path, inode.look, member.size, _content(archive, member))
            if source.finish() != self.digest:
                raise changed(self.entry.path)


def plan_archive(
    archive: BinaryIO, tree: Tree, dest: Directory, *, owner: tuple[int, int] | None, now_ns: int
) -> Archive:
    """Merge what `archive` (from its start) holds into `dest`; its content is left for later.

    `owner`: (uid, gid) for everything, None for the archive's own. `now_ns`: the time of directories that the archive
    implies but does not hold. Blocking. Raises InputError for a broken or escaping archive, and OSError.
    """
    source = _Hashing(archive)
    planned = Archive(sha256(b""), {})
    merger = _Merger(planned, tree, dest, owner, now_ns)
    with _malformed_when_broken(), _opened(source, archive) as members:
        for number, member in _members(members):
            merger.merge(number, member)
    planned.digest = source.finish()
    return planned


class _Hashing:
    """A file that knows the digest of what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> Digest:
        """The digest of the whole file: what is left of it is read."""
        while self.read(_CHUNK):
            pass
        return Digest("sha256:" + self._hash.hexdigest())


class _Header(tarfile.TarInfo):
    """A header that is garbage in the middle of an archive is an error; the library would take it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and any(buf):
                raise tarfile.ReadError(str(error)) from None
            raise
        if header.type in _EXTENSIONS and not 0 <= header.size <= _LARGEST_EXTENSION:
            # the library reads it into memory, and little of an archive unpacks to much
            raise tarfile.ReadError(f"an extended header of {header.size} bytes")
        return header


class _Merger:
    def __init__(
        self, archive: Archive, tree: Tree, dest: Directory, owner: tuple[int, int] | None, now_ns: int
    ) -> None:
        self._archive = archive
        self._tree = tree
        self._dest = dest
        self._owner = owner
        self._implied = Look(0o755, 0, 0, now_ns)

    def merge(self, number: int, member: tarfile.TarInfo) -> None:
        """Plan the member of this number."""
        path = _inside(member.name)
        if not path:
            return
        above, name = posixpath.split(path)
        parent = self._make(above)
        if member.isdir():
            self._directory(member, path, parent, name)
        elif member.islnk():
            self._hard_link(member, parent, name)
        else:
            self._tree.put(parent, name, self._inode(number, member))

    def _make(self, path: str) -> Directory:
        """The directories above a member; they may be links to directories."""
        try:
            return self._tree.make(path, self._implied, self._dest)
        except NotADirectoryError:
            raise InputError(
                f"the archive has {printable(path)!r} for a directory, and that is something else",
                hint="choose another destination, or remove it in the image first",
            ) from None

    def _directory(self, member: tarfile.TarInfo, path: str, parent: Directory, name: str) -> None:
        look = self._look(member)
        if not self._tree.is_directory(path, self._dest):
            self._tree.new_directory(parent, name, look)
            return
        made = self._make(path)
        made.look, made.time = replace(look, xattrs={**(made.look.xattrs if made.look else {}), **look.xattrs}), None
        need(made)

    def _inode(self, number: int, member: tarfile.TarInfo) -> Inode:
        look = self._look(member)
        if member.isreg():
            inode = self._archive.files[number] = Inode("file", look, self._archive)
            return inode
        if member.issym():
            if not 0 < len(os.fsencode(member.linkname)) < _PATH_MAX or "\0" in member.linkname:
                raise _malformed(f"{printable(member.name)!r} is a link to what cannot be a name")
            return Inode("symlink", replace(look, mode=0o777, xattrs={}), None, member.linkname)
        kind = _SPECIAL.get(member.type)
        if kind is None:
            raise _malformed(f"{printable(member.name)!r} is of unknown type {member.type!r}")
        device = 0 if kind == "fifo" else os.makedev(member.devmajor, member.devminor)
        if kind == "char" and device == 0:
            raise _malformed(f"{printable(member.name)!r} is device 0:0, which in a layer says that a file is removed")
        return Inode(kind, replace(look, xattrs={}), None, "", device)

    def _hard_link(self, member: tarfile.TarInfo, parent: Directory, name: str) -> None:
        above, first = posixpath.split(_inside(member.linkname))
        no_file = f"{printable(member.name)!r} links to {printable(member.linkname)!r}, no file"
        try:
            directory = self._tree.locate(above + "/.", self._dest)[0]
        except (FileNotFoundError, NotADirectoryError):
            raise _malformed(no_file) from None
        target = self._tree.find(directory, first) if first else directory
        replaced = self._tree.find(parent, name)
        if target is not None and (target is replaced or _same(target, replaced)):
            return
        if target is None or isinstance(target, Directory):
            raise _malformed(no_file)
        if isinstance(replaced, Directory) and directory.is_below(replaced):
            raise _malformed(no_file)  # it would be removed to make room for the link
        if isinstance(target, Below):
            target = self._tree.adopt(target)
        self._tree.put(parent, name, target)

    def _look(self, member: tarfile.TarInfo) -> Look:
        uid, gid = self._owner or (member.uid, member.gid)
        if not (0 <= uid < _NO_ID and 0 <= gid < _NO_ID):
            raise _malformed(f"{printable(member.name)!r} belongs to {uid}:{gid}, which cannot be")
        xattrs = {
            name.encode(): value.encode("utf-8", "surrogateescape")
            for key, value in member.pax_headers.items()
            if key.startswith(_XATTR) and (name := key.removeprefix(_XATTR)).startswith(KEPT)
        }
        if not all(_can_be(*item) for item in xattrs.items()):
            raise _malformed(f"{printable(member.name)!r} has an extended attribute that no file can have")
        return Look(member.mode & 0o7777, uid, gid, _time(member), xattrs)


def _can_be(attribute: bytes, value: bytes) -> bool:
    """Can a file have this extended attribute (xattr(7))?"""
    named = attribute != b"user." and b"\0" not in attribute and len(attribute) <= _XATTR_NAME_MAX
    return named and len(value) <= _XATTR_SIZE_MAX


def _same(one: Found, other: Found) -> bool:
    """Are they one file of the base?"""
    return isinstance(one, Below) and isinstance(other, Below) and os.path.samestat(one.info, other.info)


# ---------------------------------------------------------------- reading archives


@contextmanager
def _malformed_when_broken() -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise _malformed(str(error)) from error
    except OSError as error:
        if error.errno is None:  # what bz2 says of bad data
            raise _malformed(str(error)) from error
        raise


def _opened(source: _Hashing, file: BinaryIO) -> tarfile.TarFile:
    """The archive in `source`, which reads `file`, from its start."""
    stream = _decompressed(cast("BinaryIO", source), file)
    return tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape", tarinfo=_Header)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Numbered, in order."""
    number = 0
    while (member := archive.next()) is not None:
        yield number, member
        number += 1
        archive.members = []  # type: ignore[attr-defined]  # else memory grows with every member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    source = archive.extractfile(member)
    assert source is not None  # the member is a regular file
    with source:
        while data := source.read(_CHUNK):
            yield data


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
    parts = os.fsencode(name).split(b"/")
    if "\0" in name or len(name) >= _PATH_MAX or any(len(part) > _NAME_MAX for part in parts):
        raise _malformed(f"{printable(name[:_NAME_MAX])!r} cannot be the name of a file")
    path = posixpath.normpath(name.lstrip("/"))
    if path == ".." or path.startswith("../"):
        raise InputError(
            f"the archive names {printable(name)!r}, which is outside of the destination",
            hint="make the archive again without .. in its names",
        )
    return "" if path == "." else path


def _time(member: tarfile.TarInfo) -> int:
    """Modification time in ns; the extended header has digits that a float drops. What no file system holds is 0."""
    try:
        time = Decimal(member.pax_headers.get("mtime", str(member.mtime)))
        return int(time * 1_000_000_000) if 0 <= time < _LATEST else 0
    except ArithmeticError:  # no number, or none to reckon with
        return 0


def _malformed(why: str) -> InputError:
    hint = "check it with `tar -t`, or use COPY to add it as it is"
    return InputError(f"cannot unpack the archive: {why}", hint=hint)
