"""What stores that check what they keep have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from storage.durable import fsync_directory
from storage.errors import DiskError, VerificationError

MOST_NOTED = 256 << 20
"""Bytes of what is noted beside a tree, or at the end of an image: names of directories that its layer implies."""


class CheckedOnce(ABC):
    """Implements Checked: a `kind` (`layer`, `snapshot`) is checked once a process, and what this process made itself,
    which says so by `believe`, never."""

    kind: str

    def __init__(self) -> None:
        self._sound: set[str] = set()

    def believe(self, name: str) -> None:
        """What is kept as `name` is as it should be."""
        self._sound.add(name)

    def check(self, name: str) -> str:
        """See Checked.check."""
        if name in self._sound:
            return ""
        try:
            problem = self._problem(name)
        except OSError as error:
            raise DiskError.of(error, f"checking a {self.kind}") from error
        if not problem:
            self.believe(name)
        return problem

    def discard(self, name: str) -> None:
        """See Checked.discard."""
        self._sound.discard(name)
        try:
            self._remove(name)
        except OSError as error:
            raise DiskError.of(error, f"removing a damaged {self.kind}") from error

    def _examined(self, name: str, examine: Callable[[], str], directory: Path) -> None:
        """Raises VerificationError for what `examine` finds wrong with `name`, DiskError for its OSError. The names in
        `directory` are durable then: whoever put it there may have died before."""
        try:
            problem = examine()
            fsync_directory(directory)
        except OSError as error:
            raise DiskError.of(error, f"checking a {self.kind}") from error
        if problem:
            raise VerificationError(problem, where=f"{self.kind} {name}")

    @abstractmethod
    def _problem(self, name: str) -> str:
        """What is wrong with it, "" for nothing. Raises OSError."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove all that is kept of it. Raises OSError."""
