"""Trees on their way to be kept: nobody sees one before it is whole, sealed and durable."""

from __future__ import annotations

import os
from pathlib import Path

from storage.durable import FileSystemSync, fsync_directory
from storage.layers.seal import TREE, write_seal
from storage.scratch import Scratch, clear_away, remove_tree

ROOT_CHANGED = "root-changed"
"""A file beside a snapshot's tree: the step changed owner or mode of the root directory itself."""
Dress = tuple[int, int, int]
NEW_ROOT: Dress = (0o755, 0, 0)


class UnpublishedTree:
    """A scratch directory, `path`, for a `tree` in it and small files beside that. It knows of what the kernel failed
    to write back from the beginning on. Methods raise OSError."""

    def __init__(self, scratch: Scratch, sync: FileSystemSync) -> None:
        """`sync` of the file system that `scratch` lies in. Raises OSError."""
        self.path = scratch.directory()
        self.tree = self.path / TREE
        try:
            self._flush = sync.watched()
        except OSError:
            clear_away(self.path)
            raise

    def make_tree(self) -> None:
        """An empty one, 0755 root: also without the set-group-ID bit that the directories above may give it."""
        self.tree.mkdir()
        put_on(self.tree, NEW_ROOT)

    def publish(self, final: Path, entries: int | None = None) -> None:
        """Seal it, make it durable, and then visible as `final`, unless another process published the same meanwhile.
        `entries` as in `write_seal`. Where that fails, it is to be dropped."""
        write_seal(self.path, entries)
        self.path.chmod(0o755)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._flush()
        try:
            self.path.rename(final)
        except OSError:
            if not (final / TREE).is_dir():
                raise
        fsync_directory(final.parent)
        self.clear_away()

    def drop(self) -> None:
        """Remove what was not published. Harmless when nothing is left."""
        self._flush.close()
        remove_tree(self.path)

    def clear_away(self) -> None:
        """The same, as far as it can be done now. Raises nothing."""
        self._flush.close()
        clear_away(self.path)


def put_on(directory: Path, dress: Dress) -> None:
    """Give it mode, owner and group. Raises OSError."""
    mode, uid, gid = dress
    os.chown(directory, uid, gid)
    directory.chmod(mode)
