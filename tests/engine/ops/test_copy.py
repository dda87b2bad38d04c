"""Copying into a root that nobody trusts: what is made, how, and that nothing outside is touched."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from engine.errors import DiskError, InputError
from engine.graph import Copy, InlineFile
from engine.ops.copy import _understood, copy_layer
from engine.ops.origin import content
from engine.ops.select import select
from storage.digest import sha256
from storage.layers.snapshots import OverlaySnapshots
from tests.engine.ops.layers import copy_into, make_directory

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NOW = 1_700_000_000_123_456_789
OLD = 1_500_000_000_987_654_321


@pytest.fixture
def ctx(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    for name in ("a.txt", "dir/b.txt", "dir/sub/c.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(OLD, OLD))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def _copy(ctx: Path, root: Path, *paths: str, **fields: object) -> None:
    *sources, dest = paths
    op = Copy(tuple(sources), dest, **fields)  # type: ignore[arg-type]
    copy_into(op, select(op, ctx, (), hash_files=op.from_context), ctx, root, now_ns=NOW)


def _owner(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid


def test_times_are_kept_to_the_nanosecond_and_made_directories_get_now(ctx: Path, root: Path) -> None:
    (ctx / "dir/ln").symlink_to("b.txt")
    os.utime(ctx / "dir/ln", ns=(OLD, OLD), follow_symlinks=False)
    os.utime(ctx / "dir", ns=(OLD + 1, OLD + 1))
    _copy(ctx, root, "dir", "/x/y/z")
    times = {str(path.relative_to(root)): path.lstat().st_mtime_ns for path in root.rglob("*")}
    assert times == {
        "x": NOW, "x/y": NOW, "x/y/z": OLD + 1,
        "x/y/z/b.txt": OLD, "x/y/z/ln": OLD, "x/y/z/sub": OLD, "x/y/z/sub/c.txt": OLD,
    }  # fmt: skip


def test_the_same_copy_twice_gives_the_same_tree(ctx: Path, root: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for target in (root, second):
        _copy(ctx, target, ".", "/app/")
        os.utime(target, ns=(NOW, NOW))
    facts = [
        sorted((str(p.relative_to(t)), p.lstat().st_mode, p.lstat().st_mtime_ns, _owner(p)) for p in t.rglob("*"))
        for t in (root, second)
    ]
    assert facts[0] == facts[1]


def test_files_of_a_context_belong_to_root_and_modes_are_kept(ctx: Path, root: Path) -> None:
    os.chown(ctx / "a.txt", 5, 6)
    (ctx / "a.txt").chmod(0o4711)
    os.setxattr(ctx / "a.txt", "user.note", b"x")
    old = os.umask(0o077)
    try:
        _copy(ctx, root, "a.txt", "/new/a")
    finally:
        os.umask(old)
    made = root / "new/a"
    assert (stat.S_IMODE(made.stat().st_mode), _owner(made), os.listxattr(made)) == (0o4711, (0, 0), [])
    assert stat.S_IMODE((root / "new").stat().st_mode) == 0o755


def test_files_of_a_stage_keep_owner_links_and_attributes(ctx: Path, root: Path) -> None:
    os.chown(ctx / "dir/b.txt", 5, 6)
    os.chown(ctx / "dir/sub", 7, 8)
    os.link(ctx / "dir/b.txt", ctx / "dir/sub/hard")
    (ctx / "dir/b.txt").chmod(0o4755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(ctx / "dir/sub/c.txt", "security.capability", capability)
    os.setxattr(ctx / "dir/sub", "user.note", b"x")
    _copy(ctx, root, "dir", "/d", from_context=False)
    made = root / "d/b.txt"
    assert (_owner(made), stat.S_IMODE(made.stat().st_mode)) == ((5, 6), 0o4755)
    assert made.samefile(root / "d/sub/hard")
    assert _owner(root / "d/sub") == (7, 8)
    assert _owner(root / "d") == (0, 0)
    assert os.getxattr(root / "d/sub/c.txt", "security.capability") == capability
    assert os.getxattr(root / "d/sub", "user.note") == b"x"


def test_chown_goes_for_everything_that_is_made(ctx: Path, root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("app:x:41:42::/:/bin/sh\n")
    (root / "there").mkdir()
    (ctx / "dir/ln").symlink_to("b.txt")
    _copy(ctx, root, "dir", "/there/new/d", chown="app:7")
    assert {_owner(path) for path in (root / "there").rglob("*")} == {(41, 7)}
    assert _owner(root / "there") == (0, 0)


def test_chmod_goes_for_files_and_directories_below_the_destination(ctx: Path, root: Path) -> None:
    _copy(ctx, root, "dir", "/d", chmod="2750")
    modes = {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert modes == {"d": 0o755, "d/b.txt": 0o2750, "d/sub": 0o2750, "d/sub/c.txt": 0o2750}


def test_a_symbolic_chmod_looks_at_each_entry(ctx: Path, root: Path) -> None:
    (ctx / "dir/b.txt").chmod(0o600)
    (ctx / "dir/sub/c.txt").chmod(0o700)
    (ctx / "dir/sub").chmod(0o700)
    _copy(ctx, root, "dir", "/d", chmod="u=rwX,go=rX")
    modes = {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert modes == {"d": 0o755, "d/b.txt": 0o644, "d/sub": 0o755, "d/sub/c.txt": 0o755}


def test_a_setgid_directory_does_not_give_its_group(ctx: Path, root: Path) -> None:
    (root / "shared").mkdir()
    os.chown(root / "shared", 0, 99)
    (root / "shared").chmod(0o2775)
    _copy(ctx, root, "dir", "/shared/")
    assert {_owner(path) for path in (root / "shared").rglob("*")} == {(0, 0)}


def test_an_existing_directory_below_takes_the_sources_metadata(ctx: Path, root: Path) -> None:
    (root / "d/sub").mkdir(parents=True)
    os.chown(root / "d/sub", 9, 9)
    (root / "d").chmod(0o711)
    (ctx / "dir/sub").chmod(0o700)
    os.utime(ctx / "dir/sub", ns=(OLD, OLD))
    _copy(ctx, root, "dir", "/d")
    info = (root / "d/sub").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_mtime_ns) == (0o700, 0, OLD)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o711


# ---------------------------------------------------------------- hostile roots


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of the host that no copy may touch."""
    path = tmp_path / "host"
    path.mkdir()
    (path / "victim").write_text("host")
    (path / "b.txt").write_text("host")
    return path


