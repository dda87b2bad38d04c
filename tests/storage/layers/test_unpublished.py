"""What was written and could not be written back is never published, however its tree came about."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.cachemounts import DirectoryCacheMounts
from storage.digest import sha256
from storage.durable import FileSystemSync
from storage.errors import DiskError
from storage.interfaces.layers import Look
from storage.layers.seal import broken
from storage.layers.snapshots import OverlaySnapshots
from storage.layers.trees import SnapshotTrees
from storage.layers.unpublished import UnpublishedTree
from storage.locks import FileLocks
from storage.overlay import mounts_below
from storage.scratch import Scratch
from tests.writeback import FailingWriteBack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and owners need root")
Interrupt = Callable[[], None]


def a_command(root: Path, lose: Interrupt) -> bool:
    snapshots = OverlaySnapshots(root / "snapshots", root / "tmp", "b1")
    snapshot = snapshots.begin("s", [])
    try:
        (snapshot.root / "file").write_text("content")
        lose()
        snapshot.commit()
    finally:
        snapshot.discard()
    return snapshots.has("s")


def what_is_composed(root: Path, lose: Interrupt) -> bool:
    snapshots = OverlaySnapshots(root / "snapshots", root / "tmp", "b1")
    writer = snapshots.compose("s")
    try:
        writer.file(b"file", Look(0o644, 0, 0, 0), 7, [b"content"])
        lose()
        writer.commit()
    finally:
        writer.discard()
    return snapshots.has("s")


def what_is_fetched(root: Path, lose: Interrupt) -> bool:
    trees = SnapshotTrees(OverlaySnapshots(root / "snapshots", root / "tmp", "b1"))
    tree = trees.begin()
    try:
        (tree / "file").write_text("content")
        lose()
        trees.publish(tree, "s")
    finally:
        trees.discard([tree])
    return trees.has("s")


def a_cache_mount(root: Path, lose: Interrupt) -> bool:
    caches = DirectoryCacheMounts(root / "cache", root / "tmp", "b1", FileLocks(root / "locks"))
    held = caches.try_acquire(sha256(b"cache"), "locked")
    assert held is not None

    def furnish(tree: Path) -> None:
        (tree / "file").write_text("content")
        lose()

    with_it = held.exists()
    assert not with_it
    try:
        held.fill(furnish)
    finally:
        held.release()
    return held.exists()


WAYS = (a_command, what_is_composed, what_is_fetched, a_cache_mount)


@pytest.mark.parametrize("way", WAYS)
def test_I6_what_another_process_heard_of_first_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Path, Interrupt], bool]
) -> None:
    """syncfs(2) tells a descriptor of errors since that was opened: one that is opened to flush comes too late."""
    kernel = FailingWriteBack(monkeypatch)
    with pytest.raises(DiskError, match="Input/output error"):
        way(tmp_path, kernel.fail)
    assert not list(tmp_path.glob("snapshots/*"))
    assert not list(tmp_path.glob("cache/*/*"))
    assert list((tmp_path / "tmp").iterdir()) == mounts_below(tmp_path) == []
    assert way(tmp_path, lambda: None)
    assert list((tmp_path / "tmp").iterdir()) == mounts_below(tmp_path) == []


def test_no_descriptor_is_left_of_what_was_published_or_dropped(tmp_path: Path) -> None:
    def here() -> list[str]:
        found = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - as many as it takes
        return [place for place in found if os.path.realpath(place).startswith(str(tmp_path))]

    for way in WAYS:
        assert way(tmp_path / way.__name__, lambda: None)
    snapshots = OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    snapshots.begin("run", []).discard()
    snapshots.compose("composed").discard()
    assert here() == []


def test_of_two_that_publish_the_same_the_later_one_leaves_nothing(tmp_path: Path) -> None:
    scratch, sync = Scratch(tmp_path / "tmp", "b1"), FileSystemSync(tmp_path)
    for content in ("first", "second"):
        new = UnpublishedTree(scratch, sync)
        new.make_tree()
        (new.tree / "file").write_text(content)
        new.publish(tmp_path / "kept/name")
        new.drop()
    assert (tmp_path / "kept/name/fs/file").read_text() == "first"
    assert broken(tmp_path / "kept/name") == ""
    assert list((tmp_path / "tmp").iterdir()) == []
