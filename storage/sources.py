"""What the engine knows of fetching from elsewhere than a registry: plain data and protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.digest import Digest

Login = tuple[str, str]
"""User and password for the origin of one URL. Only in memory (I9)."""
Sink = Callable[[bytes], object]
"""Takes the bytes of a file, in order."""


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier answer for a URL said of itself; both may be empty. `last_modified` as the server wrote it."""

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a URL gave. `digest` None: nothing changed since what was `Known`. `mtime`: Last-Modified in seconds since
    the epoch, 0 for none; `size` in bytes."""

    digest: Digest | None
    size: int = 0
    mtime: int = 0
    etag: str = ""
    last_modified: str = ""


class Web(Protocol):
    """Files of the web. Raises RegistryError (missing, auth, transport) and InputError."""

    async def get(
        self, url: str, begin: Callable[[], Sink], *, known: Known | None = None, login: Login | None = None
    ) -> Answer:
        """Read `url` into what `begin()` gives; it is called anew for every try."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """What a ref of a repository names: the commit, its full name ("" for a bare commit), and the id of the annotated
    tag that it went through, if any."""

    id: str
    name: str = ""
    tag: str = ""


class Repositories(Protocol):
    """Git repositories. Raises InputError (no such ref or directory) and HostError (no git, network, access)."""

    async def resolve(self, remote: str, ref: str, *, login: Login | None = None) -> Commit:
        """What `ref` (branch, tag, full ref, commit or the beginning of one; "" for the default branch) names now."""
        ...

    async def checkout(
        self, remote: str, commit: str, tree: Path, *, name: str = "", subdir: str = "", keep_git_dir: bool = False,
        submodules: bool = True, login: Login | None = None,
    ) -> None:  # fmt: skip
        """Put the files of `commit` below `subdir` into the empty directory `tree`; all have the commit's time.
        `name`: the full ref to ask for where a server gives no bare commits, and to keep in `.git`."""
        ...


class TreeStore(Protocol):
    """Trees that are put together file by file and then become snapshots. Methods raise DiskError."""

    def has(self, snapshot: str) -> bool:
        """Is it here?"""
        ...

    def mend(self, snapshot: str) -> str:
        """Remove a snapshot that is not as it was made, and say what was wrong with it: "" when it is sound, or not
        here. Nobody else publishes it meanwhile."""
        ...

    def path(self, snapshot: str) -> Path:
        """The directory of a snapshot that is here."""
        ...

    def begin(self) -> Path:
        """A new empty directory, 0755 root."""
        ...

    def publish(self, tree: Path, snapshot: str) -> int:
        """Make what `begin` gave durable and visible as `snapshot`; returns the bytes of its files."""
        ...

    def discard(self, trees: Sequence[Path]) -> None:
        """Drop what `begin` gave. Harmless after `publish`."""
        ...
