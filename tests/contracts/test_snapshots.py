"""What every SnapshotStore promises: what a step did is kept whole or not at all, and its layer says the same."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import DiskError, InputError
from storage.interfaces.layers import Look
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below
from tests.contracts.conftest import simulated_place
from tests.simulation.mounting import SimulatedMounts
from tests.simulation.syscalls import Os
from tests.storage.layers.test_snapshots import BASE, Root
from tests.storage.layers.trees import file, info, make_tar, members, names

os = Os()
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


class SimulatedRoot(Root):
    """The same on a simulated disk, where layers and what is composed are images."""

    def __init__(self, path: Path) -> None:
        self.mounts = SimulatedMounts(path / "mnt", "b1")
        self.path = path
        self.snapshots = OverlaySnapshots(
            path / "snapshots", path / "tmp", "b1", mounts=self.mounts, as_images=lambda: True
        )
        self.layers = ErofsLayers(path / "layers", path / "tmp", "b1", self.mounts)
        self.base = self.layer(BASE)


def remove(directory: Path) -> None:
    """With all that is in it."""
    for path in directory.iterdir():
        if path.is_dir():
            remove(path)
        else:
            path.unlink()
    directory.rmdir()


def looks(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything below, as stat has it, and the content of files."""
    found: dict[str, tuple[object, ...]] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[path.name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, data)
    return found


@pytest.fixture(params=["overlay", "simulated"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    if request.param == "overlay":
        yield Root(tmp_path)
        detach_below(tmp_path)
    else:
        with simulated_place() as place:
            yield SimulatedRoot(place)


def test_changes_are_kept_under_the_id_and_lowers_stay(root: Root) -> None:
    before = looks(root.base)
    snapshot = root.snapshots.begin("step.1", [root.base])
    (snapshot.root / "new").write_bytes(b"n" * 500)
    os.link(snapshot.root / "new", snapshot.root / "again")
    (snapshot.root / "etc/gone").unlink()
    assert not root.snapshots.has("step.1")
    assert snapshot.commit() == 500
    assert root.snapshots.has("step.1")
    assert root.leftovers() == []
    assert looks(root.base) == before
    with root.snapshots.view([root.base, root.snapshots.lower("step.1")]) as view:
        assert names(view) == ["again", "etc", "new", "old", "touched"]
        assert names(view / "etc") == ["kept"]
        with pytest.raises(OSError, match="Read-only"):
            (view / "x").touch()
    snapshot.discard()
    assert root.snapshots.has("step.1")
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


def test_the_layer_of_a_step_says_what_the_step_did(root: Root) -> None:
    snapshot = root.snapshots.begin("s", [root.base])
    top = snapshot.root
    (top / "etc/gone").unlink()
    remove(top / "old")
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
    made = {"directory": [info("x"), file("x/a")], "file": [file("x")], "whiteout": [file(".wh.x")], "nothing": []}
    lower = root.layer(make_tar(info("keep"), *made[below]))
    snapshot = root.snapshots.begin("s", [lower])
    if (snapshot.root / "x").is_dir():
        remove(snapshot.root / "x")
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


def test_whiteouts_of_linked_inodes_are_each_a_whiteout(root: Root) -> None:
    lower = root.layer(make_tar(*(file(f"f{number}", b"x") for number in range(20))))
    snapshot = root.snapshots.begin("s", [lower])
    for number in range(20):
        (snapshot.root / f"f{number}").unlink()
    snapshot.commit()
    assert sorted(members(root.packed("s"))) == sorted(f".wh.f{number}" for number in range(20))


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


def test_an_opaque_root_hides_all_layers_below_it(root: Root) -> None:
    layer = root.layer(make_tar(file(".wh..wh..opq"), file("new/only", b"n")))
    over = root.layer(make_tar(file("over", b"o")))
    assert names(root.base)
    with root.snapshots.view([root.base, layer, over]) as view:
        assert names(view) == ["new", "over"]
    snapshot = root.snapshots.begin("s", [root.base, layer])
    assert names(snapshot.root) == ["new"]
    snapshot.discard()


# ---------------------------------------------------------------- composing


def compose(root: Root, name: str) -> int:
    """A layer with a bit of everything; returns the bytes of its files."""
    look = Look(0o640, 5, 6, 1_600_000_000_123_456_789, {b"user.note": b"n"})
    writer = root.snapshots.compose(name)
    writer.directory(b"old", Look(0o711, 1, 2, 3, {b"trusted.overlay.opaque": b"y"}))
    writer.file(b"old/new", look, 6, [b"abc", memoryview(b"def")])
    writer.link(b"again", b"old/new")
    writer.node(b"link", Look(0o777, 0, 0, 4), "symlink", b"old/new", 0)
    return writer.commit()


def test_what_is_composed_is_what_is_seen_and_packed(root: Root) -> None:
    assert compose(root, "c") == 6
    with root.snapshots.view([root.base, root.snapshots.lower("c")]) as view:
        assert names(view) == ["again", "etc", "link", "old", "touched"]
        assert names(view / "old") == ["new"]
        assert (view / "link").read_bytes() == b"abcdef"
        status, other = (view / "old/new").stat(), (view / "again").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 5, 6)
        assert status.st_mtime_ns == 1_600_000_000_123_456_789
        assert (status.st_ino, status.st_nlink) == (other.st_ino, 2)
        assert os.getxattr(view / "old/new", "user.note") == b"n"
        assert stat.S_IMODE((view / "old").stat().st_mode) == 0o711
    assert sorted(members(root.packed("c"))) == ["again", "link", "old", "old/.wh..wh..opq", "old/new"]
    assert root.leftovers() == []


def test_what_is_discarded_leaves_nothing(root: Root) -> None:
    writer = root.snapshots.compose("c")
    writer.file(b"f", Look(0o644, 0, 0, 1), 1, [b"x"])
    writer.discard()
    writer.discard()
    assert not root.snapshots.has("c")
    assert root.leftovers() == []


def test_I8_damage_to_a_snapshot_is_told(root: Root) -> None:
    compose(root, "c")
    snapshot = root.snapshots.begin("s", [root.base])
    (snapshot.root / "f").write_bytes(b"x")
    snapshot.commit()
    for name in ("c", "s"):
        kept = root.path / "snapshots" / f"{name}.erofs"
        if not kept.exists():
            kept = root.path / "snapshots" / name / "fs" / ("f" if name == "s" else "old/new")
        kept.write_bytes(kept.read_bytes() + b"more")
    again = OverlaySnapshots(root.path / "snapshots", root.path / "tmp", "b2", mounts=root.snapshots._mounts)
    for name in ("c", "s"):
        assert again.check(name) != ""
        again.discard(name)
        assert not again.has(name)
        assert again.check(name) == ""
