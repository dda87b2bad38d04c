"""What a RUN mounts beside its inputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from storage.digest import Digest


class HeldCache(Protocol):
    """One instance of a cache mount, this step's until `release`."""

    @property
    def instance(self) -> int:
        """Its number; 0 unless somebody else's private use made more of them necessary."""
        ...

    @property
    def path(self) -> Path:
        """The directory to be mounted. It need not be there yet: see `fill`."""
        ...

    def exists(self) -> bool:
        """Has it been filled before? Raises DiskError."""
        ...

    def fill(self, make: Callable[[Path], None]) -> None:
        """Have `make` furnish a new empty directory, which then, all at once and for good, is the one at `path`.
        When another step that shares the instance was quicker, that one's stays. Raises DiskError and what `make`
        raises; nothing is left then."""
        ...

    def release(self) -> None:
        """Let others have it. Harmless when called again."""
        ...


class CacheMounts(Protocol):
    """Directories that outlive builds, named by the digest of what makes one differ from another."""

    def try_acquire(self, cache: Digest, sharing: Literal["shared", "private", "locked"]) -> HeldCache | None:
        """An instance of `cache`: one that other `shared` steps may use meanwhile, another one when it is taken
        (`private`), the only one (`locked`). None: the step has to wait. Blocking. Raises DiskError."""
        ...


class SecretPlaces(Protocol):
    """Directories in memory."""

    def place(self) -> AbstractContextManager[Path]:
        """A new directory, 0700, on a tmpfs that no other process sees mounted and that is gone with the context, or
        with this process. Blocking. Raises DiskError."""
        ...
