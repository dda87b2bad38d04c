"""Results of steps as overlay uppers, `snapshots/<id>/fs`: made by mounting one, or written entry by entry."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.durable import FileSystemSync, fsync_directory
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.layers import LayerWriter
from storage.layers.checked import CheckedOnce
from storage.layers.erofs.header import SUFFIX, Hashing, Image
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.seal import broken, directory_seal, line, write_seal
from storage.overlay import detach_below, mount_overlay, unmount
from storage.scratch import Scratch, clear_away, remove_tree

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}")
_TREE = "fs"
_LOOKS = "looks"  # in the scratch directory: see storage.layers.implied
_ROOT_CHANGED = "root-changed"  # a file beside the tree: the step changed owner or mode of the root directory itself


def is_snapshot_id(name: str) -> bool:
    """Can a snapshot be called so?"""
    return type(name) is str and _ID.fullmatch(name) is not None


class OverlaySnapshots(CheckedOnce):
    """Implements SnapshotStore. `tmp` must lie in the same file system as `snapshots`."""

    kind = "snapshot"

    def __init__(
        self,
        snapshots: Path,
        tmp: Path,
        owner: str,
        *,
        mounts: ErofsMounts | None = None,
        as_images: Callable[[], bool] = lambda: False,
    ) -> None:
        """`owner` names unfinished snapshots; `mounts` of snapshots that are images; `as_images`: is what is composed
        kept as one? Raises InputError when `owner` is not lower-case alphanumeric."""
        self.directory = snapshots
        self._scratch = Scratch(tmp, owner)
        self.sync = FileSystemSync(tmp)
        self._mounts = mounts
        self._as_images = as_images
        super().__init__()

    def has(self, snapshot: str) -> bool:
        """See SnapshotStore.has."""
        if self._tree(snapshot).is_dir():
            return True
        return self._mounts is not None and self._image(snapshot).is_file() and self._mounts.possible

    def lower(self, snapshot: str) -> Path:
        """See SnapshotStore.lower. Raises InputError for what cannot be an id, DiskError."""
        tree = self._tree(snapshot)
        if self._mounts is not None and not tree.is_dir() and self._image(snapshot).is_file():
            return self._mounts.lower(self._image(snapshot))
        return tree

    def begin(self, snapshot: str, lowers: Sequence[Path]) -> OverlaySnapshot:
        """See SnapshotStore.begin."""
        final = self._tree(snapshot).parent
        scratch = self._make_scratch()
        try:
            for name in ("upper", "work", "root"):
                (scratch / name).mkdir()
            covered = self._uncover(scratch, lowers)
            dress = _dress(covered[-1]) if covered else _NEW_ROOT
            _put_on(scratch / "upper", dress)
            mount_overlay(scratch / "root", covered, scratch / "upper", scratch / "work")
        except OSError as error:
            clear_away(scratch)
            raise DiskError.of(error, "beginning a snapshot") from error
        except DiskError:
            clear_away(scratch)
            raise
        return OverlaySnapshot(self, scratch, final, tuple(lowers), dress)

    def compose(self, snapshot: str) -> LayerWriter:
        """See SnapshotStore.compose."""
        final = self._tree(snapshot).parent
        if self._as_images():
            from storage.layers.erofs.compose import ErofsLayerWriter

            return ErofsLayerWriter(self._scratch.name(), self._image(snapshot), snapshot)
        from storage.layers.compose import NewTree

        scratch = self._make_scratch()
        tree = scratch / _TREE

        def publish(root_changed: bool) -> None:
            try:
                if root_changed:
                    (scratch / _ROOT_CHANGED).touch()
                write_seal(scratch)
                self.publish(scratch, final)
            except OSError as error:
                raise DiskError.of(error, "committing a snapshot") from error

        def drop() -> None:
            try:
                remove_tree(scratch)
            except OSError as error:
                raise DiskError.of(error, "discarding a snapshot") from error

        try:
            tree.mkdir()
            _put_on(tree, _NEW_ROOT)  # also clears what a set-group-ID bit of the directories above gave it
            return NewTree(tree, publish, drop)
        except OSError as error:
            clear_away(scratch)
            raise DiskError.of(error, "beginning a snapshot") from error
        except DiskError:
            clear_away(scratch)
            raise

    @contextmanager
    def view(self, lowers: Sequence[Path]) -> Iterator[Path]:
        """See SnapshotStore.view."""
        scratch = self._make_scratch()
        try:
            try:
                (scratch / "root").mkdir()
                mount_overlay(scratch / "root", self._uncover(scratch, lowers))
            except OSError as error:
                raise DiskError.of(error, "mounting a view") from error
            yield scratch / "root"
        finally:
            detach_below(scratch)
            clear_away(scratch)

    def pack(self, snapshot: str, write: Callable[[bytes], Any], *, clamp_mtime: int | None = None) -> None:
        """See SnapshotStore.pack. Raises DiskError, VerificationError for an image that was damaged, and what `write`
        raises."""
        from storage.tar.pack import pack_tar, pack_tree

        tree = self._tree(snapshot)
        with_root = (tree.parent / _ROOT_CHANGED).exists()
        try:
            if tree.is_symlink() or tree.parent.is_symlink():
                raise VerificationError("a link stands in the place of its files", where=str(tree))
            if not tree.is_dir() and self._image(snapshot).is_file():
                image = Image.open(self._image(snapshot))
                with image.open_tar() as tar:
                    hashed = Hashing(tar, image.diff_id.algorithm)
                    pack_tar(hashed, write, clamp_mtime=clamp_mtime)
                    if hashed.digest() != image.diff_id:
                        raise VerificationError(f"its content is not that of {image.diff_id}", where=str(image.path))
                return
            pack_tree(os.fsencode(tree), write, with_root=with_root, clamp_mtime=clamp_mtime)
        except OSError as error:
            raise DiskError.of(error, f"packing snapshot {snapshot}") from error

    def publish(self, scratch: Path, final: Path) -> None:
        """Make what lies in `scratch` durable, then visible as `final`. Raises OSError."""
        scratch.chmod(0o755)
        self.sync()
        self.directory.mkdir(parents=True, exist_ok=True)
        scratch.rename(final)
        fsync_directory(self.directory)
        self.believe(final.name)

    def _problem(self, name: str) -> str:
        tree = self._tree(name)
        problem = broken(tree.parent)
        if problem or self._mounts is None or tree.is_dir() or not os.path.lexists(self._image(name)):
            return problem
        from storage.layers.erofs.check import check_image

        return check_image(self._image(name), name, self._scratch)

    def _remove(self, name: str) -> None:
        if self._mounts is not None:
            self._mounts.forget(self._image(name))
            self._scratch.drop(self._image(name))
        self._scratch.drop(self._tree(name).parent)

    def _tree(self, snapshot: str) -> Path:
        if not is_snapshot_id(snapshot):
            raise InputError(f"not a snapshot id: {snapshot[:100]!r}")
        return self.directory / snapshot / _TREE

    def _image(self, snapshot: str) -> Path:
        return self.directory / (snapshot + SUFFIX)

    def _uncover(self, scratch: Path, lowers: Sequence[Path]) -> list[Path]:
        """Those of `lowers` that are seen, with one more on top where directories that they imply hide how those below
        look. The kernel merges the roots of layers whatever marks they have, so what lies below an opaque root
        (image-spec layer.md, "Opaque Whiteout") is left out here."""
        from storage.layers.implied import hidden_looks, make_directories
        from storage.tar.pack import is_opaque

        top = next((at for at in reversed(range(len(lowers))) if is_opaque(os.fsencode(lowers[at]))), 0)
        lowers = lowers[top:]
        implied = [self._implied(lower) for lower in lowers]
        looks = hidden_looks(lowers, implied) if any(implied) else {}
        if not looks:
            return list(lowers)
        make_directories(scratch / _LOOKS, looks)
        return [*lowers, scratch / _LOOKS]

    def _implied(self, lower: Path) -> AbstractSet[bytes]:
        """A step's root counts like that of the layer it is packed as."""
        from storage.layers.implied import ROOT, read_implied

        if lower.parent.parent != self.directory:
            return read_implied(lower)
        return frozenset() if (lower.parent / _ROOT_CHANGED).exists() else {ROOT}

    def _make_scratch(self) -> Path:
        try:
            return self._scratch.directory()
        except OSError as error:
            raise DiskError.of(error, "beginning a snapshot") from error


