"""Patches of what changed in a shell apply with patch(1) and give what was there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from storage.overlay import mount_overlay, unmount
from tools.cli.patch import changes, unified

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

BEFORE = {"app/main.c": b"one\ntwo\nthree\n", "app/end": b"no newline", "gone": b"x\n", "bin": b"\0\1", "dir/a": b"a\n"}
AFTER = {"app/main.c": b"one\n2\nthree\n", "app/end": b"no newline\na\x0b b", "new/file": b"\xff\n", "bin": b"\0\2"}


def test_a_patch_of_an_upper_applies_to_the_tree_below(tmp_path: Path) -> None:
    below, upper, work, root, copy = (tmp_path / name for name in ("below", "upper", "work", "root", "copy"))
    for directory in (upper, work, root):
        directory.mkdir()
    for place in (below, copy):
        for name, data in BEFORE.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    mount_overlay(root, [below], upper, work)
    try:
        for name, data in AFTER.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
        (root / "gone").unlink()
        (root / "dir/a").unlink()
        (root / "dir").rmdir()
        (root / "dir").mkdir()  # opaque now
        (root / "app/end").chmod(0o644)
        found = list(changes(upper, below))
        text = "".join(unified(found, below, root))
        assert [str(change) for change in found] == [
            "changed  /app/end", "changed  /app/main.c", "changed  /bin", "removed  /dir/a", "removed  /gone",
            "added    /new", "added    /new/file",
        ]  # fmt: skip
    finally:
        unmount(root)
    subprocess.run(["patch", "-p1"], input=text.encode("utf-8", "surrogateescape"), cwd=copy, check=True)
    for name in ("app/main.c", "app/end", "new/file"):
        assert (copy / name).read_bytes() == AFTER[name]
    assert not (copy / "gone").exists()
    assert (copy / "bin").read_bytes() == BEFORE["bin"]


def test_a_file_that_was_only_opened_for_writing_is_no_change(tmp_path: Path) -> None:
    for place in ("below", "upper"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a").write_bytes(b"same\n")
    assert list(changes(tmp_path / "upper", tmp_path / "below")) == []


def test_a_directory_in_the_place_of_a_link_shows_nothing_of_what_the_link_led_to(tmp_path: Path) -> None:
    """It is the image's link: its text names a directory of this machine."""
    host, below, upper, work, root = (tmp_path / name for name in ("host", "below", "upper", "work", "root"))
    for directory in (host, below, upper, work, root):
        directory.mkdir()
    (host / "shadow").write_text("of this machine\n")
    (host / "other").write_text("of this machine\n")
    (below / "etc").symlink_to(host)
    mount_overlay(root, [below], upper, work)
    try:
        (root / "etc").unlink()
        (root / "etc").mkdir()
        (root / "etc/shadow").write_text("new\n")
        found = list(changes(upper, below))
        assert [str(change) for change in found] == ["added    /etc/shadow"]
        assert "this machine" not in "".join(unified(found, below, root))
    finally:
        unmount(root)
