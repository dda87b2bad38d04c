"""What an image has beside its tar is in proportion to that, whatever holes and attributes its files have."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.digest import sha256
from storage.errors import VerificationError
from storage.layers.erofs.encode import encode
from storage.layers.erofs.image import ImageWriter
from storage.layers.erofs.tree import LayerTree
from storage.tar.reader import DIRECTORY, REGULAR, Entry, TarReader
from storage.tar.rules import Budget
from tests.storage.layers.test_directory import opened
from tests.storage.layers.trees import TAR, file, info, make_tar
from tests.storage.tar.tars import Member, write

GIB = 1 << 30
BLOCKS = 1 << 32  # of an image, about


def entry(name: bytes, kind: bytes = REGULAR, xattrs: dict[bytes, bytes] | None = None) -> Entry:
    return Entry(name, kind, mode=0o755, uid=0, gid=0, size=0, mtime=0, xattrs=xattrs or {})


def image(place: Path, tar: bytes, budget: int) -> int:
    """The size of the image of `tar` in bytes."""
    with ImageWriter(place) as out:
        out.tree.budget = Budget(budget)
        out.write(tar)
        for member in TarReader(io.BytesIO(tar)):
            out.tree.add(member)
        out.finish(sha256(tar))
    return place.stat().st_size


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_I3_unaligned_pieces_of_a_sparse_file_are_where_they_were_and_take_little_room(tmp_path: Path) -> None:
    size = 64 * GIB
    pieces = [(number * (size // 8) + 1, b"%d" % number * 1000) for number in range(8)]
    pieces.insert(1, (2001, b"in the chunk of the one before" * 33))
    segments = tuple((at, len(data)) for at, data in pieces)
    tar = write([Member(b"s", segments=segments, data=b"".join(data for _, data in pieces), size=size)])
    with opened("erofs", tmp_path) as store:
        store.unpack(sha256(tar), TAR, io.BytesIO(tar))
        with (store.lower(sha256(tar)) / "s").open("rb") as file:
            assert os.fstat(file.fileno()).st_size == size
            for at, data in pieces:
                file.seek(at - 1)
                assert file.read(len(data) + 2) == b"\0" + data + b"\0"
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.erofs")) < 16 << 20


def test_chunks_of_many_sparse_files_are_refused_before_they_fill_memory_or_the_disk(tmp_path: Path) -> None:
    aligned = [Member(b"%d" % number, segments=((0, 512),), data=bytes(512), size=1 << 20) for number in range(200)]
    with pytest.raises(VerificationError, match="holes in files than fit in memory"):
        image(tmp_path / "aligned", write(aligned), 300_000)
    assert image(tmp_path / "fitting", write(aligned[:30]), 300_000) < 1_000_000
    copied = [Member(b"%d" % number, segments=((1, 1),), data=b"x", size=GIB) for number in range(200)]
    with pytest.raises(VerificationError, match="holes in files than fit in memory"):
        image(tmp_path / "copied", write(copied), 10_000_000)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_an_image_of_more_blocks_than_have_numbers_is_refused(fd: int) -> None:
    with pytest.raises(VerificationError, match="larger than EROFS can hold"):
        encode(fd, LayerTree(), BLOCKS * 512, bytes(16))
    tree = LayerTree()
    for number in range(100):
        tree.add(entry(b"%d" % number, DIRECTORY))  # which takes a block of names
    with pytest.raises(VerificationError, match="larger than EROFS can hold"):
        encode(fd, tree, (BLOCKS - 16) * 512, bytes(16))
    assert os.fstat(fd).st_size == 0


def test_more_attributes_than_an_inode_holds_are_refused(fd: int) -> None:
    tree = LayerTree()
    tree.add(entry(b"f", xattrs={b"user.%d" % number: bytes(65_000) for number in range(4)}))
    assert encode(fd, tree, 4096, bytes(16)) > 4 * 65_000
    tree.add(entry(b"g", xattrs={b"user.%d" % number: bytes(65_000) for number in range(5)}))
    with pytest.raises(VerificationError, match="more than 256 KiB of attributes"):
        encode(fd, tree, 4096, bytes(16))


def test_an_index_of_small_chunks_is_made_only_where_it_takes_less_room_than_a_copy(tmp_path: Path) -> None:
    """What is aligned to a block needs an entry for each block of the file: 512 MiB of them for 64 GiB."""
    small = Member(b"s", segments=((512, 512),), data=bytes(512), size=64 * GIB)
    assert image(tmp_path / "copied", write([small]), 10_000_000) < 2_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_directory_has_a_link_of_each_directory_in_it(tmp_path: Path) -> None:
    """find(1) and others go by it."""
    tar = make_tar(info("d"), info("d/a"), info("d/b"), file("d/c", b"c"))
    with opened("erofs", tmp_path) as store:
        store.unpack(sha256(tar), TAR, io.BytesIO(tar))
        top = store.lower(sha256(tar))
        assert [(top / name).stat().st_nlink for name in ("d", "d/a", "d/c")] == [4, 2, 1]
