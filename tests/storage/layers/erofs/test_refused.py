"""What an image cannot hold is refused before it is one, and what says where it is in one is not believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storage.digest import sha256
from storage.errors import DiskError
from storage.layers.erofs.encode import TAR_START
from storage.layers.erofs.header import HEADER_SIZE, Image
from storage.layers.erofs.image import ImageWriter
from storage.layers.erofs.tree import LayerTree
from storage.tar.reader import REGULAR, SYMLINK, Entry


def entry(name: bytes = b"f", size: int = 0, **more: Any) -> Entry:
    return Entry(name, REGULAR, mode=0o644, uid=0, gid=0, size=size, mtime=0, **more)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    with ImageWriter(tmp_path / "image") as made:
        made.finish(sha256(b""))
    return tmp_path / "image"


@pytest.mark.parametrize(
    "said",
    [{"refledger": 2}, {"tar": [4096, 1 << 40]}, {"implied": [4096, 1 << 40]}, {"tar": [-1, 0]}, {"tar": [True, 0]},
     {"tar": 7}, {"diff_id": "md5:x"}],
    ids=str,
)  # fmt: skip
def test_a_header_that_says_what_cannot_be_is_none(image: Path, said: dict[str, Any]) -> None:
    with image.open("r+b") as file:
        header = {**json.loads(file.read(HEADER_SIZE).rstrip(b"\0")), **said}
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(HEADER_SIZE, b"\0"))
    with pytest.raises(DiskError, match="not a layer image of this Refledger"):
        Image.open(image)


def test_an_image_that_is_shorter_than_its_tar_says_so(tmp_path: Path) -> None:
    with ImageWriter(tmp_path / "image") as made:
        made.write(bytes(1 << 20))
        made.finish(sha256(bytes(1 << 20)))
    os.truncate(tmp_path / "image", TAR_START + 10)
    with Image.open(tmp_path / "image").open_tar() as tar:
        assert tar.read() == bytes(10)
        with pytest.raises(OSError, match="the image is truncated"):
            tar.read()


def test_a_link_has_no_attributes_that_linux_gives_files_only(tmp_path: Path) -> None:
    tree = LayerTree()
    link = Entry(b"l", SYMLINK, mode=0o777, uid=0, gid=0, size=0, mtime=0, link=b"t",
                 xattrs={b"user.x": b"1", b"system.posix_acl_access": b"2", b"trusted.x": b"3"})  # fmt: skip
    tree.add(link)
    node = tree.find(b"l")
    assert node is not None
    assert node.xattrs == ((b"trusted.x", b"3"),)


def test_a_layer_of_many_directories_is_as_large_as_it_is() -> None:
    """Only so many parents are remembered, and looked for anew."""
    tree = LayerTree()
    for number in (*range(4100), *range(3)):
        tree.add(entry(b"d%d/f%d" % (number, len(tree._parents))))
    assert len(tree.root.entries) == 4100
    assert all(len(tree.root.entries[b"d%d" % number].entries) == 2 for number in range(3))
