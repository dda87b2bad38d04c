"""Snapshots: what a step did, kept whole or not at all, and the layer that says the same."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import durable
from storage.durable import FileSystemSync
from storage.errors import DiskError, InputError
from storage.interfaces.layers import CheckedLayers, Look
from storage.layers.directory import DirectoryLayers
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below, mounts_below
from tests.storage.layers.test_directory import rich_tree
from tests.storage.layers.trees import TAR, diff_id, facts, file, gnu_untar, info, make_tar, names
from tests.waiting import PATIENCE
from tests.writeback import watch_flushes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


BASE = make_tar(
    info("./", mode=0o751, uid=3, gid=4), info("etc"), file("etc/gone", b"g"), file("etc/kept", b"k"),
    info("old"), file("old/a", b"a"), info("old/sub"), file("old/sub/b", b"b"),
    file("touched", b"t" * 1000, mode=0o4755),
)  # fmt: skip


class Root:
    """A root with both stores, and a base layer to stand on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshots = OverlaySnapshots(path / "snapshots", path / "tmp", "b1")
        self.layers: CheckedLayers = DirectoryLayers(path / "layers", path / "tmp", "b1")
        self.base = self.layer(BASE)

    def layer(self, tar: bytes) -> Path:
        self.layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
        return self.layers.lower(diff_id(tar))

    def packed(self, snapshot: str, clamp_mtime: int | None = None) -> bytes:
        out = io.BytesIO()
        self.snapshots.pack(snapshot, out.write, clamp_mtime=clamp_mtime)
        return out.getvalue()

    def leftovers(self) -> list[Path]:
        """But for what is kept mounted of layers that are images."""
        mounts = [point for point in mounts_below(self.path) if self.path / "mnt" not in point.parents]
        return [*mounts, *(self.path / "tmp").iterdir()]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    yield Root(tmp_path)
    detach_below(tmp_path)


def test_discard_drops_everything_also_when_busy(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [root.base])
    with (snapshot.root / "held").open("w"):
        snapshot.discard()
    snapshot.discard()
    assert root.leftovers() == []
    assert not root.snapshots.has("s")


