"""Waiting for what happens on this machine, and what runs on it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_times = itertools.count(4811)


def long_time() -> str:
    """An argument for `sleep` that no other process on this machine has."""
    return f"{next(_times)}.{os.getpid()}"


def wait_until(condition: Callable[[], object]) -> None:
    """Until it holds, half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


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
