"""What a disk refuses while layers and snapshots are made, looked at and let go: said once, and nothing is left."""

from __future__ import annotations

import errno
import io
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import Hasher
from storage.durable import FileSystemSync
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.layers import LayerWriter, Look
from storage.layers.compose import TreeWriter
from storage.layers.directory import DirectoryLayers
from storage.layers.erofs.check import check_image
from storage.layers.erofs.compose import ErofsLayerWriter
from storage.layers.erofs.image import ImageWriter
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.examine import examine_blob, examine_layer, examine_snapshot
from storage.layers.layerfile import BlobIntake
from storage.layers.readahead import ReadAhead
from storage.layers.seal import broken
from storage.layers.snapshots import OverlaySnapshots
from storage.layers.trees import SnapshotTrees
from storage.layers.unpublished import UnpublishedTree
from storage.overlay import detach_below, mounts_below
from storage.scratch import Scratch
from tests.storage.layers.trees import TAR, diff_id, file, info, make_tar, members, names
from tests.storage.test_refused import once, refusing
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and owners need root")
Patch = pytest.MonkeyPatch
BYTES = make_tar(file("f", b"content"))
LOOK = Look(0o644, 0, 0, 0)
LONG = b"n" * 300  # no file system has such a name


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[OverlaySnapshots]:
    yield OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    detach_below(tmp_path)


def left(root: Path) -> list[Path]:
    return [*mounts_below(root), *(root / "tmp").iterdir()]


# ---------------------------------------------------------------- written entry by entry


ENTRIES: dict[str, Callable[[LayerWriter], object]] = {
    "directory": lambda writer: writer.directory(LONG, LOOK),
    "file": lambda writer: writer.file(LONG, LOOK, 0, []),
    "node": lambda writer: writer.node(LONG, LOOK, "fifo", b"", 0),
    "link": lambda writer: writer.link(LONG, b"there"),
    "attribute of a file": lambda writer: writer.file(b"f", Look(0o644, 0, 0, 0, {b"no.such": b"x"}), 0, []),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_cannot_be_written_is_named(tmp_path: Path, entry: str) -> None:
    writer = TreeWriter(tmp_path)
    writer.file(b"there", LOOK, 0, [])
    with pytest.raises(DiskError, match=r"writing '/(nnn|f)"):
        ENTRIES[entry](writer)
    writer.discard()


def test_a_directory_that_cannot_be_dressed_is_named_in_the_end(tmp_path: Path) -> None:
    writer = TreeWriter(tmp_path)
    writer.directory(b"d", Look(0o755, 0, 0, 0, {b"no.such": b"x"}))
    with pytest.raises(DiskError, match=r"writing '/d'"):
        writer.commit()
    writer.discard()


def test_a_write_that_comes_short_is_gone_on_with_and_a_failure_is_said(tmp_path: Path, monkeypatch: Patch) -> None:
    write = os.write
    writer = TreeWriter(tmp_path)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:2]))
    writer.file(b"short", LOOK, 7, [b"content"])
    assert (tmp_path / "short").read_bytes() == b"content"
    monkeypatch.setattr(os, "write", refusing(errno.ENOSPC))
    with pytest.raises(DiskError, match="writing '/full': No space left on device"):
        writer.file(b"full", LOOK, 7, [b"content"])
    writer.discard()


def test_a_link_that_leads_to_nothing_written_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    writer = ErofsLayerWriter(tmp_path / "new", tmp_path / "final", "s")
    with pytest.raises(ValueError, match="a link to b'none', which was not written"):
        writer.link(b"link", b"none")
    with pytest.raises(InputError, match="cannot be laid out: File name too long"):
        writer.file(LONG, LOOK, 0, [])
    writer.discard()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- snapshots


def test_a_snapshot_that_cannot_be_begun_leaves_nothing(
    snapshots: OverlaySnapshots, tmp_path: Path, monkeypatch: Patch
) -> None:
    with pytest.raises(DiskError, match="a layer is missing"):
        snapshots.begin("s", [tmp_path / "none", tmp_path / "tmp"])
    with pytest.raises(DiskError, match="beginning a snapshot"):
        snapshots.begin("s", [tmp_path / "tmp", tmp_path / "none"])
    (tmp_path / "kept/fs").mkdir(parents=True)
    (tmp_path / "kept/implied").mkdir()
    with pytest.raises(DiskError, match="mounting a view: Is a directory"), snapshots.view([tmp_path / "kept/fs"]):
        pass
    with monkeypatch.context() as patch:
        patch.setattr("storage.layers.unpublished.put_on", refusing(errno.EPERM))
        for begin in (lambda: snapshots.compose("s"), SnapshotTrees(snapshots).begin):
            with pytest.raises(DiskError, match=r"beginning a (snapshot|tree): Operation not permitted"):
                begin()
    with monkeypatch.context() as patch:
        patch.setattr("storage.layers.compose.os.open", refusing(errno.EMFILE))
        with pytest.raises(DiskError):
            snapshots.compose("s")
    assert left(tmp_path) == []


