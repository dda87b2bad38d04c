"""What dead owners leave behind goes; what living ones use stays."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.errors import DiskError
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below, mount_overlay, mounts_below
from storage.scratch import Scratch, remove_tree
from storage.sweep import sweep
from tests.storage.test_refused import refusing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    detach_below(tmp_path)


def test_I12_mounts_and_files_of_the_dead_go_and_of_the_living_stay(root: Path) -> None:
    lower = root / "lower"
    lower.mkdir()
    (lower / "precious").write_text("kept")
    dead = OverlaySnapshots(root / "snapshots", root / "tmp", "dead").begin("s1", [lower])
    alive = OverlaySnapshots(root / "snapshots", root / "tmp", "alive").begin("s2", [lower])
    (dead.root / "inner").mkdir()
    mount_overlay(dead.root / "inner", [lower])
    mount_overlay(dead.root, [lower])
    DirectoryBlobs(root, owner="dead").writer().write(b"half a blob")
    (root / "tmp/bundles").mkdir()
    (root / "tmp/probe-abc").mkdir()
    asked: list[str] = []

    def is_alive(owner: str) -> bool:
        asked.append(owner)
        return owner == "alive"

    removed = sweep(root / "tmp", is_alive, "heir")
    assert sorted(asked) == ["alive", "dead"]
    assert len(removed) == 2
    assert all(name.startswith("dead-") for name in removed)
    assert mounts_below(root) == [alive.root]
    assert (alive.root / "precious").read_text() == (lower / "precious").read_text() == "kept"
    assert {path.name.partition("-")[0] for path in (root / "tmp").iterdir()} == {"alive", "bundles", "probe"}
    alive.discard()


def test_nothing_to_sweep_is_fine(tmp_path: Path) -> None:
    assert sweep(tmp_path / "missing", lambda owner: False, "heir") == []


def test_a_tree_that_is_mounted_on_is_not_emptied_through_the_mount(root: Path) -> None:
    lower, top = root / "lower", root / "top"
    (top / "point").mkdir(parents=True)
    lower.mkdir()
    (lower / "precious").write_text("kept")
    mount_overlay(top / "point", [lower])
    with pytest.raises(OSError, match="busy"):
        remove_tree(top)
    assert (top / "point/precious").read_text() == "kept"


def test_trees_deeper_than_any_path_are_removed(tmp_path: Path) -> None:
    top = Scratch(tmp_path, "b1").directory()
    assert stat.S_IMODE(top.stat().st_mode) == 0o700
    fd = os.open(top, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 100, dir_fd=fd)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0, dir_fd=fd))
        os.close(fd)
        fd = below
    os.close(fd)
    (top / "link").symlink_to("/")
    remove_tree(top)
    remove_tree(top)
    (tmp_path / "file").write_text("")
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_what_another_sweep_took_is_not_counted_and_what_cannot_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scratch(tmp_path, "dead").directory()
    with monkeypatch.context() as patch:
        patch.setattr(Scratch, "drop", lambda scratch, path: False)
        assert sweep(tmp_path, lambda owner: False, "heir") == []
    monkeypatch.setattr(Scratch, "drop", refusing(errno.EBUSY))
    with pytest.raises(DiskError, match="removing leftovers of a build that died: Device or resource busy"):
        sweep(tmp_path, lambda owner: False, "heir")
