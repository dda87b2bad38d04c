"""Snapshots to blobs: the blob holds the tar that the diff ID names, and failing leaves nothing running or lying."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.compression import BLOCK, compressor, version
from storage.digest import Digest, sha256
from storage.errors import DiskError
from storage.interfaces.blobs import BlobWriter
from storage.interfaces.images import Compression
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below
from storage.packing import BlobPacker
from tests.storage.layers.trees import GZIP, members

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[OverlaySnapshots]:
    (tmp_path / "lower").mkdir()
    yield OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    detach_below(tmp_path)


def step(snapshots: OverlaySnapshots, lower: Path, files: dict[str, int]) -> None:
    """A snapshot `s` with files of so many bytes."""
    snapshot = snapshots.begin("s", [lower])
    for name, size in files.items():
        (snapshot.root / name).write_bytes(os.urandom(size // 2) + bytes(size - size // 2))
    snapshot.commit()


SIZES = {
    "nothing": {},
    "an empty file": {"a": 0},
    "less than a block": {"a": 1000, "b": 513},
    "exactly one block": {"a": BLOCK - 3 * 512},  # with its header and the end of the archive
    "many blocks": {"a": 3 * BLOCK + 1, "b": 10, "c": 5 * BLOCK, "d": 700_000},
}


@pytest.mark.parametrize("files", SIZES.values(), ids=SIZES.keys())
def test_the_blob_holds_the_tar_that_the_diff_id_names(
    tmp_path: Path, snapshots: OverlaySnapshots, files: dict[str, int]
) -> None:
    step(snapshots, tmp_path / "lower", files)
    blobs = DirectoryBlobs(tmp_path / "blobs", owner="b1")
    packed = BlobPacker(snapshots, blobs).pack("s", None, Compression())
    blob = blobs.get(packed.blob.digest)
    tar = gzip.decompress(blob)
    assert sha256(tar) == packed.diff_id
    assert members(tar) == list(files)
    assert (packed.blob.size, packed.blob.media_type, packed.compressor) == (len(blob), GZIP, version("gzip"))
    one = compressor("gzip", 1)
    assert one.compress(tar) + one.flush() == blob


class FailingBlobs(DirectoryBlobs):
    """A disk that refuses once `good` writes went well."""

    def __init__(self, root: Path, good: int, error: BaseException) -> None:
        super().__init__(root, owner="b1")
        self._good = good
        self._error = error

    def writer(self) -> BlobWriter:  # type: ignore[override]
        return FailingWriter(super().writer(), self._good, self._error)


class FailingWriter:
    def __init__(self, writer: BlobWriter, good: int, error: BaseException) -> None:
        self._writer = writer
        self._good = good
        self._error = error

    def write(self, data: bytes) -> None:
        if not self._good:
            raise self._error
        self._good -= 1
        self._writer.write(data)

    def commit(self, expected: Digest | None = None) -> tuple[Digest, int]:
        return self._writer.commit(expected)

    def abort(self) -> None:
        self._writer.abort()


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize("error", [DiskError("writing a blob: no space left on device"), KeyboardInterrupt()])
def test_when_a_write_fails_or_is_interrupted_nothing_runs_on_and_nothing_stays(
    tmp_path: Path, snapshots: OverlaySnapshots, good: int, error: BaseException
) -> None:
    step(snapshots, tmp_path / "lower", dict.fromkeys("abcdefgh", 2 * BLOCK))
    blobs = FailingBlobs(tmp_path / "blobs", good, error)
    before = set(threading.enumerate())
    with pytest.raises(type(error)) as raised:
        BlobPacker(snapshots, blobs).pack("s", None, Compression())
    assert raised.value is error
    assert set(threading.enumerate()) <= before
    assert not list((tmp_path / "blobs" / "tmp").iterdir())
    assert not list((tmp_path / "blobs" / "blobs" / "sha256").iterdir())


def test_a_snapshot_that_cannot_be_read_is_an_error_and_leaves_nothing(
    tmp_path: Path, snapshots: OverlaySnapshots
) -> None:
    before = set(threading.enumerate())
    with pytest.raises(DiskError, match="packing snapshot gone"):
        BlobPacker(snapshots, DirectoryBlobs(tmp_path / "blobs", owner="b1")).pack("gone", None, Compression())
    assert set(threading.enumerate()) <= before
    assert not list((tmp_path / "blobs" / "tmp").iterdir())
