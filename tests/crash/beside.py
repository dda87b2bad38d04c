"""Another build in the same root, which goes on while the victim dies and is run again, and must not be hurt."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.crash.judge import builds
from tests.crash.outcomes import pushed
from tests.crash.place import Place
from tests.crash.scene import WAITS, Scene
from tests.waiting import PATIENCE


class Beside:
    """Begun when it is made; where the scene says so, its step waits by then."""

    def __init__(self, scene: Scene, place: Place) -> None:
        assert scene.beside is not None
        self._place = place
        self._waits = scene.waits
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(place.run, scene.beside(place), said="beside")
        if self._waits:
            self._sleeper()

    def finish(self) -> list[str]:
        """Let it go on, wait for its end, and say what is wrong with that."""
        if self._waits:
            os.kill(self._sleeper(), signal.SIGKILL)
        done = self._done.result()
        self._pool.shutdown()
        if done.code:
            return [f"exit code {done.code} of what ran beside: {done.err[-300:]}"]
        digest = pushed(self._place.host, f"{self._place.repository}/beside")
        return [] if digest.startswith("sha256:") else [f"what ran beside pushed {digest}"]

    def _sleeper(self) -> int:
        """The process in its step that sleeps; the step goes on when that dies."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not self._done.done():
            owners = builds(self._place)
            for path in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    command = (path / "cmdline").read_bytes().split(b"\0")
                    if WAITS.encode() in command and b"sleep" in command:
                        groups = (path / "cgroup").read_text()
                        if any(f"/{owner}." in groups for owner in owners):
                            return int(path.name)
            time.sleep(0.02)
        raise AssertionError(f"what was to run beside does not: {self._done.result(0) if self._done.done() else ''}")
