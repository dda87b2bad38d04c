"""Files and directories that are named for results: what cannot be written is told before anything is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import DiskError, InputError
from tests.builder import Builder
from tools.cli.destinations import check_directory, check_file

NAMING = [
    ["build", "CONTEXT", "--iidfile"], ["build", "CONTEXT", "--metadata-file"],
    ["build", "CONTEXT", "--bundle-on-failure"], ["build", "CONTEXT", "--output", "type=tar,dest="],
    ["build", "CONTEXT", "--output", "type=oci,dest="], ["append", "a", "x.tar", "--iidfile"],
    ["rebase", "a", "--metadata-file"],
    ["index", "create", "a", "b", "--metadata-file"], ["replay", "b", "--shell", "--patch"], ["report", "b", "-o"],
    ["bundle", "b", "-o"], ["audit", "prove", "1", "-o"], ["audit", "provenance", "b", "-o"],
    ["audit", "checkpoint", "-o"],
]  # fmt: skip


@pytest.mark.parametrize("command", NAMING, ids=lambda words: " ".join(words[:2] + words[-1:]))
def test_a_file_that_cannot_be_written_is_told_before_anything_is_done(tmp_path: Path, command: list[str]) -> None:
    builder = Builder(tmp_path)
    builder.write({"Dockerfile": "FROM scratch\nLABEL a=b\n"})
    words = [str(builder.context) if word == "CONTEXT" else word for word in command]
    dest = str(tmp_path / "missing/file")
    done = builder.run(*words[:-1], words[-1] + dest) if words[-1].endswith("=") else builder.run(*words, dest)
    said = f"ERROR: {tmp_path}/missing: there is no such directory to write to (make it first)\n"
    assert (done.code, done.out, done.err) == (2, "", said)
    assert not builder.root.exists()


@pytest.mark.parametrize("option", [("--output", "type=local,dest="), ("--cache-to", "type=local,dest=")])
def test_a_directory_that_cannot_be_made_is_told_before_anything_is_done(
    tmp_path: Path, option: tuple[str, str]
) -> None:
    builder = Builder(tmp_path)
    builder.write({"Dockerfile": "FROM scratch\nLABEL a=b\n"})
    dest = f"{builder.context}/Dockerfile/below"
    done = builder.run("build", str(builder.context), option[0], option[1] + dest)
    assert (done.code, done.err) == (
        2, f"ERROR: {dest}: nothing can be written here: Not a directory (name another place)\n"
    )  # fmt: skip
    assert not builder.root.exists()


def test_a_cache_that_may_fail_is_not_told_before(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    done = builder.build(
        "FROM scratch\nLABEL a=b\n", "--cache-to",
        f"type=local,dest={builder.context}/Dockerfile/below,ignore-error=true",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "WARNING" in done.err


# ---------------------------------------------------------------- which places are good


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A directory with what can be in the way."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("before")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing/x")
    (tmp_path / "link").symlink_to("directory")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


GOOD_FILES = ("new", "file", "pipe", "link/new", "n" * 255)
BAD_FILES = {
    "directory": "a directory is there", "link": "a directory is there", "n" * 256: "File name too long",
    "missing/x": "no such directory", "file/x": "Not a directory", "loop": "symbolic links",
    "nowhere": "No such file", "/proc/x": "nothing can be written here",
}  # fmt: skip
GOOD_DIRECTORIES = ("new", "new/one", "directory", "link", "link/new")
BAD_DIRECTORIES = {
    "file": "Not a directory", "file/x": "Not a directory", "n" * 256: "File name too long", "pipe": "Not a directory",
    "loop/x": "symbolic links", "nowhere": "No such file", "/proc/x/y": "nothing can be written here",
}  # fmt: skip


def judged(check: Callable[[str], None], dest: Path) -> str:
    """What is said of `dest`; "" of a good one. Nothing may be left of the question."""
    before = sorted(dest.parent.iterdir()) if dest.parent.is_dir() and "proc" not in dest.parts else []
    try:
        check(str(dest))
    except InputError as error:
        return str(error)
    else:
        return ""
    finally:
        assert not before or sorted(dest.parent.iterdir()) == before


@pytest.mark.parametrize("name", GOOD_FILES)
def test_a_file_can_be_written(places: Path, name: str) -> None:
    assert judged(check_file, places / name) == ""
    assert (places / "file").read_text() == "before"


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_cannot_be_written(places: Path, name: str) -> None:
    assert BAD_FILES[name] in judged(check_file, places / name)


@pytest.mark.parametrize("name", GOOD_DIRECTORIES)
def test_a_directory_can_be_made(places: Path, name: str) -> None:
    assert judged(check_directory, places / name) == ""


@pytest.mark.parametrize("name", BAD_DIRECTORIES)
def test_a_directory_cannot_be_made(places: Path, name: str) -> None:
    assert BAD_DIRECTORIES[name] in judged(check_directory, places / name)


def test_a_full_disk_is_no_mistake_of_who_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.durable.create_held", full)
    with pytest.raises(DiskError, match=r"No space left on device \(free some space, or name another place\)"):
        check_file(str(tmp_path / "x"))
