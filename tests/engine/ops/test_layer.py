"""The layer itself: what of the base is in it and how it looks, what it hides, and in which order it is written."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.graph import Copy, InlineFile
from engine.ops.copy import copy_layer, directory_layer
from engine.ops.layer import Below, Tree
from engine.ops.rootfs import RootDir
from engine.ops.select import select
from storage.interfaces.layers import LayerWriter, Look
from storage.layers.compose import TreeWriter
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NOW = 1_700_000_000_123_456_789
OLD = 1_500_000_000_987_654_321
ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")  # default ACL, as mode 755


@dataclass
class World:
    """A context, a base and a store of snapshots; steps stand on the base and on each other."""

    path: Path
    lowers: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ctx, self.base = self.path / "ctx", self.path / "base"
        self.ctx.mkdir()
        self.base.mkdir()
        self.lowers.append(self.base)
        self.store = OverlaySnapshots(self.path / "snapshots", self.path / "tmp", "b1")

    def step(self, work: Callable[[Path, Callable[[], LayerWriter]], int]) -> int:
        name = f"s{len(self.lowers)}"
        with self.store.view(self.lowers) as base:
            size = work(base, lambda: self.store.compose(name))
        self.lowers.append(self.store.lower(name))
        return size

    def copy(self, *paths: str, source: Path | None = None, **fields: object) -> int:
        *sources, dest = paths
        op = Copy(tuple(sources), dest, **fields)  # type: ignore[arg-type]
        tree = source or self.ctx
        selection = select(op, tree, (), hash_files=op.from_context)
        return self.step(lambda base, begin: copy_layer(op, selection, tree, base, begin, now_ns=NOW))

    def packed(self) -> bytes:
        out = io.BytesIO()
        self.store.pack(f"s{len(self.lowers) - 1}", out.write)
        return out.getvalue()

    def members(self) -> dict[str, tarfile.TarInfo]:
        with tarfile.open(fileobj=io.BytesIO(self.packed())) as tar:
            return {member.name: member for member in tar}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path)
    detach_below(tmp_path)


def _archive(path: Path, *members: tuple[str, bytes, bytes | str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = kind, 1_500_000_000, 0o755 if kind == tarfile.DIRTYPE else 0o640
            data = text if isinstance(text, bytes) else b""
            info.linkname = text if isinstance(text, str) else ""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


DIR, FILE, LINK, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE

# ---------------------------------------------------------------- what of the base is in it


def test_directories_of_the_base_on_the_way_are_in_the_layer_as_the_base_has_them(world: World) -> None:
    for path, mode, owner in (("var", 0o711, 3), ("var/tmp", 0o1777, 4), ("var/tmp/shared", 0o2775, 5)):
        (world.base / path).mkdir()
        os.chown(world.base / path, owner, owner + 1)
        (world.base / path).chmod(mode)
    os.setxattr(world.base / "var", "user.note", b"x")
    os.setxattr(world.base / "var/tmp/shared", "system.posix_acl_default", ACL)
    (world.base / "var/other").mkdir()
    for path in ("var/tmp/shared", "var/tmp", "var"):
        os.utime(world.base / path, ns=(OLD, OLD))
    (world.ctx / "f").write_text("new")
    assert world.copy("f", "/var/tmp/shared/") == 3
    found = world.members()
    assert list(found) == ["var", "var/tmp", "var/tmp/shared", "var/tmp/shared/f"]
    facts = {name: (member.mode, member.uid, member.gid) for name, member in found.items()}
    assert facts == {
        "var": (0o711, 3, 4), "var/tmp": (0o1777, 4, 5), "var/tmp/shared": (0o2775, 5, 6),
        "var/tmp/shared/f": (0o644, 0, 0),
    }  # fmt: skip
    assert found["var"].pax_headers["SCHILY.xattr.user.note"] == "x"
    assert "SCHILY.xattr.system.posix_acl_default" in found["var/tmp/shared"].pax_headers
    with world.store.view(world.lowers) as view:
        assert {(view / path).stat().st_mtime_ns for path in ("var", "var/tmp", "var/tmp/shared")} == {OLD}


def test_the_same_copy_gives_the_same_bytes_whenever_it_runs(world: World) -> None:
    (world.base / "etc").mkdir()
    (world.ctx / "f").write_text("x")
    world.copy("f", "/etc/")
    first = world.packed()
    world.lowers.pop()
    (world.path / "snapshots/s1").rename(world.path / "first")
    world.copy("f", "/etc/")
    assert world.packed() == first


def test_what_is_only_looked_at_is_not_in_the_layer(world: World) -> None:
    for path in ("a/b", "real/there"):
        (world.base / path).mkdir(parents=True)
    (world.base / "a/link").symlink_to("/real/there")
    (world.ctx / "f").write_text("x")
    world.copy("f", "/a/link/")
    assert list(world.members()) == ["real", "real/there", "real/there/f"]
    world.copy("nothing*", "/a/b/")
    assert list(world.members()) == []
    world.step(lambda base, begin: directory_layer("/a/b", base, begin, now_ns=NOW))
    assert list(world.members()) == []


def test_the_root_is_in_no_layer(world: World) -> None:
    world.base.chmod(0o751)
    (world.ctx / "f").write_text("x")
    world.copy(".", "/")
    assert list(world.members()) == ["f"]
    with world.store.view(world.lowers) as view:
        assert stat.S_IMODE(view.stat().st_mode) == 0o751


def test_an_existing_directory_that_is_copied_over_keeps_the_attributes_it_has(world: World) -> None:
    (world.base / "d/sub").mkdir(parents=True)
    os.setxattr(world.base / "d/sub", "user.base", b"b")
    stage = world.path / "stage"
    (stage / "d/sub").mkdir(parents=True)
    (stage / "d/sub").chmod(0o700)
    os.setxattr(stage / "d/sub", "user.stage", b"s")
    world.copy("d", "/d", source=stage, from_context=False)
    with world.store.view(world.lowers) as view:
        assert sorted(os.listxattr(view / "d/sub")) == ["user.base", "user.stage"]
        assert stat.S_IMODE((view / "d/sub").stat().st_mode) == 0o700


# ---------------------------------------------------------------- what it says


def test_the_layer_is_what_a_mounted_overlay_would_have_kept(world: World) -> None:
    """Oracle: the same entries written into a writable mount, whose upper is then walked and packed."""
    stage = world.path / "stage"
    (stage / "d/empty").mkdir(parents=True)
    for number in range(30):
        (stage / f"d/f{number}").write_bytes(os.urandom(number * 1000))
    (stage / os.fsdecode(b"d/\xff\nodd")).write_text("odd")
    (stage / "d/big").write_bytes(os.urandom((1 << 20) + 1))
    (stage / "d/setuid").write_text("x")
    (stage / "d/setuid").chmod(0o4711)
    os.link(stage / "d/f7", stage / "d/empty/again")
    (stage / "d/link").symlink_to("f3")
    os.mkfifo(stage / "d/fifo")
    (world.base / "d").mkdir(mode=0o710)
    (world.base / "d/f1").write_text("replaced")
    (world.base / "d/f2").symlink_to("nowhere")
    _archive(stage / "a.tar", ("x", DIR, ""), ("x/one", FILE, b"1"), ("x/two", HARD, "x/one"), ("d/f2", FILE, b"2"))
    op = Copy(("d", "a.tar"), "/d/", from_context=False, unpack=True, files=(InlineFile("EOF", "text"),))
    selection = select(op, stage, (), hash_files=False)
    world.step(lambda base, begin: copy_layer(op, selection, stage, base, begin, now_ns=NOW))
    composed = world.packed()
    snapshot = world.store.begin("oracle", [world.base])
    with world.store.view([world.base]) as base:
        copy_layer(op, selection, stage, base, lambda: TreeWriter(snapshot.root), now_ns=NOW)
    snapshot.commit()
    mounted = io.BytesIO()
    world.store.pack("oracle", mounted.write)
    assert composed == mounted.getvalue()


def test_the_first_name_of_a_hard_link_in_the_layer_carries_the_data(world: World) -> None:
    stage = world.path / "stage"
    (stage / "d/a").mkdir(parents=True)
    (stage / "d/z").write_text("data")
    os.link(stage / "d/z", stage / "d/a/first")
    assert world.copy("d", "/d", source=stage, from_context=False) == 4
    found = world.members()
    assert (found["d/a/first"].type, found["d/z"].type, found["d/z"].linkname) == (FILE, HARD, "d/a/first")


def test_sources_merge_and_the_last_one_wins(world: World) -> None:
    for name in ("one/same", "one/sub/a", "two/same", "two/sub/b"):
        (world.ctx / name).parent.mkdir(parents=True, exist_ok=True)
        (world.ctx / name).write_text(name)
    assert world.copy("one", "two", "/d/") == len("two/sameone/sub/atwo/sub/b")
    with world.store.view(world.lowers) as view:
        assert (view / "d/same").read_text() == "two/same"
        assert sorted(path.name for path in (view / "d/sub").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("order", [("file", "dir"), ("dir", "file")])
def test_sources_that_disagree_what_a_name_is_are_refused(world: World, order: tuple[str, str]) -> None:
    (world.ctx / "file").mkdir()
    (world.ctx / "file/x").write_text("a file")
    (world.ctx / "dir/x/y").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot replace directory 'x'|over '/d/x': not a directory"):
        world.copy(*order, "/d/")
    assert list((world.path / "tmp").iterdir()) == []


def test_a_device_that_would_mean_a_removed_file_is_refused(world: World) -> None:
    os.mknod(world.ctx / "wh", stat.S_IFCHR | 0o600, 0)
    with pytest.raises(InputError, match="0:0"):
        world.copy("wh", "/x")
    with tarfile.open(world.ctx / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x")
        info.type = tarfile.CHRTYPE
        tar.addfile(info)
    with pytest.raises(InputError, match="0:0"):
        world.copy("a.tar", "/", unpack=True)


# ---------------------------------------------------------------- archives


def test_a_directory_that_an_archive_makes_anew_hides_what_the_base_had_there(world: World) -> None:
    (world.base / "d/old").mkdir(parents=True)
    _archive(world.ctx / "a.tar", ("d", FILE, b"a file"), ("d", DIR, ""), ("d/new", FILE, b"n"))
    world.copy("a.tar", "/", unpack=True)
    assert list(world.members()) == ["d", "d/.wh..wh..opq", "d/new"]
    with world.store.view(world.lowers) as view:
        assert [path.name for path in (view / "d").iterdir()] == ["new"]


def test_what_was_written_is_closed_be_it_of_the_context_or_of_the_base(world: World) -> None:
    """Otherwise a large COPY would end with too many open files."""
    (world.base / "there").write_text("base")
    (world.ctx / "f").write_text("f")
    _archive(world.ctx / "a.tar", ("also", HARD, "there"))
    before = set(Path("/proc/self/fd").iterdir())
    world.copy("f", "/")
    world.copy("a.tar", "/", unpack=True)
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_an_archive_links_to_a_file_of_the_base(world: World) -> None:
    (world.base / "d").mkdir()
    (world.base / "d/there").write_text("base")
    os.chown(world.base / "d/there", 7, 8)
    (world.base / "d/there").chmod(0o4755)
    os.utime(world.base / "d/there", ns=(OLD, OLD))
    _archive(world.ctx / "a.tar", ("also", HARD, "there"))
    world.copy("a.tar", "/d/", unpack=True)
    with world.store.view(world.lowers) as view:
        assert (view / "d/also").samefile(view / "d/there")
        info = (view / "d/also").stat()
        assert (view / "d/also").read_text() == "base"
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns) == (0o4755, 7, 8, OLD)


def test_only_the_last_member_of_a_name_is_in_the_layer(world: World) -> None:
    _archive(
        world.ctx / "a.tar", ("f", FILE, b"first"), ("g", HARD, "f"), ("f", FILE, b"second"), ("gone/x", FILE, b"x"),
        ("gone", FILE, b"file"), ("h", HARD, "f"),
    )  # fmt: skip
    assert world.copy("a.tar", "/d/", unpack=True) == len("firstsecondfile")
    with world.store.view(world.lowers) as view:
        texts = {path.name: path.read_text() for path in (view / "d").iterdir()}
        assert (view / "d/h").samefile(view / "d/f")
    assert texts == {"f": "second", "g": "first", "gone": "file", "h": "second"}


def test_a_link_that_would_remove_its_own_target_is_malformed(world: World) -> None:
    _archive(world.ctx / "a.tar", ("d/f", FILE, b"x"), ("d", HARD, "d/f"))
    with pytest.raises(InputError, match="no file"):
        world.copy("a.tar", "/", unpack=True)


@pytest.mark.parametrize("name", ["n" * 256, "d/" + "ü" * 128])
def test_names_that_no_file_can_have_are_malformed(world: World, name: str) -> None:
    _archive(world.ctx / "a.tar", (name, FILE, b"x"))
    with pytest.raises(InputError, match="cannot be the name of a file"):
        world.copy("a.tar", "/", unpack=True)


def test_archives_and_files_in_one_add(world: World) -> None:
    (world.base / "d").mkdir()
    _archive(world.ctx / "one.tar", ("x", DIR, ""), ("x/f", FILE, b"one"), ("x/g", FILE, b"one"))
    _archive(world.ctx / "two.tar", ("x/g", FILE, b"two"), ("y", LINK, "x"), ("y/h", FILE, b"two"))
    (world.ctx / "f").write_text("plain")
    world.copy("one.tar", "f", "two.tar", "/d/", unpack=True)
    with world.store.view(world.lowers) as view:
        found = {str(p.relative_to(view / "d")): p.read_text() for p in (view / "d").rglob("*") if p.is_file()}
    assert found == {"x/f": "one", "x/g": "two", "x/h": "two", "f": "plain"}


def test_links_in_a_circle_lead_to_no_directory(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "slash").symlink_to("etc/")
    (tmp_path / "etc").mkdir()
    with RootDir(tmp_path) as base, Tree(base) as tree:
        assert not tree.is_directory("/round/x")
        assert tree.is_directory("/slash")
        with pytest.raises(OSError, match="symbolic links"):
            tree.locate("/round/x")


def test_a_disk_that_cannot_be_read_is_no_missing_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with RootDir(tmp_path) as base, Tree(base) as tree:
        tree.is_directory("/")
        monkeypatch.setattr(os, "stat", broken)
        with pytest.raises(OSError, match="Input/output error"):
            tree.is_directory("/etc")


def test_a_socket_of_the_base_gets_no_other_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
    with RootDir(tmp_path) as base, Tree(base) as tree:
        found = tree.find(tree.root, "s")
        assert isinstance(found, Below)
        with pytest.raises(OSError, match="not supported"):
            tree.adopt(found)


def test_what_lies_in_a_directory_is_below_it(tmp_path: Path) -> None:
    with Tree(None) as tree:
        inner = tree.make("/a/b", Look(0o755, 0, 0, 0))
        assert inner.parent is not None
        assert inner.is_below(inner.parent)
        assert inner.is_below(tree.root)
        assert not inner.parent.is_below(inner)
