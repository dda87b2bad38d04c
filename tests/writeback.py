"""A kernel whose write-back fails by itself, between two flushes."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

import pytest

from storage import durable


class FailingWriteBack:
    """Tells of errors as syncfs(2) does: each descriptor once, and only of those since it was opened (Linux 5.8)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._errors = 0
        self._told: dict[int, int] = {}
        self._open = os.open
        monkeypatch.setattr(os, "open", self._opening)
        monkeypatch.setattr(durable, "_libc", self)

    def fail(self) -> None:
        """Lose something that was written."""
        self._errors += 1

    def _opening(self, *arguments: Any, **named: Any) -> int:
        fd = self._open(*arguments, **named)
        self._told[fd] = self._errors
        return fd

    def syncfs(self, fd: int) -> int:
        """As the C library has it."""
        if self._told[fd] == self._errors:
            return 0
        self._told[fd] = self._errors
        ctypes.set_errno(errno.EIO)
        return -1
