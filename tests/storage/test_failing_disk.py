"""What a disk that fails says: a DiskError with what was being done, whichever call met it, and nothing left behind."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.archive import DestFile
from storage.blobs import DirectoryBlobs
from storage.cachemounts import DirectoryCacheMounts, MemoryPlaces
from storage.digest import sha256
from storage.errors import DiskError
from storage.interfaces.images import Descriptor
from storage.layers.directory import DirectoryLayers
from storage.layers.snapshots import OverlaySnapshots
from storage.layers.trees import SnapshotTrees
from storage.locks import FileLocks
from storage.log import recorder
from storage.log.eventlog import SqliteEventLog
from storage.partial import DirectoryPartials
from storage.sweep import sweep
from storage.usage import DiskItems, measure, mentioned
from tests.storage.layers.trees import TAR, diff_id, file, make_tar

TAR_BYTES = make_tar(file("a", b"content"))
DIGEST = sha256(b"content")
BLOB = Descriptor("m", DIGEST, 7)


def snapshots(root: Path) -> OverlaySnapshots:
    return OverlaySnapshots(root / "snapshots", root / "tmp", "b1")


def a_view(root: Path) -> None:
    with snapshots(root).view([root]):
        pass


def a_secret(root: Path) -> None:
    with MemoryPlaces(root / "tmp", "b1").place():
        pass


def a_cache(root: Path) -> None:
    fine = root.with_name("fine")
    caches = DirectoryCacheMounts(root / "cache", fine / "tmp", "b1", FileLocks(fine / "locks"))
    held = caches.try_acquire(DIGEST, "locked")
    assert held is not None
    held.fill(lambda _: None)


# What is asked of a root in whose place something else stands, here a file: any path below it fails with ENOTDIR.
CALLS: dict[str, Callable[[Path], object]] = {
    "looking for a blob": lambda root: DirectoryBlobs(root, owner="b1").size(DIGEST),
    "opening a blob": lambda root: DirectoryBlobs(root, owner="b1").open(DIGEST),
    "reading a blob": lambda root: DirectoryBlobs(root, owner="b1").get(DIGEST),
    "starting a blob": lambda root: DirectoryBlobs(root, owner="b1").writer(),
    "writing the output": lambda root: DestFile(str(root / "out.tar")),
    "making a cache mount": a_cache,
    "making a place for secrets": a_secret,
    "unpacking layer": lambda root: DirectoryLayers(root / "layers", root / "tmp", "b1").unpack(
        diff_id(TAR_BYTES), TAR, io.BytesIO(TAR_BYTES)
    ),
    "beginning a snapshot": lambda root: snapshots(root).begin("s", []),
    "beginning a tree": lambda root: SnapshotTrees(snapshots(root)).begin(),
    "removing a damaged snapshot": lambda root: snapshots(root).discard("s"),
    "taking a lock": lambda root: FileLocks(root / "locks").try_acquire("x"),
    "testing a lock": lambda root: FileLocks(root / "locks").held("x"),
    "looking for leftovers": lambda root: sweep(root / "tmp", lambda _: False, "b2"),
    "opening an interrupted pull": lambda root: DirectoryPartials(root / "partial").open(BLOB).write(0, b"x"),
    "measuring the root": lambda root: measure(root / "below"),
    "reading a build's record": lambda root: mentioned(root, [str(DIGEST)], {str(DIGEST)}),
    "removing blob/": lambda root: DiskItems(root, "b1").take(f"blob/{DIGEST}"),
    "creating the event log": lambda root: SqliteEventLog(root / "log.db"),
}


@pytest.mark.parametrize("doing", CALLS)
def test_an_error_of_the_disk_says_what_was_being_done(tmp_path: Path, doing: str) -> None:
    root = tmp_path / "root"
    root.write_bytes(b"no directory")
    with pytest.raises(DiskError, match=doing):
        CALLS[doing](root)
    assert root.read_bytes() == b"no directory"


def test_a_log_is_not_made_where_its_directory_went(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="creating the event log"):
        recorder.create(tmp_path / "none/log.db")


def test_an_output_that_cannot_be_written_is_an_error_once_and_closes(tmp_path: Path) -> None:
    out = DestFile("/dev/full")
    with pytest.raises(DiskError, match="/dev/full: writing the output"):
        for _ in range(100):
            out.write(bytes(1 << 16))
    out.abort()
    out = DestFile(str(tmp_path / "out.tar"))
    out.write(b"x")
    shutil.rmtree(tmp_path)
    with pytest.raises(DiskError, match=r"out.tar: writing the output"):
        out.commit()
    out.abort()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_is_small_and_cannot_be_written_is_an_error_before_anybody_is_told() -> None:
    out = DestFile("/dev/full")
    out.write(b"x")
    with pytest.raises(DiskError, match="/dev/full: writing the output"):
        out.commit()
    out.abort()
