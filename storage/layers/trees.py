"""Trees of files from elsewhere (the web, git, an archive) on their way to become snapshots."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from storage.durable import FileSystemSync, fsync_directory
from storage.errors import DiskError
from storage.layers.seal import write_seal
from storage.layers.snapshots import OverlaySnapshots
from storage.scratch import Scratch, remove_tree


class SnapshotTrees:
    """Implements TreeStore beside `snapshots`, in its layout."""

    def __init__(self, snapshots: OverlaySnapshots, tmp: Path, owner: str) -> None:
        """`tmp` must lie in the same file system. Raises InputError when `owner` is not lower-case alphanumeric."""
        self._snapshots = snapshots
        self._scratch = Scratch(tmp, owner)
        self._sync = FileSystemSync(tmp)

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
        try:
            tree = self._scratch.directory() / self._snapshots.lower("any").name
            tree.mkdir()
            tree.chmod(0o755)
        except OSError as error:
            raise DiskError.of(error, "beginning a tree") from error
        return tree

    def publish(self, tree: Path, snapshot: str) -> int:
        """See TreeStore.publish."""
        final = self.path(snapshot).parent
        try:
            size = _size(tree)
            tree.parent.chmod(0o755)
            write_seal(tree.parent)
            self._sync()
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                tree.parent.rename(final)
            except OSError:
                if not self.has(snapshot):  # else another process published the same meanwhile
                    raise
                remove_tree(tree.parent)
            fsync_directory(final.parent)
        except OSError as error:
            raise DiskError.of(error, f"storing {snapshot}") from error
        return size

    def discard(self, trees: Sequence[Path]) -> None:
        """See TreeStore.discard."""
        try:
            for tree in trees:
                with suppress(FileNotFoundError):
                    remove_tree(tree.parent)
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
