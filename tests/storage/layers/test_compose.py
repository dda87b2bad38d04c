"""What every LayerWriter promises, for each of them: what is written is what is mounted, and what is packed."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from storage import durable
from storage.errors import DiskError, InputError
from storage.interfaces.layers import LayerWriter, Look, SnapshotStore
from storage.layers.compose import TreeWriter
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below, mounts_below
from tests.storage.layers.trees import facts, gnu_untar, names
from tests.writeback import watch_flushes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and devices need root")

STORES: dict[str, Callable[[Path], SnapshotStore]] = {
    "directory": lambda root: OverlaySnapshots(root / "snapshots", root / "tmp", "b1"),
    "erofs": lambda root: OverlaySnapshots(
        root / "snapshots", root / "tmp", "b1", mounts=ErofsMounts(root / "mnt", "b1"), as_images=lambda: True
    ),
}
NOW = 1_700_000_000_123_456_789
DIR = Look(0o755, 0, 0, NOW)
FILE = Look(0o644, 0, 0, NOW + 1)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ODD = [b"l\xe4tin\xff", "grün 雪".encode(), b"new\nline", b"n" * 255, b"-rf", b".wh-no-whiteout", b"back\\slash"]


@dataclass(frozen=True)
class Kit:
    """A store in a root of its own."""

    path: Path
    store: SnapshotStore

    def tar(self, clamp_mtime: int | None = None) -> bytes:
        out = io.BytesIO()
        self.store.pack("s", out.write, clamp_mtime=clamp_mtime)
        return out.getvalue()

    def leftovers(self) -> list[Path]:
        """But for what the store keeps mounted of layers that are images."""
        mounts = [point for point in mounts_below(self.path) if self.path / "mnt" not in point.parents]
        return [*mounts, *(self.path / "tmp").iterdir()]


@pytest.fixture(params=STORES)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    yield Kit(tmp_path, STORES[request.param](tmp_path))
    detach_below(tmp_path)


def _put(writer: LayerWriter, path: bytes, data: bytes = b"", look: Look = FILE) -> None:
    writer.file(path, look, len(data), [data] if data else [])


def _rich(writer: LayerWriter) -> int:
    """One of everything that a layer holds; returns the bytes of its files."""
    writer.directory(b"usr", Look(0o755, 0, 0, NOW, {b"user.dir": b"on a directory"}))
    writer.directory(b"usr/lib", DIR)
    big = os.urandom((2 << 20) + 17)
    writer.file(b"usr/lib/big", FILE, len(big), [big[: 1 << 20], memoryview(big)[1 << 20 :]])
    _put(writer, b"usr/lib/empty", look=Look(0o600, 0, 0, NOW, {b"trusted.mine": b"t", b"user.note": b"\0\xff=\n"}))
    writer.link(b"zz-hard", b"usr/lib/big")
    writer.node(b"link", Look(0o777, 12, 34, NOW + 5), "symlink", b"/usr/lib/nowhere", 0)
    writer.node(b"odd-link", Look(0o777, 0, 0, 0), "symlink", b"\xff" * 300, 0)
    writer.link(b"link-of-link", b"link")
    writer.node(b"pipe", Look(0o622, 1, 2, NOW), "fifo", b"", 0)
    writer.node(b"zero", Look(0o666, 0, 0, NOW), "char", b"", os.makedev(1, 5))
    writer.node(b"disk", Look(0o4660, 0, 6, NOW), "block", b"", os.makedev(259, 70000))
    for name in ODD:
        _put(writer, name, name)
    for number, mode in enumerate((0o4755, 0o2755, 0o1777, 0o000, 0o6111, 0o666)):
        look = Look(mode, number, 2 * number, NOW + number, {b"security.capability": CAPABILITY})
        _put(writer, b"mode%d" % number, b"m", look)
    for number, mode in enumerate((0o1777, 0o2775, 0o700, 0o000)):
        writer.directory(b"dir%d" % number, Look(mode, number * 1000, 50 + number, 1_000_000_001 + number))
        _put(writer, b"dir%d/inside" % number, b"i")
        writer.directory(b"dir%d/below" % number, DIR)
    _put(writer, b"owned", b"o", Look(0o640, 3_000_000_000, 4_000_000_000, 1))
    return len(big) + sum(map(len, ODD)) + 6 + 4 + 1


def _expected(top: Path) -> None:
    """The tree of `_rich` as `facts` sees it must say this much."""
    found = facts(top)
    assert found[b"/usr/lib/big"][4] == found[b"/zz-hard"][4] != found[b"/owned"][4]
    assert found[b"/link-of-link"][4] == found[b"/link"][4]
    assert found[b"/link"][1:4] == (12, 34, b"/usr/lib/nowhere")
    assert found[b"/link"][5] == NOW + 5
    assert found[b"/odd-link"][3] == b"\xff" * 300
    assert found[b"/pipe"][:3] == (oct(stat.S_IFIFO | 0o622), 1, 2)
    assert found[b"/zero"][3] == os.makedev(1, 5)
    assert (found[b"/disk"][0], found[b"/disk"][3]) == (oct(stat.S_IFBLK | 0o4660), os.makedev(259, 70000))
    assert found[b"/usr"][6] == {"user.dir": b"on a directory"}
    assert found[b"/usr/lib/empty"][6] == {"trusted.mine": b"t", "user.note": b"\0\xff=\n"}
    assert found[b"/owned"][1:3] == (3_000_000_000, 4_000_000_000)
    assert {name[1:] for name in found if name[1:] in ODD} == set(ODD)
    for number, mode in enumerate((0o4755, 0o2755, 0o1777, 0o000, 0o6111, 0o666)):
        made = found[b"/mode%d" % number]
        assert made[:3] == (oct(stat.S_IFREG | mode), number, 2 * number)
        assert made[5:] == (NOW + number, {"security.capability": CAPABILITY})
    for number, mode in enumerate((0o1777, 0o2775, 0o700, 0o000)):
        made = found[b"/dir%d" % number]
        assert made[:3] == (oct(stat.S_IFDIR | mode), number * 1000, 50 + number)
        assert made[5] == 1_000_000_001 + number
        assert found[b"/dir%d/inside" % number][:3] == (oct(stat.S_IFREG | 0o644), 0, 0)
        assert found[b"/dir%d/below" % number][:3] == (oct(stat.S_IFDIR | 0o755), 0, 0)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_everything_a_layer_holds_is_mounted_and_packed_as_written(kit: Kit, umask: int) -> None:
    old = os.umask(umask)
    try:
        writer = kit.store.compose("s")
        size = _rich(writer)
        assert not kit.store.has("s")
        assert writer.commit() == size
        writer.discard()
    finally:
        os.umask(old)
    assert kit.store.has("s")
    with kit.store.view([kit.store.lower("s")]) as view:
        _expected(view)
        mounted = facts(view)
    gnu_untar(kit.tar(), kit.path / "oracle")
    assert facts(kit.path / "oracle") == mounted
    assert kit.tar() == kit.tar()
    assert kit.leftovers() == []


def test_the_layer_is_the_one_that_packing_the_same_tree_gives(kit: Kit) -> None:
    """The first name carries the data of a link."""
    other = OverlaySnapshots(kit.path / "other", kit.path / "other-tmp", "b1")
    snapshot = other.begin("s", [])
    writer = kit.store.compose("s")
    writer.directory(b"a", DIR)
    _put(writer, b"a/one", b"1" * 1000)
    writer.link(b"a/two", b"a/one")
    writer.node(b"a/zlink", Look(0o777, 0, 0, NOW), "symlink", b"one", 0)
    _put(writer, b"a.txt", b"")
    writer.commit()
    top = snapshot.root
    (top / "a").mkdir()
    (top / "a.txt").touch()
    (top / "a/one").write_bytes(b"1" * 1000)
    (top / "a/two").hardlink_to(top / "a/one")
    (top / "a/zlink").symlink_to("one")
    for path, time in (("a.txt", NOW + 1), ("a/one", NOW + 1), ("a/zlink", NOW), ("a", NOW)):
        os.utime(top / path, ns=(time, time), follow_symlinks=False)
    snapshot.commit()
    packed = io.BytesIO()
    other.pack("s", packed.write)
    assert kit.tar() == packed.getvalue()


def test_times_later_than_asked_are_clamped_when_packed(kit: Kit) -> None:
    writer = kit.store.compose("s")
    _put(writer, b"new", look=Look(0o644, 0, 0, NOW))
    _put(writer, b"old", look=Look(0o644, 0, 0, 1_500_000_000_500_000_000))
    writer.commit()
    with tarfile.open(fileobj=io.BytesIO(kit.tar(1_600_000_000))) as tar:
        assert {member.name: member.mtime for member in tar} == {"new": 1_600_000_000, "old": 1_500_000_000.5}


def test_an_empty_layer_is_a_layer(kit: Kit) -> None:
    assert kit.store.compose("s").commit() == 0
    with kit.store.view([kit.store.lower("s")]) as view:
        assert names(view) == []
    assert kit.tar() == bytes(1024)


@pytest.mark.parametrize("said", [True, False])
def test_the_root_is_in_the_layer_when_it_was_written(kit: Kit, said: bool) -> None:
    """Else it looks as the layers below have it."""
    below = kit.store.compose("below")
    below.directory(b"", Look(0o751, 3, 4, NOW))
    below.commit()
    writer = kit.store.compose("s")
    if said:
        writer.directory(b"", Look(0o1777, 5, 6, NOW))
    _put(writer, b"f")
    writer.commit()
    with kit.store.view([kit.store.lower("below"), kit.store.lower("s")]) as view:
        info = view.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == ((0o1777, 5, 6) if said else (0o751, 3, 4))
    with tarfile.open(fileobj=io.BytesIO(kit.tar())) as tar:
        assert tar.getnames() == ([".", "f"] if said else ["f"])


def test_an_opaque_directory_hides_what_lies_below_it(kit: Kit) -> None:
    """A step that makes a directory anew where it removed one says so by overlay's own mark among the attributes."""
    below = kit.store.compose("below")
    below.directory(b"d", DIR)
    _put(below, b"d/old")
    below.commit()
    writer = kit.store.compose("s")
    writer.directory(b"d", Look(0o755, 0, 0, NOW, {b"trusted.overlay.opaque": b"y"}))
    _put(writer, b"d/new")
    writer.commit()
    with kit.store.view([kit.store.lower("below"), kit.store.lower("s")]) as view:
        assert names(view / "d") == ["new"]
    with tarfile.open(fileobj=io.BytesIO(kit.tar())) as tar:
        assert tar.getnames() == ["d", "d/.wh..wh..opq", "d/new"]


