"""What a command changed, as an overlay upper: mounted while it runs, then put right, and published as a snapshot."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from storage.errors import DiskError, InputError
from storage.layers.seal import directory_seal, line
from storage.layers.unpublished import NEW_ROOT, ROOT_CHANGED, Dress, UnpublishedTree, put_on
from storage.overlay import detach_below, mount_overlay, unmount
from storage.scratch import remove_tree
from storage.tar.pack import is_opaque
from storage.tar.rules import OPAQUE_XATTR, WHITEOUT


class OverlaySnapshot:
    """Implements Snapshot: `upper`, `work` and the mount point `root` in the directory of `new`."""

    def __init__(self, new: UnpublishedTree, covered: Sequence[Path], publish: Callable[[int], None]) -> None:
        """`covered`: the lowers, bottom first; `publish` is given what seals the entries of `new`, and raises OSError.
        Raises OSError, DiskError; then `new` is to be dropped."""
        self._new = new
        self._upper = new.path / "upper"
        self._covered = covered
        self._publish = publish
        for name in ("upper", "work", "root"):
            (new.path / name).mkdir()
        self._dress = _dress_of(covered[-1]) if covered else NEW_ROOT  # of the root, before the step
        put_on(self._upper, self._dress)  # an overlay's root looks like its upper's
        mount_overlay(self.root, covered, self._upper, new.path / "work")

    @property
    def root(self) -> Path:
        """See Snapshot.root."""
        return self._new.path / "root"

    @property
    def changes(self) -> Path:
        """See Snapshot.changes."""
        return self._upper

    def commit(self) -> int:
        """See Snapshot.commit. Raises InputError for a path longer than the kernel takes, or one that means something
        else in a layer, DiskError; the snapshot stays to be discarded then."""
        new = self._new
        try:
            unmount(self.root)
            size, entries = _settle(os.fsencode(self._upper), [os.fsencode(lower) for lower in reversed(self._covered)])
            if _dress_of(self._upper) != self._dress:
                (new.path / ROOT_CHANGED).touch()
            self._upper.rename(new.tree)
            for path in list(new.path.iterdir()):
                if path.is_dir() and path != new.tree:
                    remove_tree(path)
            self._publish(entries)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                hint = "remove it in the same step, or make it less deep"
                raise InputError("a path of more than 4096 bytes cannot be kept", hint=hint) from None
            raise DiskError.of(error, "committing a snapshot") from error
        return size

    def discard(self) -> None:
        """See Snapshot.discard. Raises DiskError."""
        try:
            if self._new.path.exists():
                detach_below(self._new.path)
            self._new.drop()
        except OSError as error:
            raise DiskError.of(error, "discarding a snapshot") from error


def _dress_of(path: Path) -> Dress:
    """Mode, owner and group. Raises OSError."""
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _settle(upper: bytes, lowers: Sequence[bytes]) -> tuple[int, int]:
    """Take back opaque marks that hide nothing, and directories that say nothing; returns the bytes of regular files,
    each inode once, and what seals the entries (storage/layers/seal.py). `lowers`: the uppermost first.

    The kernel marks every new directory opaque to save itself lookups; in a layer the mark says that something below
    was removed, and beside other lowers it would remove what the step never saw. And it copies a directory up when
    something is made in it, be it a mount point that is gone by now: empty and unchanged, it is no change. Raises
    InputError for a name that deletes in a layer (image-spec layer.md, "Whiteouts"), OSError.
    """
    size = sealed = 0
    linked: set[int] = set()
    pending = [(upper, b"", _shown(lowers))]
    copied_up = []
    while pending:
        directory, name, covered = pending.pop()
        own, lines = b"", []
        if name:
            opaque = is_opaque(directory)
            if opaque and not covered:
                os.removexattr(directory, OPAQUE_XATTR)
                opaque = False
            elif not opaque:
                copied_up.append((directory, name, covered[0] if covered else None))
            if opaque:
                covered = []
            own = line(directory, b"", os.lstat(directory), opaque=opaque)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(WHITEOUT):
                    raise _reserved(name + b"/" + entry.name)
                if entry.is_dir(follow_symlinks=False):
                    below = _shown([lower + b"/" + entry.name for lower in covered])
                    pending.append((entry.path, name + b"/" + entry.name, below))
                    continue
                status = entry.stat(follow_symlinks=False)
                lines.append(line(entry.path, entry.name, status))
                if stat.S_ISREG(status.st_mode) and (status.st_nlink == 1 or status.st_ino not in linked):
                    size += status.st_size
                    if status.st_nlink > 1:
                        linked.add(status.st_ino)
        sealed += directory_seal(name, own, lines)
    for directory, name, lower in reversed(copied_up):  # what is inside comes first
        sealed -= _drop_unchanged(directory, name, lower)
    return size, sealed


def _reserved(path: bytes) -> InputError:
    return InputError(
        f"{os.fsdecode(path)!a} cannot be in an image: layers say by such names what is deleted",
        hint="give it another name, or remove it in the same step",
    )


def _shown(places: Sequence[bytes]) -> list[bytes]:
    """Those of `places`, one path in all lowers, whose entries an overlay shows together, by its rules: a directory on
    top of anything else hides that, an opaque one what is below it. Asked for parents first, no link is followed: one
    in an image would lead to a directory of this machine."""
    shown = []
    for place in places:
        try:
            mode = os.lstat(place).st_mode
        except OSError:
            continue
        if not stat.S_ISDIR(mode):
            break
        shown.append(place)
        if is_opaque(place):
            break
    return shown


def _drop_unchanged(directory: bytes, name: bytes, lower: bytes | None) -> int:
    """Remove `directory` of an upper if it is empty and looks like `lower`, which it covers; returns what it added to
    the seal, 0 when it stays."""
    if lower is None or _look(directory) != _look(lower):
        return 0
    parent = os.path.dirname(directory)  # noqa: PTH120 - bytes
    before = os.stat(parent)  # noqa: PTH116 - bytes
    added = directory_seal(name, line(directory, b"", os.lstat(directory)), [])
    try:
        os.rmdir(directory)  # noqa: PTH106 - bytes
    except OSError:
        return 0  # it is not empty
    os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    return added


def _look(path: bytes) -> tuple[object, ...]:
    """All that a layer says of a directory but its entries; what overlay keeps for itself does not count."""
    status = os.lstat(path)
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.overlay.")]
    values = sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, values
