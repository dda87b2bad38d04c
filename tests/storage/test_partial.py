"""Bytes of an interrupted pull: what came is there for the next process, what cannot be right is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.digest import sha256
from storage.interfaces.blobs import PartialBlob
from storage.interfaces.images import Descriptor
from storage.partial import DirectoryPartials
from tests.storage.registry.kit import described, noise

DATA = noise(100_000)
BLOB = described(DATA)


@pytest.fixture
def partials(tmp_path: Path) -> DirectoryPartials:
    return DirectoryPartials(tmp_path / "partial")


def place(tmp_path: Path, blob: Descriptor = BLOB) -> Path:
    return tmp_path / "partial" / f"sha256-{blob.digest.hex}"


def read_all(partial: PartialBlob, size: int = 7000) -> bytes:
    out = b""
    while data := partial.read(len(out), size):
        out += data
    return out


def test_kill_9_keeps_what_was_written(partials: DirectoryPartials, tmp_path: Path) -> None:
    blob = Descriptor("x", sha256(b"never complete"), 1 << 40)
    script = (
        "import sys; from pathlib import Path; from storage.partial import DirectoryPartials\n"
        "from storage.interfaces.images import Descriptor; from storage.digest import Digest\n"
        "partial = DirectoryPartials(Path(sys.argv[1])).open(Descriptor('x', Digest(sys.argv[2]), 1 << 40))\n"
        "at = 0\n"
        "while True:\n"
        "    partial.write(at, (at // 5000 % 251).to_bytes(1) * 5000)\n"
        "    at += 5000\n"
        "    print(at, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "partial"), blob.digest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(200):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    partial = partials.open(blob)
    ((start, _),) = partial.gaps()
    assert start >= told
    kept = read_all(partial, 1 << 20)
    assert kept == b"".join((i % 251).to_bytes(1) * 5000 for i in range(start // 5000 + 1))[:start]


def test_no_descriptor_stays_open(partials: DirectoryPartials) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for end in ("discard", "close"):
        partial = partials.open(BLOB)
        for start in (0, 20_000, 40_000):
            partial.write(start, DATA[start : start + 1000])
        partial.read(0, 10)
        getattr(partial, end)()
        partial.close()
        assert set(Path("/proc/self/fd").iterdir()) <= before
