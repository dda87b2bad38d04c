"""A machine's disk in memory: one root directory that several simulated processes share, and that outlives them.

Everything but the log's file is the real stores of storage/ on simulated system calls (syscalls.py), so the order of
their writes, flushes and renames is the real one. To be used within `paths.simulated_files()`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore
from storage.interfaces.layers import CheckedLayers
from storage.interfaces.packing import LayerPacker, LayerTars
from storage.layers.erofs.header import SUFFIX
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.tars import ImageTars
from storage.layers.snapshots import OverlaySnapshots
from storage.locks import FileLocks
from storage.packing import BlobPacker
from storage.partial import DirectoryPartials
from tests.simulation import chance
from tests.simulation.chance import Chance, Faults
from tests.simulation.eventlog import MemoryLog, StoredLog
from tests.simulation.inodes import FileSystem, directory
from tests.simulation.mounting import SimulatedMounts
from tests.simulation.paths import CLOCK, DiskPath
from tests.simulation.processes import Process, processes
from tests.simulation.syscalls import Os
from tests.simulation.threads import Threads

_BEGAN = 1_700_000_000 * 10**9
_TICK = 1000
_PATIENCE = 100_000
_OS = Os()
_numbers: set[int] = set()


class Disk:
    """Implements syscalls.Machine. `clock`: UTC, ns; without one, each look at it takes a microsecond. `threads`: which
    may go on, or be stalled, at each system call."""

    def __init__(
        self, draws: Chance, faults: Faults, clock: Callable[[], int] | None = None,
        threads: Threads | None = None,
    ) -> None:  # fmt: skip
        self.number = next(number for number in itertools.count() if number not in _numbers)
        _numbers.add(self.number)
        self.chance = draws
        self.faults = faults
        self.threads = threads
        self.pause: Callable[[], None] = threads.pause if threads is not None else lambda: None
        self.files = FileSystem()
        self.log = StoredLog()
        ticks = itertools.count(_BEGAN, _TICK)
        self.now: Callable[[], int] = clock or (lambda: next(ticks))
        self._processes: dict[str, DiskProcess] = {}
        self._waited = 0
        CLOCK.now, CLOCK.pause = self.now, self.pause

    def wait(self) -> None:
        """See Machine.wait."""
        self._waited += 1
        assert self._waited < _PATIENCE, "nobody lets go of what is waited for"
        self.pause()

    def process(self, name: str, owner: chance.Process | None = None) -> DiskProcess:
        """What the process of that name sees, which is begun when none is alive. It lives as long as `owner`, by
        default whoever calls; nobody's has a life of its own. Its log is written by the loop that runs, if any."""
        found = self._processes.get(name)
        if found is None or not found.alive:
            found = self._processes[name] = DiskProcess(self, name, owner or chance.process() or chance.Process(name))
        return found

    def crash(self, name: str) -> None:
        """kill -9 of that process: its locks, mounts and open files are gone, its files stay as they are."""
        self._processes[name].calls.die()

    def power_loss(self, *, strict: bool = False) -> None:
        """All processes die, and what was not durable is gone: all of it (`strict`), or as chance has it."""
        for process in self._processes.values():
            process.calls.die()
        self.files.power_loss(None if strict else self.chance)

    def end(self) -> None:
        """Let go of all processes, for good: the next disk may have the same number, so that runs are alike."""
        for process in self._processes.values():
            process.calls.die()
            process.calls.forget()
        _numbers.discard(self.number)


def rot(disk: Disk, pick: int) -> set[str]:
    """Somebody changes, cuts short or removes a file of what the root keeps: the name of what it holds."""
    root = disk.files.top.entries.get(b"root", directory())
    kept = [root.entries.get(name, directory()) for name in (b"blobs", b"layers", b"snapshots")]
    kept[0] = kept[0].entries.get(b"sha256", directory())
    files = [(parent, name) for parent in kept for name, file in sorted(parent.entries.items()) if file.is_file]
    if not files:
        return set()
    parent, name = files[pick % len(files)]
    file = parent.entries[name]
    if pick % 3 == 2 or not file.data:
        disk.files.change((parent, name, None))
        disk.files.sync_directory(parent)
    else:
        middle = len(file.data) // 2
        file.data = file.data[:middle] + (bytes([file.data[middle] ^ 1]) + file.data[middle + 1 :] if pick % 3 else b"")
        file.mtime = disk.now()
        disk.files.sync_file(file)
    held = name.decode().removesuffix(SUFFIX)
    return {held if parent is kept[2] else f"sha256:{held}"}


