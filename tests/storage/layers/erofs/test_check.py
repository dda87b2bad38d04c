"""What a look at an image file says of it, whatever stands in its place and however the disk answers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.digest import Digest, canonical_json, parse_json, sha256
from storage.layers.erofs import check
from storage.layers.erofs.check import check_image, examine_image
from storage.layers.erofs.header import HEADER_SIZE, SEAL
from storage.layers.erofs.image import ImageWriter
from storage.scratch import Scratch
from tests.storage.tar.tars import Member, write

TAR = write([Member(b"f", data=b"content")])
NAME: Digest = sha256(TAR)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with ImageWriter(path) as out:
        out.write(TAR)
        out.finish(NAME, str(NAME))
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "tmp", "b1")


def say(image: Path, **fields: object) -> None:
    """Change the header, None to leave something out, and keep the time."""
    with image.open("r+b") as file:
        said = parse_json(file.read(HEADER_SIZE).rstrip(b"\0")) | fields
        file.seek(0)
        left = canonical_json({key: value for key, value in said.items() if value is not None})
        file.write(left.ljust(HEADER_SIZE, b"\0"))
    os.utime(image, ns=(SEAL, SEAL))


STRANGE: dict[str, Callable[[Path], object]] = {
    "a directory": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_no_file_is_said_and_never_followed(image: Path, scratch: Scratch, what: str) -> None:
    image.unlink()
    STRANGE[what](image)
    for found in (check_image(image, NAME, scratch), examine_image(image, NAME)):
        assert found == "something else stands in the place of its file"


def test_what_is_not_here_is_not_damaged(tmp_path: Path, scratch: Scratch) -> None:
    assert check_image(tmp_path / "none", NAME, scratch) == ""


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"refledger": 2}, "not a layer image of this Refledger: version 2"),
        ({"tar": [0]}, "not a layer image of this Refledger"),
        ({"implied": [-1, 0]}, "not a layer image of this Refledger: a place that is none"),
        ({"implied": [4096, 0]}, "not a layer image of this Refledger: its parts lie where they cannot"),
        ({"diff_id": "md5:x"}, "not a layer image of this Refledger: not a digest"),
        ({"name": "another"}, "it is the image of another"),
        ({"implied": [1 << 20, 5]}, "its file has"),
    ],
)
def test_a_header_that_says_something_else_is_damage(
    image: Path, scratch: Scratch, fields: dict[str, object], problem: str
) -> None:
    say(image, **fields)
    assert check_image(image, NAME, scratch).startswith(problem)
    assert examine_image(image, NAME).startswith(problem)


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN])
def test_a_disk_that_cannot_read_an_image_is_damage_to_it(
    image: Path, scratch: Scratch, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(number, os.strerror(number))

    os.utime(image)  # so that it is read
    monkeypatch.setattr(check, "open_regular", refuse)
    assert check_image(image, NAME, scratch) == f"it cannot be read: {os.strerror(number)}"


def test_what_may_not_be_read_is_no_damage(image: Path, scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    os.utime(image)
    monkeypatch.setattr(check, "open_regular", refuse)
    with pytest.raises(PermissionError):
        check_image(image, NAME, scratch)


def test_an_image_of_before_there_were_seals_is_written_anew(image: Path, scratch: Scratch) -> None:
    say(image, rest=None, name=None)
    assert check_image(image, NAME, scratch) == ""
    assert examine_image(image, NAME) == ""
    assert parse_json(image.read_bytes()[:HEADER_SIZE].rstrip(b"\0"))["rest"]


def test_such_an_image_with_other_content_is_damage_and_nothing_is_left(image: Path, scratch: Scratch) -> None:
    say(image, rest=None, name=None)
    with image.open("r+b") as file:
        file.seek(4096 + 512)
        file.write(b"C")
    assert "has diff ID" in check_image(image, NAME, scratch)
    assert list(scratch.tmp.iterdir()) == []
