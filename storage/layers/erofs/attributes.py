"""Extended attributes: which of a layer's a Linux file system would take, and how EROFS has them behind an inode.

Sources: xattr(7), capabilities(7), acl(5); Linux fs/posix_acl.c and fs/erofs/erofs_fs.h (inline xattrs).
"""

from __future__ import annotations

import errno
import os
import re
import struct

from storage.errors import VerificationError
from storage.tar.reader import DIRECTORY, REGULAR, SYMLINK, Entry
from storage.tar.rules import IGNORED_XATTRS

Xattrs = tuple[tuple[bytes, bytes], ...]
"""Names and values, sorted."""
HEADER = 12
"""Bytes in front of an inode's attributes, of which there are none without any."""
LONGEST_NAME = 255
"""Bytes of a file's name, and of an attribute's."""
_LARGEST = 65535  # bytes of a value: it has a 16-bit size on disk
_MOST = 4 * 65535  # bytes of all that an inode has
_ENTRY = struct.Struct("<BBH")
_ACCESS, _DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_WHOLE = {_ACCESS: 2, _DEFAULT: 3}  # names that EROFS has a number for
_PREFIXES = {b"security.": 6, b"trusted.": 4, b"user.": 1}
_ACL_VERSION = b"\x02\0\0\0"
_ACL_ENTRY = struct.Struct("<HHI")  # tag, permissions, whose
_ACL_TAGS = {1: "u", 2: "U", 4: "g", 8: "G", 16: "m", 32: "o"}
_ACL_ORDER = re.compile("ugo|uU*gG*mo")
_NOBODY = 2**32 - 1


def taken(entry: Entry) -> Xattrs:
    """Those of `entry` that a disk would keep. It refuses those of other systems, which are left out here, too. Raises
    OSError for what it would refuse as wrong."""
    kept = []
    for name, value in sorted(entry.xattrs.items()):
        if name.startswith(IGNORED_XATTRS) or not (name in _WHOLE or name.startswith(tuple(_PREFIXES))):
            continue
        if name in _WHOLE and (entry.type == SYMLINK or value == _ACL_VERSION):
            continue  # an empty list takes away what there is
        if name.startswith(b"user.") and entry.type not in {REGULAR, DIRECTORY}:
            continue  # xattr(7)
        _check(name, value)
        if name == _DEFAULT and entry.type != DIRECTORY:
            raise _error(errno.EACCES)
        kept.append((name, value))
    return tuple(kept)


def inline(xattrs: Xattrs) -> bytes:
    """What stands behind an inode with these. Raises VerificationError when it is more than can."""
    if not xattrs:
        return b""
    parts = [bytes(HEADER)]
    for name, value in xattrs:
        prefix = name if name in _WHOLE else name[: name.index(b".") + 1]
        rest = name[len(prefix) :]
        entry = _ENTRY.pack(len(rest), _WHOLE.get(name) or _PREFIXES[prefix], len(value)) + rest + value
        parts.append(entry + bytes(-len(entry) % 4))
    body = b"".join(parts)
    if len(body) > _MOST:
        raise VerificationError("a file with more than 256 KiB of attributes")
    return body


def _check(name: bytes, value: bytes) -> None:
    """What setxattr(2) would refuse."""
    if len(name) > LONGEST_NAME or len(value) > _LARGEST or name in _PREFIXES:
        raise _error(errno.ERANGE)
    if name == b"security.capability":
        revision = struct.unpack("<I", value[:4])[0] >> 24 if len(value) >= 4 else 0
        if {1: 12, 2: 20, 3: 24}.get(revision) != len(value):  # capabilities(7), vfs_cap_data
            raise _error(errno.EINVAL)
    elif name in _WHOLE and not _is_acl(value):
        raise _error(errno.EINVAL)


def _is_acl(value: bytes) -> bool:
    """As posix_acl_from_xattr() and posix_acl_valid(): the kernel reads it at every access, and fails at another."""
    if value[:4] != _ACL_VERSION or len(value) % _ACL_ENTRY.size != len(_ACL_VERSION):
        return False
    entries = list(_ACL_ENTRY.iter_unpack(value[4:]))
    named = all(who != _NOBODY for tag, _, who in entries if _ACL_TAGS.get(tag) in {"U", "G"})
    order = "".join(_ACL_TAGS.get(tag, "?") for tag, _, _ in entries)
    return named and bool(_ACL_ORDER.fullmatch(order)) and all(allowed < 8 for _, allowed, _ in entries)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
