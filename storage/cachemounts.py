"""Cache mounts: `cache/<digest>/<instance>/fs`, directories that steps of any build write to. And places for secrets.

Locks `cache-<digest>-<instance>` say who uses an instance: shared steps share it, others hold it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Literal

from storage.digest import Digest
from storage.durable import FileSystemSync, fsync_directory
from storage.errors import DiskError
from storage.interfaces.locks import Locks
from storage.overlay import detach_below, mount_memory
from storage.scratch import Scratch, remove_tree

_TREE = "fs"


class DirectoryCacheMounts:
    """Implements CacheMounts in `directory`; `tmp` lies in the same file system."""

    def __init__(self, directory: Path, tmp: Path, owner: str, locks: Locks) -> None:
        """`owner` names unfinished instances. Raises InputError when it is not lower-case alphanumeric."""
        self._directory = directory
        self._scratch = Scratch(tmp, owner)
        self._sync = FileSystemSync(tmp)
        self._locks = locks

    def try_acquire(self, cache: Digest, sharing: Literal["shared", "private", "locked"]) -> HeldDirectory | None:
        """See CacheMounts.try_acquire."""
        instance = 0
        while True:
            lock = self._locks.try_acquire(f"cache-{cache.hex}-{instance}", shared=sharing == "shared")
            if lock is not None:
                path = self._directory / cache.hex / str(instance)
                return HeldDirectory(path, instance, lock, self._scratch, self._sync)
            if sharing != "private":
                return None
            instance += 1


class HeldDirectory:
    """Implements HeldCache."""

    def __init__(
        self, path: Path, instance: int, lock: AbstractContextManager[None], scratch: Scratch, sync: FileSystemSync
    ) -> None:
        self._path = path
        self._instance = instance
        self._lock: AbstractContextManager[None] | None = lock
        self._scratch = scratch
        self._sync = sync

    @property
    def instance(self) -> int:
        """See HeldCache.instance."""
        return self._instance

    @property
    def path(self) -> Path:
        """See HeldCache.path."""
        return self._path / _TREE

    def exists(self) -> bool:
        """See HeldCache.exists."""
        return self.path.is_dir()

    def fill(self, make: Callable[[Path], None]) -> None:
        """See HeldCache.fill."""
        try:
            new = self._scratch.directory()
            try:
                with self._sync.watched() as flush:
                    (new / _TREE).mkdir()
                    make(new / _TREE)
                    self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    flush()  # once it is there, nobody furnishes it again
                self._move(new)
            finally:
                remove_tree(new)
        except OSError as error:
            raise DiskError.of(error, "making a cache mount") from error

    def _move(self, new: Path) -> None:
        """rename(2) replaces an empty directory only: another step's instance, which holds a tree, stays."""
        try:
            new.rename(self._path)
        except OSError:
            if not self.exists():
                raise
        fsync_directory(self._path.parent)
        fsync_directory(self._path.parent.parent)

    def release(self) -> None:
        """See HeldCache.release."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.__exit__(None, None, None)


class MemoryPlaces:
    """Implements SecretPlaces with mounts at scratch directories of `owner`."""

    def __init__(self, tmp: Path, owner: str) -> None:
        self._scratch = Scratch(tmp, owner)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """See SecretPlaces.place."""
        try:
            directory = self._scratch.directory()
        except OSError as error:
            raise DiskError.of(error, "making a place for secrets") from error
        try:
            try:
                mount_memory(directory)
            except OSError as error:
                raise DiskError.of(error, "mounting a tmpfs for secrets") from error
            yield directory
        finally:
            detach_below(directory)
            with suppress(FileNotFoundError):
                directory.rmdir()
