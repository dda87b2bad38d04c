"""Commands under load: how long each took, its most memory, and memory and open files over time of all that run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.builder import PROJECT

EVERY = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True, slots=True)
class Ran:
    """One command to its end. `seconds` of wall clock, `cpu` of its own and its children's, `peak` bytes of its
    resident memory, 0 when it ended unseen."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    cpu: float
    peak: int


@dataclass(frozen=True, slots=True)
class Sample:
    """All commands at one moment: `at` seconds since the beginning, bytes of memory of all and of the largest, open
    files of the one that has most."""

    at: float
    processes: int
    memory: int
    largest: int
    files: int


@dataclass(slots=True)
class Crew:
    """Runs `refledger` in the root `root`, by any number of threads; looks at what runs while `watching`."""

    root: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ran: list[Ran] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    _running: dict[int, int] = field(default_factory=dict)
    """The most memory so far, by process: what wait4 tells is never less than what this process has itself."""

    def run(self, *args: str, root: Path | None = None) -> Ran:
        """`refledger ARGS` as a process of its own."""
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.root.parent), "REFLEDGER_ROOT": str(root or self.root),
            **self.env,
        }  # fmt: skip
        command = [sys.executable, "-m", "tools.cli.main", *args]
        begun = time.monotonic()
        # reason: files, as a pipe that nobody reads would stop a command that prints much
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
            self._running[process.pid] = 0
            _, status, usage = os.wait4(process.pid, 0)
            peak = self._running.pop(process.pid)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            texts = []
            for file in (out, err):
                file.seek(max(file.tell() - 1_000_000, 0) if file.seek(0, os.SEEK_END) else 0)
                texts.append(file.read().decode(errors="replace"))
        ran = Ran(
            args, code, texts[0], texts[1], time.monotonic() - begun, usage.ru_utime + usage.ru_stime, peak
        )
        self.ran.append(ran)
        return ran

    def must(self, *args: str) -> Ran:
        """As `run`; fails unless it ends well."""
        ran = self.run(*args)
        assert ran.code == 0, f"refledger {' '.join(args)}: {ran.code}: {ran.err[-800:]}"
        return ran

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take samples meanwhile."""
        stop = threading.Event()
        begun = time.monotonic()

        def look() -> None:
            while not stop.wait(EVERY):
                self.samples.append(self._sample(time.monotonic() - begun))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _sample(self, at: float) -> Sample:
        memory, files = [], []
        for pid in list(self._running):
            try:
                told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                memory.append(int(told["VmRSS"].split()[0]) * 1024)
                files.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
                if pid in self._running:
                    self._running[pid] = int(told["VmHWM"].split()[0]) * 1024
            except (OSError, KeyError):
                continue  # it has ended
        return Sample(at, len(memory), sum(memory), max(memory, default=0), max(files, default=0))
