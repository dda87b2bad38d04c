"""`python -m MODULE` to its end, in a process forked from one that has its imports done (see zygote.py).

A test whose point is how the interpreter starts (imports, standard streams that are no pipes, a namespace to start in)
starts a process of its own: `Builder.start`, `subprocess`.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import PATIENCE
from tests.zygote import READY

_PROJECT = Path(__file__).resolve().parents[1]
_STARTS = ("PYTHON", "LC_", "LANG", "LD_", "COVERAGE_")
"""Variables that count when an interpreter starts: what needs others than a zygote has is forked from another one."""


@dataclass(slots=True)
class _Zygote:
    process: subprocess.Popen[bytes]
    control: socket.socket

    @classmethod
    def start(cls, env: Mapping[str, str]) -> _Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno())], env=env, cwd=_PROJECT,
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        assert ours.recv(10) == READY, "the zygote cannot import what it should: see its standard error"
        return cls(process, ours)

    def close(self) -> None:
        self.control.close()
        self.process.wait()


@dataclass(slots=True)
class _Zygotes:
    lock: threading.Lock = field(default_factory=threading.Lock)
    started: dict[frozenset[tuple[str, str]], _Zygote] = field(default_factory=dict)

    def of(self, env: Mapping[str, str]) -> _Zygote:
        counts = {name: value for name, value in env.items() if name.startswith(_STARTS)}
        with self.lock:
            if (key := frozenset(counts.items())) not in self.started:
                self.started[key] = _Zygote.start(counts)
            return self.started[key]

    def close(self) -> None:
        with self.lock:
            while self.started:
                self.started.popitem()[1].close()


_ZYGOTES = _Zygotes()
close_zygotes = _ZYGOTES.close


def run_module(
    module: str, *args: str, env: Mapping[str, str], stdin: bytes | None = None, timeout: float = PATIENCE
) -> subprocess.CompletedProcess[bytes]:
    """`python -m MODULE ARGS` in the project's directory and a session of its own, with the environment `env` and
    `stdin` in a pipe (None: /dev/null). Raises TimeoutExpired when it has not ended `timeout` seconds later, and kills
    the session."""
    read, given = (os.open(os.devnull, os.O_RDONLY), -1) if stdin is None else os.pipe()
    (out, write_out), (err, write_err) = os.pipe(), os.pipe()
    told = _fork(module, args, env, [read, write_out, write_err])
    out_text, err_text, numbers = _exchange([out, err, told], given, stdin or b"", module, timeout)
    return subprocess.CompletedProcess([module, *args], _code(numbers), out_text, err_text)


def run_into(
    module: str, *args: str, env: Mapping[str, str], out: Path, err: Path, timeout: float = PATIENCE
) -> tuple[int, int]:
    """The same, with its output in files, which processes that outlive it may keep open: it is not waited for them.
    Returns its process id, which is its session's, too, and its exit code."""
    descriptors = [os.open(os.devnull, os.O_RDONLY)]
    descriptors += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in (out, err)]
    told = _fork(module, args, env, descriptors)
    (numbers,) = _exchange([told], -1, b"", module, timeout)
    return int(numbers.split()[0]), _code(numbers)


def _fork(module: str, args: Sequence[str], env: Mapping[str, str], standard: list[int]) -> int:
    """Have the zygote begin; `standard` (input, output, error) is closed here. Returns the pipe that is told the
    process id and the wait status."""
    control = _ZYGOTES.of(env).control
    read, write = os.pipe()
    request = {"module": module, "args": args, "env": dict(env), "umask": _umask()}
    try:
        socket.send_fds(control, [json.dumps(request).encode()], [*standard, write])
    finally:
        for descriptor in (*standard, write):
            os.close(descriptor)
    return read


def _code(told: bytes) -> int:
    numbers = told.split()
    assert len(numbers) == 2, "the zygote ended"
    return os.waitstatus_to_exitcode(int(numbers[1]))


def _umask() -> int:
    """This process's; umask(2) cannot tell it without setting one, which other threads would see."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("\nUmask:")[2].split()[0], 8)


def _exchange(reads: list[int], given: int, stdin: bytes, module: str, timeout: float) -> list[bytes]:
    """What comes out of `reads` (the last is what the zygote tells) until their ends, while `stdin` goes into `given`;
    all are closed."""
    read: dict[int, bytearray] = {descriptor: bytearray() for descriptor in reads}
    rest = memoryview(stdin)
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for descriptor in reads:
            selector.register(descriptor, selectors.EVENT_READ)
        if given >= 0:
            selector.register(given, selectors.EVENT_WRITE)
        try:
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    *texts, told = (bytes(read[one]) for one in reads)
                    if told.split():  # it has begun
                        os.killpg(int(told.split()[0]), signal.SIGKILL)
                    raise subprocess.TimeoutExpired(module, timeout, *texts)
                for key, _ in ready:
                    if key.fd == given:
                        try:
                            rest = rest[os.write(given, rest[: 1 << 16]) :]
                        except BrokenPipeError:
                            rest = rest[:0]
                        more = bool(rest)
                    else:
                        chunk = os.read(key.fd, 1 << 16)
                        read[key.fd] += chunk
                        more = bool(chunk)
                    if not more:
                        selector.unregister(key.fd)
                        os.close(key.fd)
        finally:
            for left in list(selector.get_map().values()):
                os.close(left.fd)
    return [bytes(read[descriptor]) for descriptor in reads]
