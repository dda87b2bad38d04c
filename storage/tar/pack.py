"""An overlay upper as an OCI layer tar: ustar with PAX records where ustar does not reach.

The same tree gives the same bytes. Sources: image-spec layer.md; POSIX pax; Linux overlayfs.rst, "whiteouts and opaque
directories".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from storage.errors import InputError
from storage.interfaces.blobs import ByteSource
from storage.tar.fields import pax_record
from storage.tar.reader import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
)
from storage.tar.rules import OPAQUE_NAME, OPAQUE_XATTR, WHITEOUT

_TYPES = {
    stat.S_IFREG: REGULAR, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHARACTER, stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFDIR: DIRECTORY, stat.S_IFIFO: FIFO,
}  # fmt: skip
_KEPT_XATTRS = (b"user.", b"trusted.", b"security.capability", b"system.posix_acl_")
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_READ = 1 << 20


def pack_tree(root: bytes, write: Callable[[bytes], Any], *, with_root: bool, clamp_mtime: int | None) -> None:
    """Write the tar of upper directory `root`: entries sorted by the bytes of their names, parents first; sockets
    are left out. `with_root`: begin with the root itself. `clamp_mtime`: seconds. Raises OSError."""
    latest = None if clamp_mtime is None else clamp_mtime * 10**9
    if with_root:
        write(encode(_entry(root, b"./", os.lstat(root), latest)))
    links: dict[tuple[int, int], bytes] = {}
    for path, name, status in _walk(root):
        if _is_whiteout(status):
            write(encode(marker(name, WHITEOUT)))
            continue
        _write_entry(path, name, status, write, links, latest)
        if stat.S_ISDIR(status.st_mode) and is_opaque(path):
            write(encode(marker(name + OPAQUE_NAME, b"")))
    write(bytes(2 * BLOCK))


def write_tree(
    root: Path, below: bytes, write: Callable[[bytes], Any], clamp_mtime: int | None, taken: set[bytes]
) -> None:
    """Write the members, in the order of `pack_tree` and without an end of archive, of a tar of all files in the
    mounted tree `root`, each below the directory `below` (b"" for none). `taken`: names that the archive has, which
    grows; directories among them are left out. Raises OSError; FileExistsError for anything else that is twice."""
    latest = None if clamp_mtime is None else clamp_mtime * 10**9
    links: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    if below:
        write(encode(_entry(top, below + b"/", os.lstat(top), latest)))
    for path, name, status in _walk(top, below + b"/" if below else b""):
        if name not in taken:
            taken.add(name)
            _write_entry(path, name, status, write, links, latest)
        elif not stat.S_ISDIR(status.st_mode):
            raise FileExistsError(errno.EEXIST, "two trees have it", os.fsdecode(name))


def _write_entry(
    path: bytes, name: bytes, status: os.stat_result, write: Callable[[bytes], Any],
    links: dict[tuple[int, int], bytes], latest: int | None,
) -> None:  # fmt: skip
    entry = _entry(path, name, status, latest)
    if status.st_nlink > 1 and entry.type != DIRECTORY:
        first = links.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            entry.type, entry.link, entry.size, entry.xattrs = HARD_LINK, first, 0, {}
    write(encode(entry))
    if entry.type == REGULAR:
        _write_content(path, entry.size, write)


def pack_tar(tar: ByteSource, write: Callable[[bytes], Any], *, clamp_mtime: int | None) -> None:
    """Write `tar`, which is one of ours, as it is, or with no time later than `clamp_mtime` seconds. Raises OSError."""
    if clamp_mtime is None:
        while data := tar.read(_READ):
            write(data)
        return
    reader = TarReader(tar)
    for entry in reader:
        entry.mtime = min(entry.mtime, clamp_mtime * 10**9)
        write(encode(entry))
        for piece in reader.data():
            write(bytes(piece))
        if entry.size % BLOCK:
            write(bytes(-entry.size % BLOCK))
    write(bytes(2 * BLOCK))


def is_opaque(path: bytes) -> bool:
    """Does directory `path` of an upper hide all that lies below it in the lowers?"""
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False


def _walk(root: bytes, below: bytes = b"") -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """Path, name in the tar (behind `below`) and status of everything in `root`; no recursion, as uppers may be
    deep."""
    pending = _listing(root, below)
    while pending:
        path, name = pending.pop()
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            yield path, name + b"/", status
            pending += _listing(path, name + b"/")
        elif not stat.S_ISSOCK(status.st_mode):
            yield path, name, status


def _listing(path: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
    names = sorted(os.listdir(path), reverse=True)  # noqa: PTH208 - bytes
    return [(path + b"/" + name, prefix + name) for name in names]


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _entry(path: bytes, name: bytes, status: os.stat_result, latest: int | None) -> Entry:
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    return Entry(
        name=name,
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == REGULAR else 0,
        mtime=status.st_mtime_ns if latest is None else min(status.st_mtime_ns, latest),
        link=os.readlink(path) if kind == SYMLINK else b"",  # noqa: PTH115 - bytes
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        xattrs=_xattrs(path),
    )


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(names)
        if name.startswith(_KEPT_XATTRS) and not name.startswith(_OVERLAY_XATTRS)
    }


def marker(name: bytes, prefix: bytes) -> Entry:
    """An empty file that speaks of lower layers. Of time 0: when the kernel made its whiteout tells nobody anything."""
    parent, slash, base = name.rpartition(b"/")
    return Entry(name=parent + slash + prefix + base, type=REGULAR, mode=0, uid=0, gid=0, size=0, mtime=0)


def _write_content(path: bytes, size: int, write: Callable[[bytes], Any]) -> None:
    left = size
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while left:
            data = os.read(fd, min(left, _READ))
            if not data:
                raise OSError(errno.EIO, "the file shrank while it was packed", os.fsdecode(path))
            write(data)
            left -= len(data)
    finally:
        os.close(fd)
    if size % BLOCK:
        write(bytes(-size % BLOCK))


# ---------------------------------------------------------------- headers


def encode(entry: Entry) -> bytes:
    """The header blocks of `entry`: one of ustar, behind a PAX header where numbers, names or attributes need it."""
    records = _records(entry)
    header = _ustar(entry, entry.type, entry.name)
    if not records:
        return header
    body = b"".join(pax_record(key, value) for key, value in records)
    kind = Entry(b"", b"x", mode=0o644, uid=0, gid=0, size=len(body), mtime=0)
    named = b"PaxHeaders.0/" + entry.name.rstrip(b"/").rpartition(b"/")[2]
    return _ustar(kind, b"x", named) + body + bytes(-len(body) % BLOCK) + header


def _records(entry: Entry) -> list[tuple[bytes, bytes]]:
    records: list[tuple[bytes, bytes]] = []
    for key, value in ((b"path", entry.name), (b"linkpath", entry.link)):
        # bytes that are no UTF-8 and fit are left to ustar, which takes any
        if len(value) > 100 or (not value.isascii() and _is_utf8(value)):
            records.append((key, value))
    if any(not _is_utf8(value) for _, value in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    for key, number, digits in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", entry.size, 11)):
        if number >= 8**digits:
            records.append((key, b"%d" % number))
    seconds, fraction = divmod(abs(entry.mtime), 10**9)
    if fraction or entry.mtime < 0 or seconds >= 8**11:
        text = b"%s%d.%09d" % (b"-" if entry.mtime < 0 else b"", seconds, fraction)
        records.append((b"mtime", text.rstrip(b"0").rstrip(b".")))
    records += [(_xattr_key(name, entry), value) for name, value in entry.xattrs.items()]
    return records


def _xattr_key(name: bytes, entry: Entry) -> bytes:
    if b"=" in name:  # a record's key ends at the first one: whoever reads the layer would see another attribute
        raise InputError(
            f"attribute {os.fsdecode(name)!a} of {os.fsdecode(b'/' + entry.name)!a} cannot be in an image: layers have "
            "no names with = in them",
            hint="remove it (setfattr -x)",
        )
    return b"SCHILY.xattr." + name


def _ustar(entry: Entry, kind: bytes, name: bytes) -> bytes:
    major, minor = entry.device if kind in {CHARACTER, BLOCK_DEVICE} else (0, 0)
    fields = (
        name[:100].ljust(100, b"\0"),
        _octal(entry.mode, 7), _octal(entry.uid, 7), _octal(entry.gid, 7), _octal(entry.size, 11),
        _octal(entry.mtime // 10**9, 11), b" " * 8, kind, entry.link[:100].ljust(100, b"\0"),
        b"ustar\x0000", bytes(64), _octal(major, 7), _octal(minor, 7), bytes(167),
    )  # fmt: skip
    block = bytearray(b"".join(fields))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _octal(number: int, digits: int) -> bytes:
    """A number that does not fit is left to its PAX record."""
    return b"%0*o\0" % (digits, number if 0 <= number < 8**digits else 0)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
