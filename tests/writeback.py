"""Flushes as they happen, and a kernel whose write-back fails by itself, between two of them."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
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


def watch_flushes(monkeypatch: pytest.MonkeyPatch, is_seen: Callable[[], bool]) -> list[tuple[bool, str]]:
    """What is flushed from now on, in order: could what is made be seen by then, and the path of what was flushed (of
    a whole file system that of any file in it)."""
    flushes: list[tuple[bool, str]] = []

    def watched(flush: Callable[[int], None]) -> Callable[[int], None]:
        def watching(fd: int) -> None:
            flushes.append((is_seen(), str(Path(f"/proc/self/fd/{fd}").readlink())))
            flush(fd)

        return watching

    monkeypatch.setattr(durable, "flush_file_system", watched(durable.flush_file_system))
    monkeypatch.setattr(os, "fsync", watched(os.fsync))
    return flushes
