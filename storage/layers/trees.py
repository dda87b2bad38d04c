"""Trees of files from elsewhere (the web, git, an archive) on their way to become snapshots."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from storage.errors import DiskError
from storage.layers.snapshots import OverlaySnapshots
from storage.layers.unpublished import UnpublishedTree


class SnapshotTrees:
    """Implements TreeStore beside `snapshots`, in its layout."""

    def __init__(self, snapshots: OverlaySnapshots) -> None:
        self._snapshots = snapshots
        self._begun: dict[Path, UnpublishedTree] = {}

    def has(self, snapshot: str) -> bool:
        """See TreeStore.has."""
        return self._snapshots.has(snapshot)

    def mend(self, snapshot: str) -> str:
        """See TreeStore.mend."""
        problem = self._snapshots.check(snapshot)
        if problem:
            self._snapshots.discard(snapshot)
        return problem

    def path(self, snapshot: str) -> Path:
        """See TreeStore.path."""
        return self._snapshots.lower(snapshot)

    def begin(self) -> Path:
        """See TreeStore.begin."""
        new = self._snapshots.unpublished("beginning a tree")
        try:
            new.make_tree()
        except OSError as error:
            new.clear_away()
            raise DiskError.of(error, "beginning a tree") from error
        self._begun[new.tree] = new
        return new.tree

    def publish(self, tree: Path, snapshot: str) -> int:
        """See TreeStore.publish."""
        try:
            size = _size(tree)
            self._begun[tree].publish(self.path(snapshot).parent)
        except OSError as error:
            raise DiskError.of(error, f"storing {snapshot}") from error
        return size

    def discard(self, trees: Sequence[Path]) -> None:
        """See TreeStore.discard."""
        try:
            for tree in trees:
                if (new := self._begun.pop(tree, None)) is not None:
                    new.drop()
        except OSError as error:
            raise DiskError.of(error, "removing a tree") from error


def _size(tree: Path) -> int:
    """Bytes of the regular files, each inode once."""
    seen: set[int] = set()
    total = 0
    for directory, _, names in os.walk(os.fsencode(tree)):
        for name in names:
            status = os.lstat(os.path.join(directory, name))  # noqa: PTH118 - bytes
            if stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_size
    return total
