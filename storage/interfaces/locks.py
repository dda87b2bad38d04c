"""Locks that all processes of a root share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Locks(Protocol):
    """Named advisory locks of one root, that die with their holder's process."""

    def try_acquire(self, name: str, *, shared: bool = False) -> AbstractContextManager[None] | None:
        """The lock, held until the context ends; None when somebody else (any thread or process) has it. Held
        `shared` it admits others that share it, and nobody who wants it alone."""
        ...