def _untouched(host: Path) -> bool:
    return {path.name: path.read_text() for path in host.iterdir()} == {"victim": "host", "b.txt": "host"}


@pytest.mark.parametrize("dest", ["/app", "/app/", "/app/new/", "/app/new/name", "/up/", "/up/name", "/rel/x/"])
def test_links_in_the_destination_stay_inside_the_root(ctx: Path, root: Path, host: Path, dest: str) -> None:
    (root / "app").symlink_to(host)
    (root / "up").symlink_to("../../../../../../../.." + str(host))
    (root / "rel").symlink_to("../host")
    _copy(ctx, root, "a.txt", dest)
    _copy(ctx, root, "dir", dest.rstrip("/") + "-dir/")
    assert _untouched(host)
    inside = [path.read_text() for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sorted(inside) == ["a.txt", "dir/b.txt", "dir/sub/c.txt"]


def test_a_file_replaces_a_link_below_the_destination(ctx: Path, root: Path, host: Path) -> None:
    (root / "d").mkdir()
    (root / "d/b.txt").symlink_to(host / "b.txt")
    (root / "d/a.txt").symlink_to(host / "victim")
    _copy(ctx, root, "dir", "/d")
    _copy(ctx, root, "a.txt", "/d/")
    assert _untouched(host)
    assert (root / "d/b.txt").read_text() == "dir/b.txt"
    assert not (root / "d/a.txt").is_symlink()


def test_a_destination_that_is_a_link_to_a_file_writes_its_target_inside(ctx: Path, root: Path, host: Path) -> None:
    (root / "link").symlink_to(host / "victim")
    _copy(ctx, root, "a.txt", "/link")
    assert _untouched(host)
    assert (root / str(host / "victim").lstrip("/")).read_text() == "a.txt"


@pytest.mark.parametrize("name", [".wh.a.txt", ".wh..wh..opq"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_name_that_would_delete_something_is_refused(ctx: Path, root: Path, name: str, kind: str) -> None:
    path = ctx / "dir" / name
    path.mkdir() if kind == "directory" else path.touch()
    with pytest.raises(InputError, match="cannot be in an image"):
        _copy(ctx, root, "dir", "/to/")
    assert list(root.iterdir()) == []


def test_a_directory_over_a_link_is_refused(ctx: Path, root: Path, host: Path) -> None:
    (root / "d").mkdir()
    (root / "d/sub").symlink_to(host)
    with pytest.raises(InputError, match=r"over '/d/sub': not a directory"):
        _copy(ctx, root, "dir", "/d")
    assert _untouched(host)


def test_a_loop_of_links_is_an_input_error(ctx: Path, root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    for dest in ("/one", "/one/", "/one/x"):
        with pytest.raises(InputError, match="symbolic links"):
            _copy(ctx, root, "a.txt", dest)


def test_a_hard_link_to_an_image_file_is_broken_not_written_through(ctx: Path, root: Path) -> None:
    (root / "one").write_text("image")
    os.link(root / "one", root / "two")
    _copy(ctx, root, "a.txt", "/two")
    assert ((root / "one").read_text(), (root / "two").read_text()) == ("image", "a.txt")


@pytest.mark.parametrize(
    ("source", "dest", "message"),
    [
        ("a.txt", "/file/", "not a directory"),
        ("a.txt", "/file/x", "'/file' in the image is not a directory"),
        ("dir", "/file", "not a directory"),
        ("a.txt", "/full", "cannot replace directory 'a.txt'"),
    ],
)
def test_what_cannot_be_replaced(ctx: Path, root: Path, source: str, dest: str, message: str) -> None:
    (root / "file").write_text("x")
    (root / "full/a.txt").mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        _copy(ctx, root, source, dest)


# ---------------------------------------------------------------- contexts that change


def test_a_file_that_changed_since_it_was_hashed_is_an_input_error(ctx: Path, root: Path) -> None:
    op = Copy((".",), "/x/")
    for change in ("same!", "longer than before", ""):
        selection = select(op, ctx, (), hash_files=True)
        (ctx / "a.txt").write_text(change)
        with pytest.raises(InputError, match=r"context file 'a.txt' changed during the build") as caught:
            copy_into(op, selection, ctx, root, now_ns=NOW)
        assert "again" in caught.value.hint


@pytest.mark.parametrize("now", ["gone", "link", "fifo", "parent"])
def test_a_file_that_became_something_else_is_an_input_error(ctx: Path, root: Path, now: str) -> None:
    op = Copy(("dir",), "/x/")
    selection = select(op, ctx, (), hash_files=True)
    (ctx / "dir/sub/c.txt").unlink()
    if now == "link":
        (ctx / "dir/sub/c.txt").symlink_to("/etc/passwd")
    elif now == "fifo":
        os.mkfifo(ctx / "dir/sub/c.txt")
    elif now == "parent":
        (ctx / "dir/sub").rmdir()
        (ctx / "dir/sub").symlink_to("/etc")
    with pytest.raises(InputError, match="changed during the build"):
        copy_into(op, selection, ctx, root, now_ns=NOW)


def test_a_link_that_took_a_files_place_is_not_followed_even_unhashed(ctx: Path, root: Path, host: Path) -> None:
    op = Copy(("a.txt",), "/x", from_context=False)
    selection = select(op, ctx, (), hash_files=False)
    (ctx / "a.txt").unlink()
    (ctx / "a.txt").symlink_to(host / "victim")
    with pytest.raises(InputError, match="changed during the build"):
        copy_into(op, selection, ctx, root, now_ns=NOW)
    assert not (root / "x").exists()


def test_a_touched_file_is_not_a_change(ctx: Path, root: Path) -> None:
    op = Copy(("a.txt",), "/x")
    selection = select(op, ctx, (), hash_files=True)
    os.utime(ctx / "a.txt", ns=(NOW, NOW))
    copy_into(op, selection, ctx, root, now_ns=NOW)
    assert (root / "x").stat().st_mtime_ns == NOW


# ---------------------------------------------------------------- kinds of files


def test_links_fifos_and_devices_are_made_as_they_are(ctx: Path, root: Path) -> None:
    (ctx / "dir/ln").symlink_to("/etc/passwd")
    os.mkfifo(ctx / "dir/fifo", 0o620)
    os.mknod(ctx / "dir/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (ctx / "dir/fifo").chmod(0o620)
    _copy(ctx, root, "dir", "/d", from_context=False)
    assert (root / "d/ln").readlink() == Path("/etc/passwd")
    assert (root / "d/fifo").lstat().st_mode == stat.S_IFIFO | 0o620
    device = (root / "d/null").lstat()
    assert (stat.S_ISCHR(device.st_mode), device.st_rdev) == (True, os.makedev(1, 3))


def test_names_that_are_not_utf8(ctx: Path, root: Path) -> None:
    name = os.fsdecode(b"\xff\nname")
    (ctx / "dir" / name).write_text("odd")
    _copy(ctx, root, "dir", "/d")
    assert (root / "d" / name).read_text() == "odd"


@pytest.mark.parametrize("hash_files", [True, False])
def test_sparse_files_stay_sparse(ctx: Path, root: Path, hash_files: bool) -> None:
    size = 64 << 20
    with (ctx / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(20 << 20)
        file.write(b"middle")
        file.truncate(size)
    if (ctx / "sparse").stat().st_blocks * 512 >= size:
        pytest.skip("this file system has no sparse files")
    op = Copy(("sparse",), "/sparse", from_context=hash_files)
    copy_into(op, select(op, ctx, (), hash_files=hash_files), ctx, root, now_ns=NOW)
    made = root / "sparse"
    assert made.stat().st_size == size
    assert made.stat().st_blocks * 512 <= 3 << 20
    assert sha256(made.read_bytes()) == sha256((ctx / "sparse").read_bytes())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 7])
@pytest.mark.parametrize("from_context", [True, False])
def test_bytes_of_files_of_all_sizes(ctx: Path, root: Path, size: int, from_context: bool) -> None:
    data = os.urandom(size)
    (ctx / "a.txt").write_bytes(data)
    _copy(ctx, root, "a.txt", "/to", from_context=from_context)
    assert (root / "to").read_bytes() == data


def test_a_large_file_is_never_held_whole(ctx: Path) -> None:
    with (ctx / "big").open("wb") as file:
        file.truncate(40 << 20)
    with (ctx / "big").open("rb") as file:
        pieces = [len(piece) for piece in content(file.fileno(), 40 << 20)]
    assert (sum(pieces), max(pieces)) == (40 << 20, 1 << 20)


def test_a_full_disk_is_a_disk_error_that_says_what_to_do(ctx: Path, root: Path, tmp_path: Path) -> None:
    (ctx / "big").write_bytes(os.urandom(1 << 20))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        store = OverlaySnapshots(small / "snapshots", small / "tmp", "test")
        for op in (Copy(("big",), "/x"), Copy(("big",), "/x", from_context=False)):
            selection = select(op, ctx, (), hash_files=op.from_context)
            with pytest.raises(DiskError, match="writing '/x': No space left") as caught:
                copy_layer(op, selection, ctx, root, lambda: store.compose("s"), now_ns=NOW)
            assert "free some space" in caught.value.hint
            assert list((small / "tmp").iterdir()) == []
            assert not store.has("s")
    finally:
        subprocess.run(["umount", small], check=True)


# ---------------------------------------------------------------- inline files and directories


def test_inline_files(root: Path) -> None:
    files = (InlineFile("EOF", "hello\n"), InlineFile("conf", "ü\n"))
    both = Copy((), "/etc/app/", files=files)
    copy_into(both, select(both, root, (), hash_files=True), None, root, now_ns=NOW)
    assert (root / "etc/app/EOF").read_text() == "hello\n"
    assert (root / "etc/app/conf").read_bytes() == "ü\n".encode()
    info = (root / "etc/app/EOF").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o644, NOW)
    one = Copy((), "/script", files=files[:1], chmod="755", chown="3:4")
    copy_into(one, select(one, root, (), hash_files=True), None, root, now_ns=NOW)
    assert (_owner(root / "script"), stat.S_IMODE((root / "script").stat().st_mode)) == ((3, 4), 0o755)


def test_several_files_need_a_directory(ctx: Path, root: Path) -> None:
    for op in (
        Copy(("a.txt", "dir"), "/x"),
        Copy(("*",), "/x"),
        Copy(("a.txt",), "/x", files=(InlineFile("EOF", ""),)),
        Copy((), "/x", files=(InlineFile("EOF", ""), InlineFile("EOT", ""))),
    ):
        with pytest.raises(InputError, match="'/x' must be a directory") as caught:
            copy_into(op, select(op, ctx, (), hash_files=True), ctx, root, now_ns=NOW)
        assert "/x/" in caught.value.hint
    assert list(root.iterdir()) == []


def test_make_directory_makes_what_is_missing_and_leaves_what_is_there(root: Path) -> None:
    make_directory("/work/dir", root, NOW)
    make_directory("/work/dir/", root, NOW + 1)
    make_directory("/", root, NOW + 1)
    info = (root / "work/dir").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o755, NOW)
    assert (root / "work").stat().st_mtime_ns == NOW


def test_make_directory_stays_in_the_root_and_needs_no_file_in_the_way(root: Path, host: Path) -> None:
    (root / "link").symlink_to(host)
    make_directory("/link/x", root, NOW)
    assert _untouched(host)
    (root / "file").write_text("x")
    with pytest.raises(InputError, match="'/file/x' in the image is not a directory"):
        make_directory("/file/x", root, NOW)


@pytest.mark.parametrize("dest", ["/{long}", "/{long}/", "/etc/{long}/x", "/new/{long}"])
def test_a_destination_that_no_file_system_has_a_name_for_is_an_input_error(ctx: Path, root: Path, dest: str) -> None:
    with pytest.raises(InputError, match="cannot be a file's name: it is too long"):
        _copy(ctx, root, "a.txt", dest.format(long="x" * 300))


def test_what_a_disk_says_while_files_are_copied_is_the_disks_fault() -> None:
    error = _understood(OSError(errno.EIO, "Input/output error"), "/d")
    assert isinstance(error, DiskError)
    assert "copying to /d: Input/output error" in str(error)
