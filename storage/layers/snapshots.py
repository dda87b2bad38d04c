"""Results of steps as overlay uppers, `snapshots/<id>/fs`: made by mounting one, or written entry by entry."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from storage.durable import FileSystemSync
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.layers import LayerWriter, Snapshot
from storage.layers.checked import CheckedOnce
from storage.layers.erofs.header import SUFFIX, Hashing, Image
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.seal import TREE, broken
from storage.layers.unpublished import ROOT_CHANGED, UnpublishedTree
from storage.overlay import detach_below, mount_overlay
from storage.scratch import Scratch, clear_away

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}")


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
        self._prefix = f"{snapshots}/"
        self._scratch = Scratch(tmp, owner)
        self.sync = FileSystemSync(tmp)
        self._mounts = mounts
        self._as_images = as_images
        super().__init__()

    def has(self, snapshot: str) -> bool:
        """See SnapshotStore.has."""
        place = self._place(snapshot)
        if _is(f"{place}/{TREE}", stat.S_IFDIR):
            return True
        return self._mounts is not None and _is(place + SUFFIX, stat.S_IFREG) and self._mounts.possible

    def lower(self, snapshot: str) -> Path:
        """See SnapshotStore.lower. Raises InputError for what cannot be an id, DiskError."""
        place = self._place(snapshot)
        if self._mounts is None or _is(f"{place}/{TREE}", stat.S_IFDIR) or not _is(place + SUFFIX, stat.S_IFREG):
            return self._kept(snapshot) / TREE
        return self._mounts.lower(self._image(snapshot))

    def begin(self, snapshot: str, lowers: Sequence[Path]) -> Snapshot:
        """See SnapshotStore.begin."""
        from storage.layers.upper import OverlaySnapshot

        final = self._kept(snapshot)
        new = self.unpublished()
        try:
            return OverlaySnapshot(new, self._uncover(new.path, lowers), partial(self._keep, new, final))
        except OSError as error:
            new.clear_away()
            raise DiskError.of(error, "beginning a snapshot") from error
        except DiskError:
            new.clear_away()
            raise

    def compose(self, snapshot: str) -> LayerWriter:
        """See SnapshotStore.compose."""
        final = self._kept(snapshot)
        if self._as_images():
            from storage.layers.erofs.compose import ErofsLayerWriter

            return ErofsLayerWriter(self._scratch.name(), self._image(snapshot), snapshot)
        from storage.layers.compose import NewTree

        new = self.unpublished()
        try:
            new.make_tree()
            return NewTree(new, partial(self._keep, new, final))
        except OSError as error:
            new.clear_away()
            raise DiskError.of(error, "beginning a snapshot") from error

    def unpublished(self, doing: str = "beginning a snapshot") -> UnpublishedTree:
        """A tree that may become a snapshot. Raises DiskError."""
        try:
            return UnpublishedTree(self._scratch, self.sync)
        except OSError as error:
            raise DiskError.of(error, doing) from error

    @contextmanager
    def view(self, lowers: Sequence[Path]) -> Iterator[Path]:
        """See SnapshotStore.view."""
        try:
            scratch = self._scratch.directory()
        except OSError as error:
            raise DiskError.of(error, "mounting a view") from error
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
        from storage.tar.pack import pack_tree

        kept, image = self._kept(snapshot), self._image(snapshot)
        tree = kept / TREE
        try:
            if tree.is_symlink() or kept.is_symlink():
                raise VerificationError("a link stands in the place of its files", where=str(tree))
            if tree.is_dir() or not image.is_file():
                with_root = (kept / ROOT_CHANGED).exists()
                pack_tree(os.fsencode(tree), write, with_root=with_root, clamp_mtime=clamp_mtime)
            else:
                _pack_image(Image.open(image), write, clamp_mtime)
        except OSError as error:
            raise DiskError.of(error, f"packing snapshot {snapshot}") from error

    def _keep(self, new: UnpublishedTree, final: Path, entries: int | None = None) -> None:
        """Raises OSError."""
        new.publish(final, entries)
        self.believe(final.name)

    def _problem(self, name: str) -> str:
        kept, image = self._kept(name), self._image(name)
        problem = broken(kept)
        if problem or self._mounts is None or (kept / TREE).is_dir() or not os.path.lexists(image):
            return problem
        from storage.layers.erofs.check import check_image

        return check_image(image, name, self._scratch)

    def _remove(self, name: str) -> None:
        if self._mounts is not None:
            self._mounts.forget(self._image(name))
            self._scratch.drop(self._image(name))
        self._scratch.drop(self._kept(name))

    def _kept(self, snapshot: str) -> Path:
        """The directory that has its tree, if it is one of files. Raises InputError for what cannot be an id."""
        self._place(snapshot)
        return self.directory / snapshot

    def _place(self, snapshot: str) -> str:
        """The same, as text: whether a snapshot is here is asked for each layer of each step, and paths are slow."""
        if not is_snapshot_id(snapshot):
            raise InputError(f"not a snapshot id: {snapshot[:100]!r}")
        return self._prefix + snapshot

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
        make_directories(scratch / "looks", looks)
        return [*lowers, scratch / "looks"]

    def _implied(self, lower: Path) -> AbstractSet[bytes]:
        """A step's root counts like that of the layer it is packed as."""
        from storage.layers.implied import ROOT, read_implied

        if lower.parent.parent != self.directory:
            return read_implied(lower)
        return frozenset() if (lower.parent / ROOT_CHANGED).exists() else {ROOT}


def _pack_image(image: Image, write: Callable[[bytes], Any], clamp_mtime: int | None) -> None:
    from storage.tar.pack import pack_tar

    with image.open_tar() as tar:
        hashed = Hashing(tar, image.diff_id.algorithm)
        pack_tar(hashed, write, clamp_mtime=clamp_mtime)
        if hashed.digest() != image.diff_id:
            raise VerificationError(f"its content is not that of {image.diff_id}", where=str(image.path))


def _is(path: str, kind: int) -> bool:
    """Is something of that `kind` (stat.S_IFMT) there, as far as anybody can tell?"""
    try:
        return stat.S_IFMT(os.stat(path).st_mode) == kind  # noqa: PTH116 - text: see `_place`
    except OSError:
        return False
