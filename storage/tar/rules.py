"""What the members of a layer's tar mean, to whoever lays the layer out or looks into it.

Sources: image-spec layer.md, "Whiteouts"; Linux Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from storage.errors import VerificationError
from storage.tar.reader import Entry

OPAQUE_XATTR = b"trusted.overlay.opaque"
ORIGIN_XATTR = b"trusted.overlay.origin"
"""Marks, empty, a directory with whiteouts in it: where no other layer has that directory, the kernel lists it without
looking for them otherwise (Linux fs/overlayfs/inode.c, "non-merge dir that may have whiteouts")."""
WHITEOUT = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
AUFS = b".wh..wh."
"""Besides the opaque marker: bookkeeping of aufs, which nobody reads any more."""
IGNORED_XATTRS = (b"trusted.overlay.", b"security.selinux")
"""Beginnings of attributes' names: the first would redirect lookups, the other belongs to the host's policy."""

MOST_BYTES = (1 << 63) - 1
"""Of all files of a layer: what an event can say. Holes in them cost nothing."""


@dataclass(slots=True)
class Budget:
    """How much memory may be taken for what is known of one layer, and what its image may have beside the tar for holes
    in files, in bytes: a tar of empty files compresses a thousandfold. `hint`: what to do when that is too little."""

    left: int = 2 << 30
    hint: str = ""

    def spend(self, size: int) -> None:
        """Raises VerificationError when it is used up."""
        self.left -= size
        if self.left < 0:
            what = "the layer has more names, attributes and holes in files than fit in memory"
            raise VerificationError(what, hint=self.hint)


def clean(name: bytes) -> bytes:
    """`name` relative to the layer's root. Raises VerificationError when it leads out of it."""
    if name[:1] != b"/" and b"." not in name[:1] and b"/." not in name and b"//" not in name:
        return name.rstrip(b"/")
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise VerificationError(f"a name that leads out of its layer: {os.fsdecode(name[:200])!a}")
    return b"/".join(parts)


def hidden_by(base: bytes) -> bytes:
    """The name that a whiteout called `base` hides. Raises VerificationError for none."""
    hidden = base[len(WHITEOUT) :]
    if hidden in {b"", b".", b".."}:
        raise VerificationError(f"a whiteout of nothing: {os.fsdecode(base)!a}")
    return hidden


def owner(number: int) -> int:
    """`number` if it can be a user's or a group's. Raises OverflowError."""
    if not 0 <= number < 2**32 - 1:
        raise OverflowError(f"owner {number}")
    return number


def no_target(entry: Entry) -> VerificationError:
    """The error for a hard link whose target is not there."""
    return VerificationError(f"{show(entry)}: a hard link to {os.fsdecode(entry.link[:200])!a}, not in the layer")


def show(entry: Entry | None) -> str:
    """The member's name, for errors."""
    return ascii(os.fsdecode(entry.name[:200])) if entry else "the layer"
