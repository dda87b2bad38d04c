"""A layer that lies here as an image is a tar again, and a blob: of the same diff ID, or of nothing."""

from __future__ import annotations

import gzip
import io
import random
from itertools import cycle
from pathlib import Path

import pytest
import zstandard

from storage.blobs import DirectoryBlobs
from storage.compression import KINDS
from storage.digest import Digest, sha256
from storage.errors import DiskError, VerificationError
from storage.interfaces.images import Compression
from storage.interfaces.packing import PackedBlob
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.erofs.tars import ImageTars
from storage.packing import BlobConverter
from tests.registry_fixture import OCI_LAYER, layer_tar
from tests.storage.tar.tars import DIR, END, HARD, LINK, Member, write

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
        return BlobConverter(DirectoryBlobs(tmp_path, owner="b1")).convert(tar, None, DIFF_ID, Compression())


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


def dialects() -> dict[str, bytes]:
    """Layers as tools write them, and what may stand behind the end of one."""
    noise = random.Random(1).randbytes(100_000)
    some = [
        Member(b"d", DIR), Member(b"d/a", data=noise), Member(b"d/hard", HARD, link=b"d/a"), Member(b"empty"),
        Member(b"n" * 150, data=b"x"), Member(b"link", LINK, link=b"l" * 120),
    ]  # fmt: skip
    sparse = Member(b"sparse", data=noise[:1536], segments=((4096, 1024), (1 << 20, 512)), size=3 << 20)
    pax = write([*some, Member(b"tagged", data=b"1", xattrs={b"user.k": b"v\0"})])
    gnu = write([*some, sparse], "gnu")
    return {
        "nothing": END, "pax": pax, "gnu": gnu, "sparse 0.0": write([sparse, *some], sparse="0.0"),
        "sparse 0.1": write([sparse, *some], sparse="0.1"), "sparse 1.0": write([sparse, *some], sparse="1.0"),
        "no end": pax.removesuffix(END), "a whole record": pax + bytes(-len(pax) % 10_240),
        "more behind": gnu + noise[:5000], "named like a gzip": write([Member(b"\x1f\x8b\x08", data=b"1")], "gnu"),
        "named like a zstd": write([Member(b"\x28\xb5\x2f\xfd", data=b"1")], "gnu"),
    }  # fmt: skip


class InPieces(io.BytesIO):
    """A file that gives what it likes, as a connection does."""

    sizes = cycle((1, 700, 65_536, 3, 1 << 20))

    def read(self, size: int | None = -1, /) -> bytes:
        most = next(self.sizes)
        return super().read(most if size is None or size < 0 else min(size, most))


@pytest.mark.parametrize("tar", dialects().values(), ids=dialects().keys())
def test_every_way_that_a_layer_comes_by_gives_the_same_blob(tmp_path: Path, tar: bytes) -> None:
    """From the image that it lies here as, from a blob, and from what comes of one, however that is compressed."""
    layers = ErofsLayers(tmp_path / "layers", tmp_path / "tmp", "b1", ErofsMounts(tmp_path / "tmp", "b1"))
    layers.unpack(diff_id := sha256(tar), OCI_LAYER, io.BytesIO(gzip.compress(tar)))
    converter, half = BlobConverter(DirectoryBlobs(tmp_path, owner="b1")), len(tar) // 2
    came = [
        io.BytesIO(gzip.compress(tar)), InPieces(gzip.compress(tar, 1)), InPieces(zstandard.compress(tar)),
        InPieces(gzip.compress(tar[:half]) + gzip.compress(tar[half:])),
    ]  # fmt: skip
    for kind in KINDS:
        with ImageTars(tmp_path / "layers").open(diff_id) as image:
            made = converter.convert(image, None, diff_id, Compression(kind))  # type: ignore[arg-type]
        for source in came:
            source.seek(0)
            assert converter.convert(source, OCI_LAYER, diff_id, Compression(kind)) == made  # type: ignore[arg-type]
