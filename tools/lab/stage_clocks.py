"""The command line with clocks around the parts of a materialization, for tools/bench/materialize: what the product
does not measure is measured from outside, by wrapping its methods in this process alone.

    python -m tools.lab.stage_clocks RESULT.json build …

Time inside a wrapped method counts for its stage, without what wrapped methods called by it take. Stages overlap, in
several threads: their sum is more than the time that passed. `busy` is wall clock, `cpu` the thread's own time; the
difference is waiting for the disk, for the interpreter lock, or for one of the cores.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.refs.materializer import Materializer
from engine.refs.spool import Spool
from storage import decompression, overlay
from storage.digest import Hasher
from storage.layers import readahead
from storage.layers.erofs import image as erofs_image
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.partial import FilePartial
from tools.cli.main import main

WAITING = "waiting"
NETWORK = "network"


class Clocks:
    """Seconds by stage, added up over all threads."""

    def __init__(self) -> None:
        self.busy: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.lock = threading.Lock()
        self.here = threading.local()
        self.passed = 0.0

    def switch(self, stage: str | None) -> str | None:
        """What this thread does from now on; returns what it did until now."""
        wall, cpu = time.perf_counter(), time.thread_time()
        before: tuple[str | None, float, float] = getattr(self.here, "now", (None, wall, cpu))
        if before[0] is not None:
            with self.lock:
                self.busy[before[0]] = self.busy.get(before[0], 0.0) + wall - before[1]
                self.cpu[before[0]] = self.cpu.get(before[0], 0.0) + cpu - before[2]
        self.here.now = (stage, wall, cpu)
        return before[0]

    def around(self, owner: Any, name: str, stage: str) -> None:
        """Let calls of `owner.name` count for `stage`."""
        wrapped: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(wrapped)
        def call(*args: Any, **kwargs: Any) -> Any:
            outer = self.switch(stage)
            try:
                return wrapped(*args, **kwargs)
            finally:
                self.switch(outer)

        setattr(owner, name, call)

    def around_pull(self) -> None:
        """The event loop's thread, while layers are brought: receiving, HTTP, and what little goes into the log."""
        wrapped = Materializer._bring  # noqa: SLF001  reason: the one place that all layers pass

        async def bring(*args: Any, **kwargs: Any) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                await wrapped(*args, **kwargs)
            finally:
                self.passed += time.perf_counter() - wall
                spent = time.thread_time() - cpu
                self.busy[NETWORK] = self.busy.get(NETWORK, 0.0) + spent  # its wall clock is mostly select(2)
                self.cpu[NETWORK] = self.cpu.get(NETWORK, 0.0) + spent

        Materializer._bring = bring  # type: ignore[method-assign]  # noqa: SLF001


def install(clocks: Clocks) -> None:
    """Wrap everything that a layer goes through on its way to being a lower."""
    clocks.around_pull()
    clocks.around(FilePartial, "write", "keeping what came (written, then deleted)")
    clocks.around(FilePartial, "read", "reading that back")
    clocks.around(Hasher, "update", "hashing (blob and diff ID)")
    for form in (decompression._Gunzip, decompression._Unzstd):  # noqa: SLF001  reason: those are the pipes, no more
        clocks.around(form, "read", "decompression")
    clocks.around(Spool, "read", WAITING)
    clocks.around(readahead.ReadAhead, "read", WAITING)
    clocks.around(ErofsLayers, "_write", "header scan and tree")
    clocks.around(erofs_image.ImageWriter, "write", "writing the tar")
    clocks.around(erofs_image.ImageWriter, "finish", "metadata (index)")
    clocks.around(os, "fsync", "fsync")
    clocks.around(ErofsMounts, "_mount", "mounting")
    clocks.around(overlay, "_mount_by_descriptors", "mounting")


if __name__ == "__main__":
    clocks = Clocks()
    install(clocks)
    result, sys.argv = sys.argv[1], ["refledger", *sys.argv[2:]]
    try:
        main()
    finally:
        said = {"passed": clocks.passed, "busy": clocks.busy, "cpu": clocks.cpu}
        Path(result).write_text(json.dumps(said))