def test_parents_come_first_and_may_be_left_and_entered_again(kit: Kit) -> None:
    writer = kit.store.compose("s")
    for number in range(200):  # more than stay open
        writer.directory(b"d%d" % number, Look(0o2755, 0, 99, NOW + number))
        writer.directory(b"d%d/sub" % number, DIR)
    for number in reversed(range(200)):
        _put(writer, b"d%d/sub/f" % number, b"x")
        _put(writer, b"d%d/f" % number, b"y")
        writer.link(b"d%d/again" % (199 - number), b"d%d/f" % max(number, 100))
    assert writer.commit() == 400
    with kit.store.view([kit.store.lower("s")]) as view:
        found = facts(view)
    for number in range(200):
        assert found[b"/d%d" % number][5] == NOW + number
        assert found[b"/d%d/sub/f" % number][1:3] == (0, 0)
    assert found[b"/d0/again"][4] == found[b"/d199/f"][4]


def test_paths_longer_than_the_kernel_takes_at_once(kit: Kit) -> None:
    writer = kit.store.compose("s")
    path = b""
    for number in range(40):
        path = (path + b"/" if path else b"") + b"%02d" % number + b"d" * 198
        writer.directory(path, DIR)
    _put(writer, path + b"/bottom", b"deep")
    writer.commit()
    with kit.store.view([kit.store.lower("s")]) as view:
        fd = os.open(view, os.O_RDONLY)
        for part in path.split(b"/"):
            below = os.open(part, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        try:
            assert os.stat("bottom", dir_fd=fd).st_size == 4
        finally:
            os.close(fd)


def test_a_directory_of_very_many_entries(kit: Kit) -> None:
    writer = kit.store.compose("s")
    writer.directory(b"many", DIR)
    for number in range(20_000):
        writer.node(b"many/%06d" % number, Look(0o777, 0, 0, NOW), "symlink", b"x", 0)
    writer.commit()
    with kit.store.view([kit.store.lower("s")]) as view:
        assert len(list(os.scandir(view / "many"))) == 20_000
        assert (view / "many/017777").readlink() == Path("x")


def test_stretches_of_zeros_are_read_back(kit: Kit) -> None:
    zeros = bytes(1 << 20)
    writer = kit.store.compose("s")
    for name, pieces in {b"end": [b"x", zeros], b"middle": [zeros, b"x"], b"all": [zeros, zeros]}.items():
        writer.file(name, FILE, sum(map(len, pieces)), pieces)
    writer.commit()
    with kit.store.view([kit.store.lower("s")]) as view:
        assert (view / "end").read_bytes() == b"x" + zeros
        assert (view / "middle").read_bytes() == zeros + b"x"
        assert (view / "all").read_bytes() == zeros + zeros


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("size", [0, 1, 5, 7, 1 << 20])
def test_another_size_than_said_is_refused_and_nothing_is_kept(kit: Kit, size: int) -> None:
    writer = kit.store.compose("s")
    with pytest.raises(ValueError, match="file"):
        writer.file(b"file", FILE, size, [b"abc", memoryview(b"def")])
    writer.discard()
    assert not kit.store.has("s")
    assert kit.leftovers() == []


def test_what_the_content_raises_comes_through(kit: Kit) -> None:
    def broken(error: Exception) -> Iterator[bytes]:
        yield b"abc"
        raise error

    for error in (InputError("changed"), OSError(5, "read error")):
        writer = kit.store.compose("s")
        with pytest.raises(type(error)) as caught:
            writer.file(b"file", FILE, 6, broken(error))
        assert caught.value is error
        writer.discard()
    assert not kit.store.has("s")
    assert kit.leftovers() == []


def test_discard_drops_everything_and_is_harmless_afterwards(kit: Kit) -> None:
    writer = kit.store.compose("s")
    _rich(writer)
    writer.discard()
    writer.discard()
    assert not kit.store.has("s")
    assert kit.leftovers() == []
    writer = kit.store.compose("s")
    _put(writer, b"f", b"x")
    writer.commit()
    writer.discard()
    assert kit.store.has("s")
    with kit.store.view([kit.store.lower("s")]) as view:
        assert (view / "f").read_bytes() == b"x"


def test_I6_the_layer_is_durable_before_it_is_seen_and_its_name_before_it_is_told(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = watch_flushes(monkeypatch, lambda: kit.store.has("s"))
    writer = kit.store.compose("s")
    _put(writer, b"f", b"x")
    assert flushes == []
    writer.commit()
    assert not flushes[0][0]
    assert flushes[-1] == (True, str(kit.path / "snapshots"))


def test_a_flush_that_fails_publishes_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(what: Path | int) -> None:
        raise OSError(5, "Input/output error")

    writer = kit.store.compose("s")
    _put(writer, b"f", b"x")
    monkeypatch.setattr(durable, "flush_file_system", fail)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskError, match="Input/output"):
        writer.commit()
    writer.discard()
    assert not kit.store.has("s")
    assert kit.leftovers() == []


@pytest.mark.parametrize("snapshot", ["", "..", "a/b", "-x"])
def test_ids_that_are_no_names_are_refused(kit: Kit, snapshot: str) -> None:
    with pytest.raises(InputError):
        kit.store.compose(snapshot)


# ---------------------------------------------------------------- into a directory that is there


def test_an_existing_directory_is_written_into(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    top = tmp_path / "top"
    (top / "dir").mkdir(parents=True)
    (top / "dir/kept").write_text("kept")
    (top / "file").symlink_to(outside)
    (top / "was-link").symlink_to(tmp_path)
    os.chown(top, 0, 77)
    top.chmod(0o2775)
    writer = TreeWriter(top)
    writer.directory(b"dir", Look(0o700, 1, 2, NOW))
    writer.directory(b"was-link", DIR)
    _put(writer, b"file", b"new")
    _put(writer, b"fresh", b"new")
    writer.link(b"dir/link", b"file")
    _put(writer, b"was-link/outside", b"inside")
    assert writer.commit() == 12
    writer.discard()
    assert outside.read_text() == "untouched"
    assert (top / "file").read_text() == "new"
    assert (top / "fresh").stat().st_gid == 0
    assert (top / "was-link/outside").read_text() == "inside"
    assert (top / "dir/kept").read_text() == "kept"
    assert stat.S_IMODE((top / "dir").stat().st_mode) == 0o700


def test_a_file_does_not_take_the_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    writer = TreeWriter(tmp_path)
    with pytest.raises(DiskError, match="writing '/dir': a directory is there"):
        _put(writer, b"dir", b"x")
    writer.discard()
    with pytest.raises(DiskError, match="opening"):
        TreeWriter(tmp_path / "missing")


def test_a_link_that_took_the_place_of_a_new_fifo_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the directory of an export could change the mode of any file of this machine."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.touch(mode=0o600)
    out.mkdir()
    chown = os.chown

    def swap(*arguments: Any, **more: Any) -> None:
        chown(*arguments, **more)
        (out / "pipe").unlink()
        (out / "pipe").symlink_to(victim)

    monkeypatch.setattr(os, "chown", swap)
    writer = TreeWriter(out)
    with pytest.raises(DiskError, match="something else took its place"):
        writer.node(b"pipe", Look(0o4777, 0, 0, NOW), "fifo", b"", 0)
    writer.discard()
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_the_order_of_writing_is_none_of_the_layers(kit: Kit) -> None:
    hidden = Look(0o700, 1, 2, NOW, {b"trusted.overlay.opaque": b"y", b"user.a": b"1"})
    content = os.urandom((2 << 20) + 5)
    writer = kit.store.compose("s")
    writer.directory(b"", DIR)
    writer.directory(b"d", hidden)
    writer.directory(b"d/in", DIR)
    writer.node(b"z", Look(0o777, 0, 0, NOW), "symlink", b"d", 0)
    writer.file(b"d/in/z", replace(FILE, xattrs={b"user.b": b"2", b"user.a": b"1"}), len(content), [content])
    _put(writer, b"d/-", b"before its mark")
    _put(writer, b"d-", b"behind what is in d")
    writer.link(b"d/in/a", b"d/in/z")
    writer.link(b"a", b"z")
    _put(writer, b".hidden")
    writer.link(b"zz", b"d/in/z")
    size = writer.commit()
    assert size == len(content) + 34
    with tarfile.open(fileobj=io.BytesIO(kit.tar())) as tar:
        members = {member.name: member for member in tar}
        assert list(members) == [
            ".", ".hidden", "a", "d", "d/.wh..wh..opq", "d/-", "d/in", "d/in/a", "d/in/z", "d-", "z", "zz",
        ]  # fmt: skip
        assert [members[name].linkname for name in ("a", "d/in/z", "z", "zz")] == ["d", "d/in/a", "a", "d/in/a"]
        assert (members["a"].type, members["z"].type) == (tarfile.SYMTYPE, tarfile.LNKTYPE)
        assert list(members["d/in/a"].pax_headers)[-2:] == ["SCHILY.xattr.user.a", "SCHILY.xattr.user.b"]
        found = tar.extractfile("d/in/a")
        assert found is not None
        assert found.read() == content
    assert not kit.leftovers()
