"""Layers that come as files: what is learned of them while they are read, and that nothing else stays."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
import zstandard

from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.errors import DiskError, VerificationError
from storage.layers.layerfile import BlobIntake
from tests.registry_fixture import layer_tar

LIMIT = 1 << 30
TAR = layer_tar({"a/b": b"hello" * 1000})


def tar_of(*times: float) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, time in enumerate(times):
            info = tarfile.TarInfo(f"f{number}")
            info.mtime = time
            tar.addfile(info)
    return out.getvalue()


class Pieces(io.BytesIO):
    """A pipe that gives so much at first, however much is asked for."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._size if self.tell() < 8 else size)


@pytest.fixture
def blobs(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "root", owner="b1")


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "root/tmp").glob("*")]


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (TAR, ""), (gzip.compress(TAR), "+gzip"), (zstandard.compress(TAR), "+zstd"),
        (b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(TAR), "+zstd"),  # a skippable frame comes first
        (gzip.compress(TAR[:700]) + gzip.compress(TAR[700:]) + bytes(512), "+gzip"),  # members, and padding
    ],
    ids=["plain", "gzip", "zstd", "zstd with a skippable frame", "gzip in members"],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1 << 20, 1])
def test_a_layer_is_stored_as_it_came(
    blobs: DirectoryBlobs, tmp_path: Path, data: bytes, suffix: str, piece: int
) -> None:
    staged = BlobIntake(blobs, LIMIT).read(Pieces(data, piece), 2_000_000_000)
    assert blobs.size(sha256(data)) is None  # nobody sees it yet
    stored = staged.commit()
    staged.abort()
    assert blobs.get(stored.blob.digest) == data
    assert stored.blob.media_type == f"application/vnd.oci.image.layer.v1.tar{suffix}"
    assert (stored.blob.digest, stored.blob.size, stored.diff_id) == (sha256(data), len(data), sha256(TAR))
    assert stored.newest == 1_700_000_000
    assert left(tmp_path) == []


def test_the_newest_time_is_none_of_the_future(blobs: DirectoryBlobs) -> None:
    intake = BlobIntake(blobs, LIMIT)
    for times, newest in {(100, 300, 200): 300, (100, 5000): 100, (-5,): 0, (): 0, (99.75,): 99}.items():
        assert intake.read(io.BytesIO(tar_of(*times)), 1000).commit().newest == newest


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar" * 200, TAR[:-10_000], gzip.compress(TAR)[:-9], zstandard.compress(TAR)[:-1], b"\x1f\x8b\x08"],
)
def test_what_is_no_layer_leaves_nothing(blobs: DirectoryBlobs, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(VerificationError):
        BlobIntake(blobs, LIMIT).read(io.BytesIO(data), 0)
    assert blobs.size(sha256(data)) is None
    assert left(tmp_path) == []


def test_a_limit_is_one_of_uncompressed_bytes(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="expands to more than 9000 bytes"):
        BlobIntake(blobs, 9000).read(io.BytesIO(gzip.compress(TAR)), 0)
    assert left(tmp_path) == []
    BlobIntake(blobs, len(TAR)).read(io.BytesIO(gzip.compress(TAR)), 0).abort()
    assert left(tmp_path) == []


def test_a_file_that_breaks_off_is_a_fault_of_the_disk(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(DiskError, match="Input/output error"):
        BlobIntake(blobs, LIMIT).read(Broken(), 0)
    assert left(tmp_path) == []
