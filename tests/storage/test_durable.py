"""Files that are written beside their place: whole or not there, and nothing of a killed writer stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.archive import DestFile
from storage.durable import FileSystemSync, Unfinished, make_directories, replace_file
from storage.errors import DiskError
from tests.writeback import FailingWriteBack, watch_flushes

KILLED = """
import os, signal, sys
from pathlib import Path
from storage.durable import Unfinished
new = Unfinished(Path(sys.argv[1]))
new.file.write(b"half of it")
new.file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def hidden(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.startswith(".")]


def test_I12_what_a_killed_writer_left_goes_with_the_next_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    dest = tmp_path / "an [archive].tar"
    done = subprocess.run([sys.executable, "-c", KILLED, str(dest)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 1
    other = Unfinished(tmp_path / "other.tar")
    living = Unfinished(dest)
    living.file.write(b"first")
    assert len(hidden(tmp_path)) == 2
    replace_file(dest, b"second")
    assert dest.read_bytes() == b"second"
    living.commit()
    assert dest.read_bytes() == b"first"
    other.abort()
    assert hidden(tmp_path) == []


def test_a_file_is_replaced_whole_and_stays_its_owners(tmp_path: Path) -> None:
    dest, link = tmp_path / "file", tmp_path / "link"
    dest.write_bytes(b"before")
    dest.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(dest, 1234, 1234)
    link.symlink_to("file")
    before = dest.stat()
    replace_file(link, b"after", named=True)
    now = dest.stat()
    assert (dest.read_bytes(), link.is_symlink()) == (b"after", True)
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (before.st_uid, before.st_gid, 0o640)
    assert now.st_ino != before.st_ino


def test_who_may_not_give_a_file_away_opens_it_to_no_more_than_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    dest = tmp_path / "file"
    dest.touch(0o600)
    replace_file(dest, b"secret")
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600


def test_an_output_that_a_link_leads_to_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/image.tar")
    out = DestFile(str(tmp_path / "link"))
    out.write(b"image")
    out.commit()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk/image.tar").read_bytes() == b"image"
    assert hidden(tmp_path) == hidden(tmp_path / "disk") == []


def test_a_link_in_the_place_of_a_file_of_ours_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "ours").symlink_to("theirs")
    replace_file(tmp_path / "ours", b"ours")
    assert not (tmp_path / "ours").is_symlink()
    assert ((tmp_path / "ours").read_bytes(), (tmp_path / "theirs").read_bytes()) == (b"ours", b"theirs")


def test_what_is_no_regular_file_is_written_to_when_somebody_named_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace_file(pipe, b"into it", named=True)
        assert os.read(reading, 100) == b"into it"
    finally:
        os.close(reading)
    assert pipe.is_fifo()


def test_a_pipe_without_a_name_is_written_to_as_the_shell_calls_it() -> None:
    reading, writing = os.pipe()
    try:
        replace_file(Path(f"/dev/fd/{writing}"), b"into it", named=True)
        assert os.read(reading, 100) == b"into it"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    dest = tmp_path / ("ü" * 127)
    replace_file(dest, b"first")
    replace_file(dest, b"second")
    assert (list(tmp_path.iterdir()), dest.read_bytes()) == ([dest], b"second")


def test_links_in_a_circle_are_an_error_and_stay(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(loop, b"x", named=True)
    with pytest.raises(DiskError, match="symbolic links"):
        DestFile(str(loop))
    assert loop.is_symlink()


def test_a_place_that_is_none_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "missing/file", b"x")
    (tmp_path / "full").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "full", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "full"]


def test_directories_are_made_with_the_mode_of_the_last(tmp_path: Path) -> None:
    make_directories(tmp_path / "a/b", mode=0o700)
    make_directories(tmp_path / "a/b", mode=0o755)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700


def test_what_is_there_is_not_replaced_when_nothing_may_be(tmp_path: Path) -> None:
    dest = tmp_path / "audit.key"
    new = Unfinished(dest, 0o600)
    new.file.write(b"first")
    assert not dest.exists()
    new.commit(replace=False)
    assert (dest.read_bytes(), stat.S_IMODE(dest.stat().st_mode)) == (b"first", 0o600)
    again = Unfinished(dest, 0o600)
    with pytest.raises(FileExistsError):
        again.commit(replace=False)
    again.abort()
    assert dest.read_bytes() == b"first"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("replace", [True, False])
def test_I6_a_file_is_durable_before_it_takes_its_place_and_its_name_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, replace: bool
) -> None:
    dest = tmp_path / "file"
    new = Unfinished(dest)
    new.file.write(b"content")
    flushes = watch_flushes(monkeypatch, dest.exists)
    new.commit(replace=replace)
    (before, first), (after, second) = flushes
    assert (before, after, second) == (False, True, str(tmp_path))
    assert Path(first).name.startswith(".file.")


def test_I6_directories_are_durable_and_the_one_that_is_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = watch_flushes(monkeypatch, lambda: True)
    make_directories(tmp_path / "a/b")
    assert [path for _, path in flushes] == [str(tmp_path.parent), str(tmp_path), str(tmp_path / "a")]
    flushes.clear()
    make_directories(tmp_path / "a/b")
    assert [path for _, path in flushes] == [str(tmp_path / "a")], "whoever made it may have died before that"


def test_I6_who_was_writing_hears_of_an_error_that_another_flush_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FailingWriteBack(monkeypatch)
    sync = FileSystemSync(tmp_path)
    with sync.watched() as mine:
        with sync.watched() as earlier:
            earlier()
        kernel.fail()
        with sync.watched() as late, pytest.raises(OSError, match="Input/output"):
            late()
        with sync.watched() as later:
            later()
        with pytest.raises(OSError, match="Input/output"):
            mine()
