"""Waiting for what another process, thread or task does: for the very thing that is asserted next, and long enough; and
which processes there are."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PATIENCE = 300.0
"""Seconds. What has not happened by then happens on no machine, however busy."""

_times = itertools.count(4811)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Return when `condition()` holds; fail when it does not, or as soon as `process`, which is to bring it about, has
    ended without."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ended = process is not None and process.poll() is not None  # asked first: what it did last counts
        if condition():
            return
        assert not ended, "it ended before it happened"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    """The same, in a task."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def long_time() -> str:
    """An argument for `sleep` that no other process on this machine has."""
    return f"{next(_times)}.{os.getpid()}"


def command_lines() -> dict[int, list[str]]:
    """The arguments of all processes, by pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found[int(path.parent.name)] = path.read_bytes().decode(errors="replace").split("\0")[:-1]
    return found


def processes(marker: str) -> list[int]:
    """Those that have `marker` as an argument."""
    return [pid for pid, arguments in command_lines().items() if marker in arguments]
