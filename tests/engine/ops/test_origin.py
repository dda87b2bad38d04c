"""Files that are read while something else may write to their tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.ops.origin import Origin, content
from engine.ops.selection import CHUNK, Entry
from storage.digest import sha256


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/f").write_bytes(b"x" * 10)
    return tmp_path / "tree"


@pytest.fixture
def fd(tree: Path) -> Iterator[int]:
    opened = os.open(tree / "d/f", os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize("path", ["d", "d/f"])
def test_what_went_away_is_a_change(tree: Path, path: str) -> None:
    entry = Entry(path, path, "dir" if path == "d" else "file", 0o755)
    with Origin(tree) as origin:
        origin.time(entry)
    shutil.rmtree(tree / "d")
    with Origin(tree) as origin, pytest.raises(InputError, match="changed during the build"):
        origin.time(entry)


@pytest.mark.parametrize("size", [11, CHUNK + 1])
def test_a_file_that_is_shorter_than_it_was_is_a_change_with_or_without_a_digest(fd: int, size: int) -> None:
    for entry in (None, Entry("f", "f", "file", 0o644), Entry("f", "f", "file", 0o644, digest=sha256(b"x" * size))):
        os.lseek(fd, 0, os.SEEK_SET)
        with pytest.raises(InputError, match="changed during the build"):
            list(content(fd, size, entry))


def test_what_has_grown_is_cut_off_where_no_digest_says_more(fd: int) -> None:
    assert list(content(fd, 9)) == [b"x" * 9]
    assert content(fd, 0) == ()


def test_a_file_that_went_out_of_its_directory_is_a_change(tree: Path) -> None:
    entry = Entry("d/f", "d/f", "file", 0o644)
    with Origin(tree) as origin:
        origin.time(entry)
        (tree / "d/f").unlink()
        with pytest.raises(InputError, match="changed during the build"):
            origin.time(entry)


def test_a_large_file_of_other_content_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(CHUNK + 1))
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(InputError, match="changed during the build"):
            list(content(fd, CHUNK + 1, Entry("f", "f", "file", 0o644, digest=sha256(b"other"))))
    finally:
        os.close(fd)
