"""A layer that lies here as an image is a blob again: of the same diff ID, or of nothing."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.erofs.layers import ErofsLayers
from storage.erofs.mount import ErofsMounts
from storage.erofs.tars import TarPacker
from storage.errors import DiskError, VerificationError
from tests.registry_fixture import OCI_LAYER, layer_tar

TAR = layer_tar({"etc/": b"", "etc/file": b"content" * 1000})
DIFF_ID = sha256(TAR)


@pytest.fixture
def packer(tmp_path: Path) -> TarPacker:
    layers = ErofsLayers(tmp_path / "layers", tmp_path / "tmp", "b1", ErofsMounts(tmp_path / "tmp", "b1"))
    layers.unpack(DIFF_ID, OCI_LAYER, io.BytesIO(gzip.compress(TAR)))
    return TarPacker(tmp_path / "layers", DirectoryBlobs(tmp_path, owner="b1"))


def blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_the_blob_is_the_tar_that_the_layer_came_as(packer: TarPacker) -> None:
    assert packer.has(DIFF_ID)
    packed = packer.pack(DIFF_ID)
    assert packed.diff_id == DIFF_ID
    with packer.blobs.open(packed.blob.digest) as file:
        data = file.read()
    assert (sha256(data), len(data)) == (packed.blob.digest, packed.blob.size)
    assert gzip.decompress(data) == TAR
    assert packer.pack(DIFF_ID) == packed


def test_I3_a_damaged_image_makes_no_blob(packer: TarPacker, tmp_path: Path) -> None:
    (image,) = packer.layers.iterdir()
    data = image.read_bytes()
    image.write_bytes(data.replace(b"contentcontent", b"contentdamaged", 1))
    with pytest.raises(VerificationError, match="not what it was"):
        packer.pack(DIFF_ID)
    image.write_bytes(data[: len(data) // 4])
    with pytest.raises(DiskError):
        packer.pack(DIFF_ID)
    assert blobs(tmp_path) == []


def test_another_layer_is_not_there(packer: TarPacker) -> None:
    assert not packer.has(Digest("sha256:" + "0" * 64))
