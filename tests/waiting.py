"""Waiting for what another process, thread or task does: for the very thing that is asserted next, and long enough."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 300.0
"""Seconds. What has not happened by then happens on no machine, however busy."""


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
