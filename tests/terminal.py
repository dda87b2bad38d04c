"""Drives a command that wants a terminal, as a person at one would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from typing import Self

from tests.builder import PROJECT
from tests.waiting import PATIENCE


class AtTerminal:
    """`refledger ARGS` in a terminal of its own; `screen` is all that it showed so far."""

    def __init__(self, *args: str, env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli.main", *args], env={**env, "TERM": "xterm"}, cwd=PROJECT,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # nothing else runs here
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, line: str) -> None:
        """Type `line` and Enter."""
        os.write(self._master, f"{line}\n".encode())

    def expect(self, text: str, seconds: float = PATIENCE) -> str:
        """Wait until `text` is shown, behind what was expected before; returns what came until then."""
        deadline, start = time.monotonic() + seconds, len(self.screen)
        while (at := self.screen.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.screen[start:]}"
            if not self._read():
                break
        assert at >= 0, f"it ended without {text!r}: {self.screen}"
        shown, self._seen = self.screen[self._seen : at + len(text)], at + len(text)
        return shown

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    _seen = 0

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return self._process.poll() is None
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.screen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)
