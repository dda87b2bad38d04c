"""Trees that a process makes for itself: published whole, once, and mended when damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.layers.snapshots import OverlaySnapshots
from storage.layers.trees import SnapshotTrees

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="trees have the owners of their files")


def trees(root: Path, owner: str) -> SnapshotTrees:
    return SnapshotTrees(OverlaySnapshots(root / "snapshots", root / "tmp", owner))


def test_of_two_that_publish_one_tree_the_first_one_s_stays_and_nothing_else(tmp_path: Path) -> None:
    one, other = trees(tmp_path, "b1"), trees(tmp_path, "b2")
    made = {store: store.begin() for store in (one, other)}
    for number, (store, tree) in enumerate(made.items(), 1):
        (tree / "file").write_text(f"{number}" * number)
        os.link(tree / "file", tree / "again")
        assert store.publish(tree, "s") == number, "bytes of files, each inode once"
    assert (other.path("s") / "file").read_text() == "1"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["s"]
    assert one.mend("s") == ""


def test_a_damaged_tree_is_removed_and_said(tmp_path: Path) -> None:
    store = trees(tmp_path, "b1")
    tree = store.begin()
    (tree / "file").write_text("content")
    store.publish(tree, "s")
    (store.path("s") / "file").write_text("other content")
    later = trees(tmp_path, "b2")
    assert later.has("s")
    assert later.mend("s") != ""
    assert not later.has("s")


def test_what_is_not_published_goes(tmp_path: Path) -> None:
    store = trees(tmp_path, "b1")
    begun = [store.begin(), store.begin()]
    store.discard([*begun, begun[0]])
    assert list((tmp_path / "tmp").iterdir()) == []