class OverlaySnapshot:
    """Implements Snapshot: `upper`, `work` and the mount point `root` in a scratch directory."""

    def __init__(
        self, store: OverlaySnapshots, scratch: Path, final: Path, lowers: tuple[Path, ...], dress: Dress
    ) -> None:
        self._store = store
        self._scratch = scratch
        self._final = final
        self._lowers = lowers
        self._dress = dress  # of the root, before the step

    @property
    def root(self) -> Path:
        """See Snapshot.root."""
        return self._scratch / "root"

    @property
    def changes(self) -> Path:
        """See Snapshot.changes."""
        return self._scratch / "upper"

    def commit(self) -> int:
        """See Snapshot.commit. Raises InputError for a path longer than the kernel takes, or one that means something
        else in a layer, DiskError; the snapshot stays to be discarded then."""
        upper = self._scratch / "upper"
        try:
            unmount(self.root)
            covered = [self._scratch / _LOOKS, *reversed(self._lowers)]
            size, entries = _settle(os.fsencode(upper), [os.fsencode(lower) for lower in covered])
            if _dress(upper) != self._dress:
                (self._scratch / _ROOT_CHANGED).touch()
            upper.rename(self._scratch / _TREE)
            for name in ("work", "root", "empty", _LOOKS):
                remove_tree(self._scratch / name)
            write_seal(self._scratch, entries)
            self._store.publish(self._scratch, self._final)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                hint = "remove it in the same step, or make it less deep"
                raise InputError("a path of more than 4096 bytes cannot be kept", hint=hint) from None
            raise DiskError.of(error, "committing a snapshot") from error
        return size

    def discard(self) -> None:
        """See Snapshot.discard. Raises DiskError."""
        try:
            if self._scratch.exists():
                detach_below(self._scratch)
                remove_tree(self._scratch)
        except OSError as error:
            raise DiskError.of(error, "discarding a snapshot") from error


Dress = tuple[int, int, int]
_NEW_ROOT: Dress = (0o755, 0, 0)


def _dress(path: Path) -> Dress:
    """Mode, owner and group."""
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _put_on(upper: Path, dress: Dress) -> None:
    """The root of an overlay looks like its upper's, which must look like what it covers."""
    mode, uid, gid = dress
    os.chown(upper, uid, gid)
    upper.chmod(mode)


def _settle(upper: bytes, lowers: Sequence[bytes]) -> tuple[int, int]:
    """Take back opaque marks that hide nothing, and directories that say nothing; returns the bytes of regular files,
    each inode once, and what seals the entries (storage/layers/seal.py). `lowers`: the uppermost first.

    The kernel marks every new directory opaque to save itself lookups; in a layer the mark says that something below
    was removed, and beside other lowers it would remove what the step never saw. And it copies a directory up when
    something is made in it, be it a mount point that is gone by now: empty and unchanged, it is no change. Raises
    InputError for a name that deletes in a layer (image-spec layer.md, "Whiteouts"), OSError.
    """
    from storage.tar.pack import is_opaque
    from storage.tar.rules import OPAQUE_XATTR, WHITEOUT

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
    from storage.tar.pack import is_opaque

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
