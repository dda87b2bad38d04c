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
from storage.layers import DirectoryLayers
from storage.overlay import detach_below, mounts_below
from storage.snapshots import OverlaySnapshots
from tests.storage.test_layers import rich_tree
from tests.storage.trees import TAR, Member, diff_id, facts, file, gnu_untar, info, make_tar, members, names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


class Root:
    """A root with both stores, and a base layer to stand on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshots = OverlaySnapshots(path / "snapshots", path / "tmp", "b1")
        self.layers = DirectoryLayers(path / "layers", path / "tmp", "b1")
        self.base = self.layer(
            make_tar(info("./", mode=0o751, uid=3, gid=4), info("etc"), file("etc/gone", b"g"), file("etc/kept", b"k"),
                     info("old"), file("old/a", b"a"), info("old/sub"), file("old/sub/b", b"b"),
                     file("touched", b"t" * 1000, mode=0o4755))
        )  # fmt: skip

    def layer(self, tar: bytes) -> Path:
        self.layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
        return self.layers.lower(diff_id(tar))

    def packed(self, snapshot: str, clamp_mtime: int | None = None) -> bytes:
        out = io.BytesIO()
        self.snapshots.pack(snapshot, out.write, clamp_mtime=clamp_mtime)
        return out.getvalue()

    def leftovers(self) -> list[Path]:
        return [*mounts_below(self.path), *(self.path / "tmp").iterdir()]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    yield Root(tmp_path)
    detach_below(tmp_path)


def test_changes_are_kept_under_the_id_and_lowers_stay(root: Root) -> None:
    before = facts(root.base)
    snapshot = root.snapshots.begin("step.1", [root.base])
    (snapshot.root / "new").write_bytes(b"n" * 500)
    os.link(snapshot.root / "new", snapshot.root / "again")
    (snapshot.root / "etc/gone").unlink()
    assert not root.snapshots.has("step.1")
    assert snapshot.commit() == 500
    assert root.snapshots.has("step.1")
    assert root.leftovers() == []
    assert facts(root.base) == before
    with root.snapshots.view([root.base, root.snapshots.lower("step.1")]) as view:
        assert names(view) == ["again", "etc", "new", "old", "touched"]
        assert names(view / "etc") == ["kept"]
        with pytest.raises(OSError, match="Read-only"):
            (view / "x").touch()
    snapshot.discard()
    assert root.snapshots.has("step.1")
    assert root.leftovers() == []


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


def test_the_root_directory_looks_like_the_lower_it_covers(root: Root) -> None:
    for lowers, expected in (([root.base], (0o751, 3, 4)), ([], (0o755, 0, 0))):
        snapshot = root.snapshots.begin("s", lowers)
        status = snapshot.root.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == expected
        snapshot.discard()


def test_snapshots_stand_on_nothing_and_on_each_other(root: Root) -> None:
    lowers: list[Path] = []
    for number in range(4):
        snapshot = root.snapshots.begin(f"s{number}", lowers)
        (snapshot.root / f"f{number}").write_text("x")
        if number:
            (snapshot.root / f"f{number - 1}").unlink()
        snapshot.commit()
        lowers.append(root.snapshots.lower(f"s{number}"))
    with root.snapshots.view(lowers) as view:
        assert names(view) == ["f3"]
    with root.snapshots.view([]) as view:
        assert names(view) == []
    assert root.leftovers() == []


def test_a_failure_to_begin_leaves_nothing(root: Root) -> None:
    with pytest.raises(DiskError):
        root.snapshots.begin("s", [root.base, root.path / "missing"])
    with pytest.raises(DiskError), root.snapshots.view([root.path / "missing", root.base]):
        pass
    assert root.leftovers() == []


@pytest.mark.parametrize("snapshot", ["", ".", "..", "a/b", "../x", "-x", "a\nb", "x" * 300])
def test_ids_that_are_no_names_are_refused(root: Root, snapshot: str) -> None:
    for use in (root.snapshots.has, lambda name: root.snapshots.begin(name, [])):
        with pytest.raises(InputError):
            use(snapshot)


def test_I6_the_file_system_is_flushed_before_the_snapshot_is_seen(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    flush = durable._syncfs

    def watched(path: Path) -> None:
        seen.append(root.snapshots.has("s"))
        flush(path)

    monkeypatch.setattr(durable, "_syncfs", watched)
    root.snapshots.begin("s", []).commit()
    assert seen == [False]
    assert root.snapshots.has("s")


# ---------------------------------------------------------------- packing


def test_the_layer_of_a_step_says_what_the_step_did(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [root.base])
    top = snapshot.root
    (top / "etc/gone").unlink()
    shutil.rmtree(top / "old")
    (top / "old").mkdir()
    (top / "old/fresh").write_text("f")
    (top / "brand/new").mkdir(parents=True)
    (top / "touched").chmod(0o755)
    snapshot.commit()
    assert members(root.packed("s")) == [
        "brand", "brand/new", "etc", "etc/.wh.gone", "old", "old/.wh..wh..opq", "old/fresh", "touched",
    ]  # fmt: skip


@pytest.mark.parametrize("below", ["directory", "file", "whiteout", "nothing"])
def test_opaque_only_where_a_lower_has_the_directory(root: Root, below: str) -> None:
    made: dict[str, list[Member]] = {
        "directory": [info("x"), file("x/a")], "file": [file("x")], "whiteout": [file(".wh.x")], "nothing": [],
    }  # fmt: skip
    lower = root.layer(make_tar(info("keep"), *made[below]))
    snapshot = root.snapshots.begin("s", [lower])
    if (snapshot.root / "x").is_dir():
        shutil.rmtree(snapshot.root / "x")
    else:
        (snapshot.root / "x").unlink(missing_ok=True)
    (snapshot.root / "x/y").mkdir(parents=True)
    snapshot.commit()
    assert ("x/.wh..wh..opq" in members(root.packed("s"))) == (below == "directory")


def test_a_directory_in_which_something_only_was_is_no_change(root: Root) -> None:
    before = (root.base / "old/sub").stat()
    snapshot = root.snapshots.begin("s", [root.base])
    for name in ("old/sub", "etc"):
        (snapshot.root / name / "mount-point").mkdir()
        (snapshot.root / name / "mount-point").rmdir()
    (snapshot.root / "new").mkdir()
    os.utime(snapshot.root / "old/sub", ns=(before.st_atime_ns, before.st_mtime_ns))
    old = (root.base / "old").stat()
    os.utime(snapshot.root / "old", ns=(old.st_atime_ns, old.st_mtime_ns))
    snapshot.commit()
    assert names(root.snapshots.lower("s")) == ["etc", "new"]  # the time of etc has changed
    touched = root.snapshots.begin("t", [root.base])
    (touched.root / "old/sub").chmod(0o700)
    touched.commit()
    assert names(root.snapshots.lower("t")) == ["old"]


def test_the_root_is_in_the_layer_only_when_it_was_changed(root: Root) -> None:
    for name, mode in (("same", 0o751), ("changed", 0o700)):
        snapshot = root.snapshots.begin(name, [root.base])
        (snapshot.root / "f").touch()
        snapshot.root.chmod(mode)
        snapshot.commit()
    assert members(root.packed("same")) == ["f"]
    assert members(root.packed("changed")) == [".", "f"]
    with tarfile.open(fileobj=io.BytesIO(root.packed("changed"))) as tar:
        assert (tar.getmembers()[0].mode, tar.getmembers()[0].uid) == (0o700, 3)


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


def test_whiteouts_of_linked_inodes_are_each_a_whiteout(root: Root) -> None:
    lower = root.layer(make_tar(*(file(f"f{number}", b"x") for number in range(20))))
    snapshot = root.snapshots.begin("s", [lower])
    for number in range(20):
        (snapshot.root / f"f{number}").unlink()
    snapshot.commit()
    assert sorted(members(root.packed("s"))) == sorted(f".wh.f{number}" for number in range(20))


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


def test_clamped_times_make_the_same_bytes_whenever_it_ran(root: Root) -> None:
    for name in ("one", "two"):
        snapshot = root.snapshots.begin(name, [root.base])
        (snapshot.root / "etc/new").write_text("n")
        (snapshot.root / "etc/old").write_text("o")
        os.utime(snapshot.root / "etc/old", ns=(0, 1_500_000_000_500_000_000))
        (snapshot.root / "touched").unlink()
        snapshot.commit()
    assert root.packed("one") != root.packed("two")
    assert root.packed("one", 1_600_000_000) == root.packed("two", 1_600_000_000)
    with tarfile.open(fileobj=io.BytesIO(root.packed("one", 1_600_000_000))) as tar:
        assert {member.name: member.mtime for member in tar} == {
            "etc": 1_600_000_000, "etc/new": 1_600_000_000, "etc/old": 1_500_000_000.5, ".wh.touched": 0,
        }  # fmt: skip


def test_no_names_of_users_or_access_times(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [])
    (snapshot.root / "f").write_text("x")
    snapshot.commit()
    with tarfile.open(fileobj=io.BytesIO(root.packed("s"))) as tar:
        (member,) = tar.getmembers()
    assert (member.uname, member.gname) == ("", "")
    assert set(member.pax_headers) <= {"mtime"}


# ---------------------------------------------------------------- shared flushes


def test_concurrent_commits_share_flushes_and_never_join_a_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on = threading.Event(), threading.Event()
    flushes: list[int] = []

    def slow(path: Path) -> None:
        flushes.append(1)
        if len(flushes) == 1:
            running.set()
            assert go_on.wait(10)

    monkeypatch.setattr(durable, "_syncfs", slow)
    sync = FileSystemSync(tmp_path)
    first = threading.Thread(target=sync)
    first.start()
    assert running.wait(10)
    others = [threading.Thread(target=sync) for _ in range(10)]
    for thread in others:
        thread.start()
    while len(sync._state._waiters) < 10:  # type: ignore[attr-defined]
        threading.Event().wait(0.001)
    assert flushes == [1]
    go_on.set()
    for thread in [first, *others]:
        thread.join()
    assert len(flushes) == sync.flushes == 2


def test_a_failed_flush_fails_everybody_who_waited_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    sync = FileSystemSync(tmp_path)
    monkeypatch.setattr(durable, "_syncfs", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync()
    monkeypatch.undo()
    sync()


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


def test_an_opaque_root_hides_all_layers_below_it(root: Root) -> None:
    layer = root.layer(make_tar(file(".wh..wh..opq"), file("new/only", b"n")))
    over = root.layer(make_tar(file("over", b"o")))
    assert names(root.base)
    with root.snapshots.view([root.base, layer, over]) as view:
        assert names(view) == ["new", "over"]
    snapshot = root.snapshots.begin("s", [root.base, layer])
    assert names(snapshot.root) == ["new"]
    snapshot.discard()
