"""The simulated disk: a crash keeps what the kernel was given, a power loss what was made durable, and nothing else."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from storage.digest import sha256
from storage.durable import flush_file_system, fsync_directory
from storage.errors import DiskError
from storage.interfaces.images import Descriptor
from storage.interfaces.layers import Look
from storage.interfaces.log import NewEvent
from tests.simulation.chance import Chance, Crashed, Faults
from tests.simulation.descriptors import WRITTEN_OFF
from tests.simulation.disk import Disk, DiskProcess, Stored
from tests.simulation.mounting import content, merged_content
from tests.simulation.paths import simulated_files
from tests.simulation.recovery import open_root
from tests.simulation.syscalls import Os
from tests.storage.layers.trees import GZIP, diff_id, file, make_tar
from tools import roots

TAR = make_tar(file("etc/name", b"base"), file("data", b"d" * 2000))
LOOK = Look(0o644, 0, 0, 5)
CALLS = Os()


@pytest.fixture(autouse=True, scope="module")
def _files() -> Iterator[None]:
    with simulated_files():
        yield


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk(Chance(1), Faults())
    yield disk
    disk.end()


def unpack(process: DiskProcess, owner: str = "b1") -> None:
    process.layers(owner).unpack(diff_id(TAR), GZIP, io.BytesIO(gzip.compress(TAR)))


def compose(process: DiskProcess, name: str, files: dict[bytes, bytes], owner: str = "b1") -> None:
    writer = process.snapshots(owner).compose(name)
    for path, data in files.items():
        writer.file(path, LOOK, len(data), [data])
    writer.commit()


def everything(process: DiskProcess, name: str = "s") -> None:
    """What a build leaves for good: its snapshots are called by `name`, 1 and 2."""
    with open_root(process):
        pass
    process.blobs("b1").put(b"a blob")
    unpack(process)
    compose(process, f"{name}1", {b"new": b"n"})
    mounts = process.mounts("b1")
    lower = process.layers("b1", mounts).lower(diff_id(TAR))
    step = process.snapshots("b1", mounts).begin(f"{name}2", [lower])
    (step.root / "changed").write_bytes(b"c")
    step.commit()
    process.log.append(NewEvent("cache", "T", {"done": True}))


EVERYTHING = Stored([sha256(b"a blob")], [diff_id(TAR)], ["s1", "s2"])


def is_whole(process: DiskProcess) -> None:
    assert process.stored() == EVERYTHING
    assert process.blobs("b2").sound(sha256(b"a blob"))
    layers, snapshots = process.layers("b2"), process.snapshots("b2")
    assert layers.check(diff_id(TAR)) == snapshots.check("s1") == snapshots.check("s2") == ""
    assert content(layers.lower(diff_id(TAR))) == {"data": b"d" * 2000, "etc/name": b"base"}
    assert merged_content([snapshots.lower(name) for name in ("s1", "s2")]) == {"changed": b"c", "new": b"n"}
    assert [event.data for event in process.log.read()] == [{"done": True}]


# ---------------------------------------------------------------- crash


def test_a_crash_keeps_what_was_done(disk: Disk) -> None:
    everything(disk.process("a"))
    disk.crash("a")
    is_whole(disk.process("b"))


def test_a_crash_leaves_the_unfinished_and_recovery_removes_it(disk: Disk) -> None:
    process = disk.process("a")
    with open_root(process):
        pass
    writer = process.blobs("b1").writer()
    writer.write(b"half")
    process.layers("b1", process.mounts("b1"))
    lock = process.locks.try_acquire("build-b1")
    assert lock is not None
    disk.crash("a")
    for _ in range(2):  # a dead process reaches nothing any more
        with pytest.raises(Crashed):
            writer.write(b"more")
    after = disk.process("a")
    assert [name.partition("-")[0] for name in after.leftovers()] == ["locks/build", "tmp/b1"]
    assert not after.locks.held("build-b1")
    with open_root(after) as root:
        roots.recover(root, "b2")
    assert [name for name in after.leftovers() if name.startswith("tmp")] == []


def test_locks_hold_between_processes_and_die_with_theirs(disk: Disk) -> None:
    one, other = disk.process("a"), disk.process("b")
    lock = one.locks.try_acquire("layer-x")
    assert lock is not None
    assert other.locks.try_acquire("layer-x") is None
    disk.crash("a")
    again = other.locks.try_acquire("layer-x")
    assert again is not None
    again.release()


def test_a_crash_keeps_what_came_of_a_pull(disk: Disk) -> None:
    with open_root(disk.process("a")):
        pass
    blob = Descriptor(GZIP, sha256(b"0123456789"), 10)
    partial = disk.process("a").partials.open(blob)
    partial.write(0, b"01234")
    disk.crash("a")
    partial = disk.process("a").partials.open(blob)
    assert partial.gaps() == [(5, 10)]
    assert partial.read(0, 10) == b"01234"
    partial.close()


def test_mounts_of_a_process_are_its_own(disk: Disk) -> None:
    process = disk.process("a")
    unpack(process)
    lower = process.layers("b1").lower(diff_id(TAR))
    seen_by_another = disk.process("b").path / lower.relative_to(process.path)
    assert content(lower) != {}
    assert content(seen_by_another) == {}  # the mount point
    disk.crash("a")
    assert disk.process("b").calls.mounts == {}


# ---------------------------------------------------------------- power loss


def test_I6_a_power_loss_keeps_what_was_told_to_be_done(disk: Disk) -> None:
    everything(disk.process("a"))
    disk.power_loss(strict=True)
    is_whole(disk.process("a"))


@pytest.mark.parametrize("action", ["blob", "layer", "snapshot"])
def test_I6_the_first_thing_in_a_new_root_survives_too(disk: Disk, action: str) -> None:
    """The directories that it lies in are as new."""
    process = disk.process("a")
    with open_root(process):
        ACTIONS[action](process)
        there = process.stored()
    disk.power_loss(strict=True)
    assert disk.process("a").stored() == there
    assert there != Stored([], [], [])


def test_a_new_root_can_be_used_after_a_power_loss() -> None:
    """Its file `format` may be without its bytes then."""
    found = set()
    for seed in range(30):
        faults = Faults({10: 0})  # that fsync fails
        disk = Disk(Chance(seed), faults)
        with suppress(DiskError), open_root(disk.process("a")):
            pass
        disk.power_loss()
        process = disk.process("b")
        file = process.path / "format"
        found.add(file.read_bytes() if file.exists() else None)
        with open_root(process):
            assert file.read_bytes() == b"1\n"
        disk.end()
    assert {None, b"", b"\0\0"} & found


@pytest.mark.parametrize("seed", range(20))
def test_I6_whatever_else_a_power_loss_keeps_is_no_harm(seed: int) -> None:
    disk = Disk(Chance(seed), Faults())
    process = disk.process("a")
    everything(process)
    writer = process.blobs("b1").writer()
    writer.write(b"not committed")
    disk.power_loss()
    is_whole(disk.process("b"))
    disk.end()


def test_a_power_loss_takes_what_was_not_synchronised(disk: Disk) -> None:
    process = disk.process("a")
    directory = process.path / "d"
    directory.mkdir(parents=True)
    (directory / "file").write_bytes(b"bytes")
    disk.power_loss(strict=True)
    assert not (disk.process("a").path / "d").exists()


def test_a_name_without_its_bytes_is_what_a_missing_fsync_leaves() -> None:
    """The disk finds a store that renames before it makes the file durable."""
    found = set()
    for seed in range(40):
        disk = Disk(Chance(seed), Faults())
        process = disk.process("a")
        process.path.mkdir()
        disk.files.sync()
        (process.path / "new").write_bytes(b"bytes")
        (process.path / "new").rename(process.path / "final")
        disk.power_loss()
        final = disk.process("a").path / "final"
        found.add(final.read_bytes() if final.exists() else None)
        disk.end()
    assert {None, b"", b"bytes"} <= found


# ---------------------------------------------------------------- faults


def points(action: str) -> list[str]:
    """Names of the points that one action passes."""
    faults = _Recording()
    disk = Disk(Chance(1), faults)
    process = disk.process("a")
    with open_root(process):
        faults.names.clear()
    ACTIONS[action](process)
    disk.end()
    return faults.names


class _Recording(Faults):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def at(self, point: str, *kinds: str) -> str:
        self.names.append(point)
        return super().at(point, *kinds)


ACTIONS: dict[str, Callable[[DiskProcess], object]] = {
    "blob": lambda process: process.blobs("b1").put(b"a blob"),
    "layer": unpack,
    "snapshot": lambda process: compose(process, "s1", {b"new": b"n"}),
    "all": everything,
}


def test_every_step_of_a_write_is_a_point() -> None:
    assert [name for name in points("blob") if name.endswith("blobs")][-2:] == ["rename blobs", "fsync blobs"]
    assert "write tmp" in points("layer")


@pytest.mark.parametrize("kind", ["crash", "first"])
@pytest.mark.parametrize("action", ["blob", "layer", "snapshot", "all"])
def test_I12_wherever_it_strikes_the_next_process_can_do_it_all(action: str, kind: str) -> None:
    """Killed at every point, or its first kind of error raised there; then the power goes."""
    total = len(points(action))
    for number in range(1, total + 2, 3 if action == "all" else 1):
        faults = Faults()
        disk = Disk(Chance(number), faults)
        process = disk.process("a")
        with open_root(process):
            pass
        faults.planned = {faults.points + number: -1 if kind == "crash" else 0}
        with suppress(Crashed, DiskError, OSError):
            ACTIONS[action](process)
        faults.planned = {}
        assert len(faults.struck) == (number <= total)
        if number % 2:
            disk.power_loss()
        elif process.alive:
            disk.crash("a")
        disk.files.errors.told = True  # else whoever flushes next is told, who has lost nothing
        after = disk.process("b")
        for digest in after.stored().blobs:
            assert after.blobs("b2").sound(digest)
        for layer in after.stored().layers:
            assert after.layers("b2").check(layer) == ""
        for snapshot in after.stored().snapshots:
            assert after.snapshots("b2").check(snapshot) == ""
        everything_again(after)
        disk.end()


def everything_again(process: DiskProcess) -> None:
    with open_root(process) as root:
        roots.recover(root, "b2")
    assert [name for name in process.leftovers() if not name.startswith("locks")] == []
    everything(process, "again")


# ---------------------------------------------------------------- what cannot be written back


def new_file(process: DiskProcess, name: str = "f") -> int:
    return CALLS.open(process.path / name, os.O_CREAT | os.O_RDWR)


def flush(process: DiskProcess, path: str = ".") -> Callable[[], None]:
    """What flushes the file system from a descriptor that is opened now."""
    fd = CALLS.open(process.path / path, os.O_RDONLY)
    return lambda: flush_file_system(fd)


def written_off(process: DiskProcess, fd: int) -> None:
    """Write what the disk takes later, or so it seems."""
    faults = process.disk.faults
    faults.planned = {faults.points + 1: 4}
    CALLS.write(fd, b"bytes")
    assert faults.struck[-1][2] == WRITTEN_OFF


def test_what_could_not_be_flushed_is_flushed_by_nobody(disk: Disk) -> None:
    process = disk.process("a")
    with open_root(process):
        pass
    fd = new_file(process)
    CALLS.write(fd, b"bytes")
    disk.faults.planned = {disk.faults.points + 1: 0}
    with pytest.raises(OSError, match="Input/output error"):
        CALLS.fsync(fd)
    CALLS.fsync(fd)  # the kernel counts it as written
    fsync_directory(process.path)
    assert (process.path / "f").read_bytes() == b"bytes"
    disk.power_loss(strict=True)
    assert (disk.process("b").path / "f").read_bytes() == b""


def test_an_error_of_writing_back_is_told_each_who_had_the_file_open(disk: Disk) -> None:
    process, other = disk.process("a"), disk.process("b")
    with open_root(process):
        pass
    fd = new_file(process)
    early = CALLS.open(other.path / "f", os.O_RDONLY)
    written_off(process, fd)
    late = CALLS.open(other.path / "f", os.O_RDONLY)  # nobody was told until now: who opens it then is, too
    for one in (fd, early, late):
        with pytest.raises(OSError, match="Input/output error"):
            CALLS.fsync(one)
        CALLS.fsync(one)
    CALLS.fsync(CALLS.open(other.path / "f", os.O_RDONLY))


def test_an_error_of_writing_back_is_told_each_who_flushes_the_file_system_once(disk: Disk) -> None:
    process, other = disk.process("a"), disk.process("b")
    with open_root(process):
        pass
    early = flush(other)
    written_off(process, new_file(process))
    with pytest.raises(OSError, match="Input/output error"):
        flush(process)()
    flush(process)()
    with pytest.raises(OSError, match="Input/output error"):
        early()
    early()
