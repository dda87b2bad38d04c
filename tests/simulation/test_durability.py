"""What was said to be done survives a power loss right behind it (I6), and what is half done is as good as not begun,
wherever a process was killed or the disk refused: for everything that storage/ writes, with the real code of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.archive import TarArchive
from storage.cachemounts import DirectoryCacheMounts
from storage.digest import Digest, sha256
from storage.durable import fsync_directory, make_directories
from storage.errors import DiskError
from storage.interfaces.layers import Look
from storage.layers.trees import SnapshotTrees
from storage.layout.source import layout_entries
from storage.layout.target import REF_NAME, try_enter
from storage.media_types import MANIFEST
from tests.simulation.chance import Chance, Crashed, Faults
from tests.simulation.disk import Disk, DiskProcess
from tests.simulation.mounting import content
from tests.simulation.paths import simulated_files
from tests.simulation.recovery import open_root
from tests.storage.layers.trees import TAR, diff_id, file, make_tar
from tools import roots

LAYER = make_tar(file("etc/name", b"base"), file("data", b"d" * 2000))
CACHE = sha256(b"cache")
LOOK = Look(0o644, 0, 0, 5)


@dataclass(frozen=True)
class Promise:
    """`do` it, as build `owner`; `kept` says whether it is there, and fails for half of it."""

    do: Callable[[DiskProcess, str], object]
    kept: Callable[[DiskProcess], bool]


def is_stored(process: DiskProcess) -> bool:
    if not process.stored().blobs:
        return False
    assert process.blobs("reader").get(sha256(b"a blob")) == b"a blob"
    return True


def lay_out(process: DiskProcess, owner: str) -> None:
    process.layers(owner).unpack(diff_id(LAYER), TAR, io.BytesIO(LAYER))


def is_laid_out(process: DiskProcess) -> bool:
    layers = process.layers("reader")
    if not layers.has(diff_id(LAYER)):
        return False
    assert layers.check(diff_id(LAYER)) == ""
    assert content(layers.lower(diff_id(LAYER))) == {"data": b"d" * 2000, "etc/name": b"base"}
    return True


def compose(process: DiskProcess, owner: str) -> None:
    writer = process.snapshots(owner).compose("composed")
    writer.file(b"new", LOOK, 3, [b"abc"])
    writer.commit()


def run(process: DiskProcess, owner: str) -> None:
    snapshot = process.snapshots(owner).begin("run", [])
    (snapshot.root / "new").write_bytes(b"abc")
    snapshot.commit()


def is_snapshot(name: str) -> Callable[[DiskProcess], bool]:
    def kept(process: DiskProcess) -> bool:
        snapshots = process.snapshots("reader")
        if not snapshots.has(name):
            return False
        assert snapshots.check(name) == ""
        assert content(snapshots.lower(name)) == {"new": b"abc"}
        return True

    return kept


def _furnish(tree: Path) -> None:
    (tree / "furniture").write_bytes(b"abc")


def furnish(process: DiskProcess, owner: str) -> None:
    mounts = DirectoryCacheMounts(process.path / "cache", process.path / "tmp", owner, process.locks)
    held = mounts.try_acquire(CACHE, "locked")
    assert held is not None
    held.fill(_furnish)
    held.release()


def is_furnished(process: DiskProcess) -> bool:
    mounts = DirectoryCacheMounts(process.path / "cache", process.path / "tmp", "reader", process.locks)
    held = mounts.try_acquire(CACHE, "locked")
    assert held is not None
    try:
        if not held.exists():
            return False
        assert content(held.path) == {"furniture": b"abc"}
        return True
    finally:
        held.release()


def fetch_tree(process: DiskProcess, owner: str) -> None:
    trees = SnapshotTrees(process.snapshots(owner))
    tree = trees.begin()
    (tree / "new").write_bytes(b"abc")
    trees.publish(tree, "source")


def output(process: DiskProcess) -> Path:
    """A directory of the user's."""
    path = process.path.parent / "out"
    make_directories(path)
    return path


def write_archive(process: DiskProcess, owner: str) -> None:
    archive = TarArchive(str(output(process) / "image.tar"))
    try:
        archive.add("manifest.json", b"[]")
        archive.commit()
    finally:
        archive.abort()


def is_archive(process: DiskProcess) -> bool:
    path = output(process) / "image.tar"
    if not path.exists():
        return False
    assert len(path.read_bytes()) == 2048
    return True


