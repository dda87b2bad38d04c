"""A layer that lies here as an image is a tar again, and a blob: of the same diff ID, or of nothing."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.errors import DiskError, VerificationError
from storage.interfaces.images import Compression
from storage.interfaces.packing import PackedBlob
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.erofs.tars import ImageTars
from storage.packing import BlobConverter
from tests.registry_fixture import OCI_LAYER, layer_tar

TAR = layer_tar({"etc/": b"", "etc/file": b"content" * 1000})
DIFF_ID = sha256(TAR)


@pytest.fixture
def tars(tmp_path: Path) -> ImageTars:
    layers = ErofsLayers(tmp_path / "layers", tmp_path / "tmp", "b1", ErofsMounts(tmp_path / "tmp", "b1"))
    layers.unpack(DIFF_ID, OCI_LAYER, io.BytesIO(gzip.compress(TAR)))
    return ImageTars(tmp_path / "layers")


def blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def packed(tars: ImageTars, tmp_path: Path) -> PackedBlob | None:
    with tars.open(DIFF_ID) as tar:
        return BlobConverter(DirectoryBlobs(tmp_path, owner="b1")).convert(tar, "", DIFF_ID, Compression())


def test_the_blob_is_the_tar_that_the_layer_came_as(tars: ImageTars, tmp_path: Path) -> None:
    assert tars.has(DIFF_ID)
    made = packed(tars, tmp_path)
    assert made is not None
    assert made.diff_id == DIFF_ID
    (blob,) = [path for path in blobs(tmp_path) if path.parent.name == "sha256"]
    data = blob.read_bytes()
    assert (sha256(data), len(data)) == (made.blob.digest, made.blob.size)
    assert gzip.decompress(data) == TAR
    assert packed(tars, tmp_path) == made


def test_I3_a_damaged_image_makes_no_blob(tars: ImageTars, tmp_path: Path) -> None:
    (image,) = tars.layers.iterdir()
    data = image.read_bytes()
    image.write_bytes(data.replace(b"contentcontent", b"contentdamaged", 1))
    with pytest.raises(VerificationError, match="content has the digest"):
        packed(tars, tmp_path)
    image.write_bytes(data[: len(data) // 4])
    with pytest.raises(DiskError):
        packed(tars, tmp_path)
    assert blobs(tmp_path) == []


def test_another_layer_is_not_there(tars: ImageTars) -> None:
    assert not tars.has(Digest("sha256:" + "0" * 64))