@dataclass(frozen=True, slots=True)
class Stored:
    """What a root holds: blobs by digest, layers by diff ID, snapshots by id; sorted."""

    blobs: list[Digest]
    layers: list[Digest]
    snapshots: list[str]


class DiskProcess:
    """A process and what it opens in the root at `path`; those that take an `owner` as the real ones do."""

    def __init__(self, disk: Disk, name: str, owner: chance.Process) -> None:
        self.disk = disk
        self.name = name
        self.calls = Process(disk, name, owner)
        self.calls.log = lambda: self.log
        processes[self.calls.prefix] = self.calls
        self.path = DiskPath(self.calls.prefix) / "root"
        self.locks = FileLocks(self.path / "locks")
        self.partials = DirectoryPartials(self.path / "partial")
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._log = self._open_log()

    @property
    def alive(self) -> bool:
        """Did nobody kill it yet?"""
        return self.calls.alive

    @property
    def log(self) -> MemoryLog:
        """The log of the root, opened anew when it was closed."""
        if self._log.closed:
            self._log = self._open_log()
        return self._log

    def _open_log(self) -> MemoryLog:
        return MemoryLog(self.disk.log, self.calls, self.disk.chance, self._loop)

    def blobs(self, owner: str, lost: Callable[[str, str], None] | None = None) -> DirectoryBlobs:
        """The blobs of the root."""
        return DirectoryBlobs(self.path, owner=owner, lost=lost)

    def mounts(self, owner: str) -> SimulatedMounts:
        """What the process has mounted of images."""
        return SimulatedMounts(self.path / "tmp", owner)

    def layers(self, owner: str, mounts: SimulatedMounts | None = None) -> CheckedLayers:
        """The layers of the root, as images."""
        return ErofsLayers(self.path / "layers", self.path / "tmp", owner, mounts or self.mounts(owner))

    def snapshots(self, owner: str, mounts: SimulatedMounts | None = None) -> OverlaySnapshots:
        """The snapshots of the root; what is composed is kept as an image."""
        return OverlaySnapshots(
            self.path / "snapshots", self.path / "tmp", owner, mounts=mounts or self.mounts(owner),
            as_images=lambda: True,
        )  # fmt: skip

    def packer(self, owner: str, blobs: BlobStore) -> LayerPacker:
        """What turns snapshots into blobs."""
        return BlobPacker(self.snapshots(owner), blobs)

    @property
    def tars(self) -> LayerTars:
        """The layers of the root as the tars they came as."""
        return ImageTars(self.path / "layers")

    def damage(self, path: Path, offset: int = -1) -> None:
        """Change one byte of a file, as a disk may."""
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        with path.open("r+b", buffering=0) as file:
            file.write(bytes(data))

    def leftovers(self) -> list[str]:
        """What lies in the root that no finished thing is: names below `tmp`, `run` and `partial`, files of locks."""
        directories = ("tmp", "run", "partial", "locks")
        return sorted(f"{name}/{entry}" for name in directories for entry in self._names(name))

    def stored(self) -> Stored:
        """Names of what is here, whole or not."""
        blobs = [
            Digest(f"{algorithm}:{name}")
            for algorithm in self._names("blobs")
            for name in self._names(f"blobs/{algorithm}")
        ]
        layers = [Digest(f"sha256:{name.removesuffix(SUFFIX)}") for name in self._names("layers")]
        snapshots = [name.removesuffix(SUFFIX) for name in self._names("snapshots")]
        return Stored(sorted(blobs), sorted(layers), sorted(snapshots))

    def _names(self, directory: str) -> list[str]:
        path = self.path / directory
        return _OS.listdir(path) if path.is_dir() else []