def write_layout(process: DiskProcess, owner: str) -> None:
    layout = output(process) / "layout"
    blobs, digest = type(process.blobs(owner))(layout, owner=owner), sha256(b"{}")
    if blobs.size(digest) is None:  # as exports do, which leave what is there as it is
        blobs.put(b"{}")
    entry = {"mediaType": MANIFEST, "digest": digest, "size": 2, "annotations": {REF_NAME: "v1"}}
    try_enter(layout, [entry])


def is_layout(process: DiskProcess) -> bool:
    layout = output(process) / "layout"
    if not (layout / "index.json").exists():
        return False
    entries = layout_entries(layout, str(layout))
    for entry in entries:
        assert type(process.blobs("reader"))(layout, owner="reader").get(Digest(entry.digest)) == b"{}"
    return bool(entries)


PROMISES = {
    "blob": Promise(lambda process, owner: process.blobs(owner).put(b"a blob"), is_stored),
    "layer": Promise(lay_out, is_laid_out),
    "composed": Promise(compose, is_snapshot("composed")),
    "run": Promise(run, is_snapshot("run")),
    "cache mount": Promise(furnish, is_furnished),
    "fetched tree": Promise(fetch_tree, is_snapshot("source")),
    "archive": Promise(write_archive, is_archive),
    "layout": Promise(write_layout, is_layout),
}


@pytest.fixture(autouse=True, scope="module")
def _files() -> Iterator[None]:
    with simulated_files():
        yield


def opened(disk: Disk, name: str) -> DiskProcess:
    process = disk.process(name)
    with open_root(process):
        pass
    return process


@pytest.mark.parametrize("name", PROMISES)
def test_I6_what_was_done_survives_a_power_loss_right_behind_it(name: str) -> None:
    disk = Disk(Chance(1), Faults())
    process = opened(disk, "a")
    PROMISES[name].do(process, "b1")
    disk.power_loss(strict=True)
    assert PROMISES[name].kept(disk.process("b"))
    disk.end()


@pytest.mark.parametrize("name", PROMISES)
def test_I12_wherever_it_breaks_off_it_is_whole_or_not_there_and_can_be_done_again(name: str) -> None:
    """At every point, with every kind of fault; every second time, the power goes, too."""
    promise, kinds = PROMISES[name], 6
    struck = True
    number = 0
    while struck:
        number += 1
        for kind in range(kinds):
            faults = Faults()
            disk = Disk(Chance(number * kinds + kind), faults)
            process = opened(disk, "a")
            faults.planned = {faults.points + number: kind}
            done = False
            with suppress(Crashed, DiskError, OSError):
                promise.do(process, "b1")
                done = True
            faults.planned, struck = {}, bool(faults.struck)
            if (number + kind) % 2:
                disk.power_loss()
            elif process.alive:
                disk.crash("a")
            after = disk.process("b")
            assert promise.kept(after) or not done
            with open_root(after) as root:
                roots.recover(root, "b2")
            assert [name for name in after.leftovers() if name.startswith(("tmp", "run"))] == []
            if not promise.kept(after):
                promise.do(after, "b2")
            assert promise.kept(after)
            disk.end()
    assert number > 5


@pytest.mark.parametrize("name", ["blob", "cache mount", "fetched tree", "archive", "layout"])
def test_I6_what_one_that_died_began_is_durable_once_another_has_done_it(name: str) -> None:
    """Wherever the first one died: what it left is there to be seen, and need not be durable."""
    promise, number, struck = PROMISES[name], 0, True
    while struck:
        number += 1
        faults = Faults()
        disk = Disk(Chance(number), faults)
        process = opened(disk, "a")
        faults.planned = {faults.points + number: 0}
        with suppress(Crashed, DiskError, OSError):
            promise.do(process, "b1")
        faults.planned, struck = {}, bool(faults.struck)
        if process.alive:
            disk.crash("a")
        promise.do(opened(disk, "b"), "b2")
        disk.power_loss(strict=True)
        assert promise.kept(disk.process("c"))
        disk.end()
    assert number > 5


def test_a_directory_is_not_believed_to_be_durable_because_it_is_there() -> None:
    """The disk tells a name that was synchronised from one that can be seen."""
    disk = Disk(Chance(1), Faults())
    process = opened(disk, "a")
    (process.path / "seen").mkdir()
    (process.path / "kept").mkdir()
    disk.power_loss(strict=True)
    after = disk.process("b")
    assert not (after.path / "seen").exists()
    (after.path / "seen").mkdir()
    fsync_directory(after.path)
    disk.power_loss(strict=True)
    assert (disk.process("c").path / "seen").exists()
    disk.end()