def test_a_tree_whose_disk_cannot_be_watched_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UnpublishedTree(Scratch(tmp_path / "tmp", "b1"), FileSystemSync(tmp_path / "none"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_path_that_the_kernel_does_not_take_at_once_ends_the_step_with_what_to_do(
    snapshots: OverlaySnapshots, monkeypatch: Patch
) -> None:
    snapshot = snapshots.begin("s", [])
    monkeypatch.setattr("storage.layers.upper._settle", refusing(errno.ENAMETOOLONG))
    with pytest.raises(InputError, match=r"more than 4096 bytes cannot be kept \(remove it in the same step"):
        snapshot.commit()
    monkeypatch.setattr("storage.layers.upper._settle", refusing(errno.EIO))
    with pytest.raises(DiskError, match="committing a snapshot: Input/output error"):
        snapshot.commit()
    snapshot.discard()
    assert not snapshots.has("s")


def test_what_cannot_be_published_or_dropped_is_said(
    snapshots: OverlaySnapshots, tmp_path: Path, monkeypatch: Patch
) -> None:
    trees = SnapshotTrees(snapshots)
    snapshot, writer, tree = snapshots.begin("s", []), snapshots.compose("c"), trees.begin()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refusing(errno.EROFS))
        with pytest.raises(DiskError, match="committing a snapshot: Read-only"):
            writer.commit()
        with pytest.raises(DiskError, match="storing t: Read-only"):
            trees.publish(tree, "t")
    with monkeypatch.context() as patch:
        patch.setattr("storage.layers.unpublished.remove_tree", refusing(errno.EIO))
        for drop in (snapshot.discard, writer.discard, lambda: trees.discard([tree])):
            with pytest.raises(DiskError, match=r"(discarding a snapshot|removing a tree): Input/output error"):
                drop()
    assert not any(snapshots.has(name) for name in "sct")
    assert mounts_below(tmp_path) == []


def test_a_snapshot_that_cannot_be_packed_is_said(snapshots: OverlaySnapshots, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="packing snapshot s: No such file"):
        snapshots.pack("s", bytes)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "snapshots/s").mkdir(parents=True)
    (tmp_path / "snapshots/s/fs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match="a link stands in the place of its files"):
        snapshots.pack("s", bytes)


def test_what_cannot_be_looked_at_is_not_here(snapshots: OverlaySnapshots, tmp_path: Path) -> None:
    """So it is made again, and whoever does that says what the disk says."""
    (tmp_path / "snapshots").symlink_to("snapshots")
    assert not snapshots.has("s")


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", ["directory", "erofs"])
def test_a_layer_that_cannot_be_published_leaves_nothing(tmp_path: Path, monkeypatch: Patch, kind: str) -> None:
    mounts = ErofsMounts(tmp_path / "mnt", "b1")
    store = (DirectoryLayers(tmp_path / "layers", tmp_path / "tmp", "b1") if kind == "directory"
             else ErofsLayers(tmp_path / "layers", tmp_path / "tmp", "b1", mounts))  # fmt: skip
    monkeypatch.setattr(Path, "rename", refusing(errno.EDQUOT))
    with pytest.raises(DiskError, match="the quota is used up"):
        store.unpack(diff_id(BYTES), TAR, io.BytesIO(BYTES))
    assert left(tmp_path) == []
    monkeypatch.undo()
    store.unpack(diff_id(BYTES), TAR, io.BytesIO(BYTES))
    assert store.has(diff_id(BYTES))
    mounts.close()


@pytest.mark.parametrize(("number", "said"), [(errno.EIO, "it cannot be read: Input/output error"), (0, "")])
def test_an_image_that_the_disk_does_not_give_is_damaged_and_one_that_went_is_not(
    tmp_path: Path, monkeypatch: Patch, number: int, said: str
) -> None:
    image = tmp_path / "image"
    with ImageWriter(image) as new:
        new.finish(diff_id(b""), "s")
    gone = once(refusing(number or errno.ENOENT), refusing(errno.EIO))
    monkeypatch.setattr("storage.layers.erofs.header.open_regular", gone)
    assert check_image(image, "s", Scratch(tmp_path / "tmp", "b1")) == said
    monkeypatch.setattr("storage.layers.erofs.header.open_regular", refusing(errno.EACCES))
    with pytest.raises(PermissionError):
        check_image(image, "s", Scratch(tmp_path / "tmp", "b1"))


def test_I13_what_lies_in_a_root_is_examined_whatever_it_is(tmp_path: Path, monkeypatch: Patch) -> None:
    digest = diff_id(b"blob")
    place = tmp_path / "blobs/sha256" / digest.hex
    assert examine_blob(tmp_path, "no digest") == examine_layer(tmp_path, "none") == "it is no digest"
    assert examine_snapshot(tmp_path, "..") == "it is no id of a snapshot"
    assert examine_blob(tmp_path, digest) is examine_blob(tmp_path, digest, quick=True) is None
    assert examine_layer(tmp_path, digest) is None
    place.mkdir(parents=True)
    assert examine_blob(tmp_path, digest) == "a directory stands in its place"
    place.rmdir()
    os.mkfifo(place)
    assert examine_blob(tmp_path, digest) == "something else than a file stands in its place"
    place.unlink()
    place.write_bytes(b"other")
    assert examine_blob(tmp_path, digest) == f"its content has digest {diff_id(b'other')}"
    assert examine_blob(tmp_path, digest, quick=True) == ""
    place.write_bytes(b"blob")
    assert examine_blob(tmp_path, digest) == ""
    monkeypatch.setattr("storage.layers.examine.open_regular", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        examine_blob(tmp_path, digest)


def test_a_store_that_cannot_be_checked_says_so(tmp_path: Path, monkeypatch: Patch) -> None:
    store: Any = DirectoryLayers(tmp_path / "layers", tmp_path / "tmp", "b1")
    monkeypatch.setattr("storage.layers.directory.broken", refusing(errno.EACCES))
    with pytest.raises(DiskError, match="checking a layer: Permission denied"):
        store.check(str(diff_id(b"x")))


@pytest.mark.parametrize("call", ["read_regular", "tree_seal"])
def test_a_tree_that_may_not_be_looked_at_is_not_damaged(tmp_path: Path, monkeypatch: Patch, call: str) -> None:
    new = UnpublishedTree(Scratch(tmp_path / "tmp", "b1"), FileSystemSync(tmp_path))
    new.make_tree()
    new.publish(tmp_path / "kept")
    monkeypatch.setattr(f"storage.layers.seal.{call}", refusing(errno.EACCES))
    with pytest.raises(PermissionError):
        broken(tmp_path / "kept")


def test_a_directory_made_where_a_layer_hides_one_removes_nothing(snapshots: OverlaySnapshots, tmp_path: Path) -> None:
    """The kernel marks it as one that hides what is below, of which nothing is to be seen."""
    layers = DirectoryLayers(tmp_path / "layers", tmp_path / "tmp", "b1")
    below = make_tar(info("d"), info("d/sub"), file("d/sub/old", b""))
    hiding = make_tar(info("d"), file("d/.wh..wh..opq", b""))
    lowers = []
    for tar in (below, hiding):
        layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
        lowers.append(layers.lower(diff_id(tar)))
    snapshot = snapshots.begin("s", lowers)
    assert names(snapshot.root / "d") == []
    (snapshot.root / "d/sub").mkdir()
    snapshot.commit()
    out = io.BytesIO()
    snapshots.pack("s", out.write)
    assert members(out.getvalue()) == ["d", "d/sub"]


def test_what_else_breaks_while_a_layer_is_read_comes_through_and_nothing_is_kept(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        BlobIntake(DirectoryBlobs(tmp_path, owner="b1"), 1 << 20).read(Broken(), 0)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_who_ends_before_a_slow_source_gives_more_waits_for_it(monkeypatch: Patch) -> None:
    """Its thread reads what others own: none is left at it."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow:
        def read(self, _size: int = -1, /) -> bytes:
            reading.set()
            assert go_on.wait(PATIENCE)
            return b""

    def empty(**_: float) -> bytes:
        go_on.set()
        raise queue.Empty

    with ReadAhead(Slow(), TAR, Hasher(), 1) as ahead:
        assert reading.wait(PATIENCE)
        monkeypatch.setattr(ahead._chunks, "get", empty)
    assert not ahead._thread.is_alive()


def test_what_is_no_file_has_its_attributes_too(tmp_path: Path) -> None:
    """By way of its directory, as it cannot be opened."""
    writer = TreeWriter(tmp_path)
    for kind in ("symlink", "fifo"):
        writer.node(kind.encode(), Look(0o644, 0, 0, 0, {b"trusted.x": b"1"}), kind, b"nowhere", 0)
        assert os.getxattr(tmp_path / kind, "trusted.x", follow_symlinks=False) == b"1"
    writer.discard()


def test_a_view_for_which_there_is_no_room_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = OverlaySnapshots(tmp_path / "snapshots", tmp_path / "file/tmp", "b1")
    with pytest.raises(DiskError, match="mounting a view: Not a directory"), store.view([tmp_path]):
        pass