def test_a_busy_snapshot_cannot_be_committed_but_discarded(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.overlay._PATIENCE", 0.05)
    snapshot = root.snapshots.begin("s", [root.base])
    with (snapshot.root / "held").open("w"), pytest.raises(DiskError, match="busy"):
        snapshot.commit()
    snapshot.discard()
    assert root.leftovers() == []


def test_I6_the_file_system_is_flushed_before_the_snapshot_is_seen_and_its_name_after(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = watch_flushes(monkeypatch, lambda: root.snapshots.has("s"))
    root.snapshots.begin("s", []).commit()
    assert [seen for seen, _ in flushes] == [False, True]
    assert flushes[-1][1] == str(root.path / "snapshots")


# ---------------------------------------------------------------- packing


def test_pack_then_unpack_gives_the_same_file_system(root: Root) -> None:
    """Real operations in a real mount; the layer over the base must look like the snapshot over the base."""
    snapshot = root.snapshots.begin("s", [root.base])
    rich_tree(snapshot.root)
    top = snapshot.root
    (top / "etc/gone").unlink()
    (top / "touched").unlink()
    shutil.rmtree(top / "old")
    (top / "old").symlink_to("etc")
    (top / "usr/.wh-not-a-whiteout").write_text("w")
    os.utime(top / "etc", ns=(5, 1_600_000_000_000_000_001))
    snapshot.commit()
    layer = root.layer(root.packed("s"))
    with root.snapshots.view([root.base, root.snapshots.lower("s")]) as view:
        as_made = facts(view)
    with root.snapshots.view([root.base, layer]) as view:
        assert facts(view) == as_made
    assert b"/old" in as_made
    assert b"/touched" not in as_made
    assert root.packed("s") == root.packed("s")


def test_gnu_tar_reads_the_layer_as_it_was_made(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [])
    rich_tree(snapshot.root)
    snapshot.commit()
    gnu_untar(root.packed("s"), root.path / "oracle")
    assert facts(root.path / "oracle") == facts(root.snapshots.lower("s"))


def test_sockets_and_foreign_attributes_are_left_out(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [root.base])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(snapshot.root / "sock"))
    (snapshot.root / "etc/kept").write_text("copied up")
    os.setxattr(snapshot.root / "etc/kept", "user.note", b"u")
    subprocess.run(["setcap", "cap_chown+ep", snapshot.root / "etc/kept"], check=True)
    snapshot.commit()
    with tarfile.open(fileobj=io.BytesIO(root.packed("s"))) as tar:
        assert tar.getnames() == ["etc", "etc/kept"]
        headers = tar.getmember("etc/kept").pax_headers
    assert {key for key in headers if "xattr" in key} == {
        "SCHILY.xattr.security.capability", "SCHILY.xattr.user.note",
    }  # fmt: skip


@pytest.mark.parametrize("name", [".wh.kept", "etc/.wh..wh..opq", ".wh.a directory/x"])
def test_a_name_that_deletes_in_a_layer_is_refused_when_the_step_ends(root: Root, name: str) -> None:
    snapshot = root.snapshots.begin("s", [root.base])
    path = snapshot.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(InputError, match=r"'/(etc/)?\.wh\.[^']*' cannot be in an image"):
        snapshot.commit()
    assert not root.snapshots.has("s")
    snapshot.discard()


def test_an_attribute_that_no_layer_can_name_is_refused(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [])
    (snapshot.root / "file").write_text("")
    os.setxattr(snapshot.root / "file", "user.a=b", b"c")
    snapshot.commit()
    with pytest.raises(InputError, match=r"'user\.a=b' of '/file' cannot be in an image"):
        root.packed("s")


# ---------------------------------------------------------------- shared flushes


def test_concurrent_commits_share_flushes_and_never_join_a_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on = threading.Event(), threading.Event()
    flushes: list[int] = []

    def slow(_fd: int) -> None:
        flushes.append(1)
        if len(flushes) == 1:
            running.set()
            assert go_on.wait(PATIENCE)

    monkeypatch.setattr(durable, "flush_file_system", slow)
    sync = FileSystemSync(tmp_path)
    watch = sync.watched()
    first = threading.Thread(target=watch)
    first.start()
    assert running.wait(PATIENCE)
    others = [threading.Thread(target=watch) for _ in range(10)]
    for thread in others:
        thread.start()
    while len(sync._state._waiters) < 10:  # type: ignore[attr-defined]
        threading.Event().wait(0.001)
    assert flushes == [1]
    go_on.set()
    for thread in [first, *others]:
        thread.join()
    watch.close()
    assert len(flushes) == sync.flushes == 2


def test_a_failed_flush_fails_everybody_who_waited_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    sync = FileSystemSync(tmp_path)
    monkeypatch.setattr(durable, "flush_file_system", fail)
    with pytest.raises(OSError, match="Input/output"), sync.watched() as watch:
        watch()
    monkeypatch.undo()
    with sync.watched() as watch:
        watch()


def test_many_snapshots_commit_at_once(root: Root) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            snapshot = root.snapshots.begin(f"s{number}", [root.base])
            (snapshot.root / "f").write_text(str(number))
            snapshot.commit()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [(root.snapshots.lower(f"s{n}") / "f").read_text() for n in range(12)] == [str(n) for n in range(12)]
    assert root.leftovers() == []
    assert root.snapshots.sync.flushes <= 13


def test_a_directory_in_the_place_of_a_link_is_not_compared_with_what_the_link_led_to(root: Root) -> None:
    """The link is the image's, so it may lead anywhere: to a directory of this machine."""
    host = root.path / "host"
    (host / "etc").mkdir(parents=True)
    os.utime(host / "etc", (1_600_000_000, 1_600_000_000))
    base = root.layer(make_tar(info("away", tarfile.SYMTYPE, linkname=str(host))))
    snapshot = root.snapshots.begin("step.1", [base])
    (snapshot.root / "away").unlink()
    (snapshot.root / "away/etc").mkdir(parents=True)
    os.utime(snapshot.root / "away/etc", (1_600_000_000, 1_600_000_000))
    snapshot.commit()
    assert names(root.snapshots.lower("step.1") / "away") == ["etc"]


def test_a_directory_that_was_made_anew_keeps_what_looks_like_the_old_one_in_it(root: Root) -> None:
    before = (root.base / "old/sub").stat()
    snapshot = root.snapshots.begin("step.1", [root.base])
    shutil.rmtree(snapshot.root / "old")
    (snapshot.root / "old/sub").mkdir(parents=True)
    (snapshot.root / "old/sub").chmod(stat.S_IMODE(before.st_mode))
    os.utime(snapshot.root / "old/sub", ns=(before.st_mtime_ns, before.st_mtime_ns))
    snapshot.commit()
    with root.snapshots.view([root.base, root.snapshots.lower("step.1")]) as view:
        assert names(view / "old") == ["sub"]
        assert names(view / "old/sub") == []


@pytest.mark.parametrize("damage", ["gone", "file"])
def test_a_disk_that_refuses_is_said_of_whatever_is_begun(tmp_path: Path, damage: str) -> None:
    (tmp_path / "tmp").write_text("no directory") if damage == "file" else (tmp_path / "tmp").symlink_to("nowhere")
    snapshots = OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    for begin in (lambda: snapshots.compose("s"), lambda: snapshots.begin("s", [])):
        with pytest.raises(DiskError, match="beginning a snapshot"):
            begin()


def test_a_tree_is_composed_and_gone_where_it_is_dropped(tmp_path: Path) -> None:
    snapshots = OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    writer = snapshots.compose("s")
    writer.directory(b"d", Look(0o755, 0, 0, 0))
    writer.discard()
    assert not snapshots.has("s")
    assert list((tmp_path / "tmp").iterdir()) == []
