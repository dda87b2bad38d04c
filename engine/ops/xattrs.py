"""Extended attributes: which of them a copy and a layer carry."""

from __future__ import annotations

import errno
import os

KEPT = ("user.", "security.capability")
"""What a COPY keeps of a file's, and ADD of a member's, as docker has it since moby#38599."""
CARRIED = (*KEPT, "trusted.", "system.posix_acl_")
"""What a layer has of a file that its base has."""
_OVERLAYS = ("trusted.overlay.", "user.overlay.")
_NONE = frozenset({errno.ENOTSUP, errno.ENODATA})


def read_xattrs(where: int | str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Those of `where`, a descriptor or a path whose last name is no link, that begin with one of `wanted`, sorted; the
    overlay's own left out. Where the file system has none, there are none. Raises OSError."""
    follow = isinstance(where, int)
    try:
        names = sorted(name for name in os.listxattr(where, follow_symlinks=follow) if name.startswith(wanted))
        return {
            name: os.getxattr(where, name, follow_symlinks=follow) for name in names if not name.startswith(_OVERLAYS)
        }
    except OSError as error:
        if error.errno in _NONE:
            return {}
        raise
