"""ADD of tar archives: what is one, what is made of it, and that hostile ones stay inside the destination."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from engine.errors import InputError
from engine.graph import Copy
from engine.ops.layer import Tree
from engine.ops.origin import Origin
from engine.ops.select import select
from engine.ops.selection import Entry
from engine.ops.unpack import is_archive, plan_archive
from storage.digest import Digest, sha256
from storage.interfaces.layers import LayerWriter
from tests.engine.ops.layers import copy_into

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NOW = 1_700_000_000_123_456_789
OLD = 1_500_000_000
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip


def _tar(*members: tuple[object, ...], **fields: object) -> bytes:
    """Members are (name, type, text or link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, text in members:
            info = tarfile.TarInfo(str(name))
            info.type, info.mtime, info.mode, info.uid, info.gid = kind, OLD, 0o640, 41, 42  # type: ignore[assignment]
            for key, value in fields.items():
                setattr(info, key, value)
            data = text if isinstance(text, bytes) else b""
            if isinstance(text, str):
                info.linkname = text
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


DIR, FILE, LINK, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def _unpack(data: bytes, root: Path, dest: str = "/", owner: tuple[int, int] | None = None) -> Digest:
    """As ADD does it; returns the digest that the planned archive was found to have."""
    with tempfile.TemporaryDirectory(dir=root.parent) as ctx, Tree(None) as tree:
        Path(ctx, "a.tar").write_bytes(data)
        op = Copy(("a.tar",), f"{dest.rstrip('/')}/", "{}:{}".format(*owner) if owner else "", unpack=True)
        copy_into(op, select(op, Path(ctx), (), hash_files=True), Path(ctx), root, now_ns=NOW)
        return plan_archive(io.BytesIO(data), tree, tree.root, owner=(0, 0), now_ns=NOW).digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an image, `dest` in it, and beside it a host directory that nothing may touch."""
    path = tmp_path / "root"
    (path / "dest").mkdir(parents=True)
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text("image")
    (tmp_path / "host").mkdir()
    (tmp_path / "host/victim").write_text("host")
    return path


def _outside(root: Path) -> dict[str, str]:
    """What a broken unpacker would have changed."""
    host = root.parent / "host"
    return {
        **{path.name: path.read_text() for path in host.iterdir()},
        **{path.name: path.read_text() for path in root.iterdir() if path.is_file()},
        "passwd": (root / "etc/passwd").read_text(),
    }


UNTOUCHED = {"victim": "host", "passwd": "image"}


@pytest.mark.parametrize("codec", COMPRESS)
def test_archives_are_told_by_content(codec: str) -> None:
    data = COMPRESS[codec](_tar(("file", FILE, b"x" * 5000)))
    file = io.BytesIO(data)
    assert is_archive(file)
    assert file.tell() == 0
    assert not is_archive(io.BytesIO(COMPRESS[codec](b"no tar at all" * 1000)))
    assert not is_archive(io.BytesIO(COMPRESS[codec](b"")))
    assert not is_archive(io.BytesIO(COMPRESS[codec](bytes(10240))))
    if codec != "plain":
        assert not is_archive(io.BytesIO(data[:20]))
        assert not is_archive(io.BytesIO(data[:8] + b"garbage" * 100))


def test_a_zstd_file_is_refused_rather_than_copied_silently() -> None:
    with pytest.raises(InputError, match="zstd"):
        is_archive(io.BytesIO(bytes.fromhex("28b52ffd") + bytes(100)))


@pytest.mark.parametrize("codec", COMPRESS)
def test_members_are_made_with_owner_mode_and_time(root: Path, codec: str) -> None:
    data = COMPRESS[codec](
        _tar(("d", DIR, ""), ("d/file", FILE, b"text" * 100_000), ("d/ln", LINK, "file"), ("d/hard", HARD, "d/file"))
    )
    assert _unpack(data, root, "/dest") == sha256(data)
    for name in ("d", "d/file", "d/ln"):
        info = (root / "dest" / name).lstat()
        assert (info.st_uid, info.st_gid, info.st_mtime) == (41, 42, OLD)
    assert (root / "dest/d/file").read_bytes() == b"text" * 100_000
    assert stat.S_IMODE((root / "dest/d/file").stat().st_mode) == 0o640
    assert (root / "dest/d/ln").readlink() == Path("file")
    assert (root / "dest/d/hard").samefile(root / "dest/d/file")


def test_the_digest_covers_bytes_behind_the_end_of_the_archive(root: Path) -> None:
    data = _tar(("file", FILE, b"x")) + b"trailing" * 5000
    assert _unpack(data, root) == sha256(data)


def test_setuid_fractions_of_seconds_and_attributes(root: Path) -> None:
    headers = {"mtime": "1500000000.123456789", "SCHILY.xattr.user.note": "ü", "SCHILY.xattr.trusted.no": "x"}
    _unpack(_tar(("file", FILE, b"x"), mode=0o4755, pax_headers=headers), root)
    info = (root / "file").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o4755, 1_500_000_000_123_456_789)
    assert os.getxattr(root / "file", "user.note") == "ü".encode()
    assert os.listxattr(root / "file") == ["user.note"]


def test_chown_wins_over_the_archive(root: Path) -> None:
    _unpack(_tar(("d", DIR, ""), ("d/file", FILE, b"x"), ("d/ln", LINK, "x")), root, "/dest", owner=(7, 8))
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (root / "dest").rglob("*")}
    assert owners == {(7, 8)}


def test_directories_that_the_archive_only_implies(root: Path) -> None:
    _unpack(_tar(("a/b/file", FILE, b"x")), root)
    info = (root / "a/b").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_mtime_ns) == (0o755, 0, NOW)


def test_content_is_merged_and_conflicts_go_to_the_archive(root: Path) -> None:
    (root / "dest/d").mkdir()
    (root / "dest/d/kept").write_text("kept")
    (root / "dest/d/file").write_text("old")
    (root / "dest/tree/below").mkdir(parents=True)
    (root / "dest/notdir").write_text("x")
    (root / "dest/tolink").symlink_to("/etc/passwd")
    _unpack(
        _tar(
            ("d", DIR, ""), ("d/file", FILE, b"new"), ("tree", FILE, b"file now"),
            ("notdir", DIR, ""), ("tolink", FILE, b"file now"),
        ), root, "/dest",
    )  # fmt: skip
    dest = root / "dest"
    assert {str(p.relative_to(dest)): p.read_text() for p in dest.rglob("*") if p.is_file()} == {
        "d/kept": "kept", "d/file": "new", "tree": "file now", "tolink": "file now",
    }  # fmt: skip
    assert (dest / "notdir").is_dir()
    assert _outside(root) == UNTOUCHED


def test_a_directory_goes_through_a_link_to_one(root: Path) -> None:
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    _unpack(_tar(("lib", DIR, ""), ("lib/file", FILE, b"x")), root)
    assert (root / "lib").is_symlink()
    assert (root / "usr/lib/file").read_text() == "x"


def test_a_directory_that_a_later_member_replaces(root: Path) -> None:
    _unpack(_tar(("d", DIR, ""), ("d/file", FILE, b"x"), ("d", FILE, b"file now")), root)
    assert (root / "d").read_text() == "file now"


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "..", "/../etc/passwd", "./../x"])
@pytest.mark.parametrize("kind", [FILE, DIR, LINK])
def test_names_that_climb_out_are_refused(root: Path, name: str, kind: bytes) -> None:
    with pytest.raises(InputError, match="outside of the destination"):
        _unpack(_tar((name, kind, b"evil" if kind == FILE else "x")), root, "/dest")
    assert _outside(root) == UNTOUCHED


def test_absolute_names_are_below_the_destination(root: Path) -> None:
    _unpack(_tar(("/etc/passwd", FILE, b"evil"), ("//deep//name", FILE, b"x")), root, "/dest")
    assert (root / "dest/etc/passwd").read_text() == "evil"
    assert (root / "dest/deep/name").read_text() == "x"
    assert _outside(root) == UNTOUCHED


@pytest.mark.parametrize("target", ["/etc", "../etc", "../../../../etc", "HOST", "../../host", "/proc/self/root/etc"])
def test_a_link_and_then_a_file_through_it(root: Path, target: str) -> None:
    target = target.replace("HOST", str(root.parent / "host"))
    for members in (
        [("ln", LINK, target), ("ln/passwd", FILE, b"evil"), ("ln/victim", FILE, b"evil")],
        [("l1", LINK, target), ("l2", LINK, "l1"), ("l2/passwd", FILE, b"evil"), ("l2/victim", DIR, "")],
        [("l3", LINK, target), ("l3", DIR, ""), ("l3/passwd", FILE, b"evil")],
        [("l4", LINK, target + "/passwd"), ("l4", FILE, b"evil")],
    ):
        _unpack(_tar(*members), root, "/dest")
    assert _outside(root) == UNTOUCHED


@pytest.mark.parametrize("target", ["/etc/passwd", "../etc/passwd", "HOST", "missing", "", "ln/passwd"])
def test_hard_links_reach_nothing_outside(root: Path, target: str) -> None:
    target = target.replace("HOST", str(root.parent / "host/victim"))
    with pytest.raises(InputError, match=r"outside of the destination|no file"):
        _unpack(_tar(("ln", LINK, "/etc"), ("hard", HARD, target), ("hard", FILE, b"evil")), root, "/dest")
    assert _outside(root) == UNTOUCHED


def test_a_hard_link_to_itself_keeps_the_file(root: Path) -> None:
    _unpack(_tar(("file", FILE, b"x"), ("file", HARD, "file")), root)
    assert (root / "file").read_text() == "x"


def test_a_directory_that_is_linked_to_itself_stays(root: Path) -> None:
    _unpack(_tar(("d/file", FILE, b"x"), ("d", HARD, "d")), root)
    assert (root / "d/file").read_text() == "x"


def test_devices_and_fifos_are_made(root: Path) -> None:
    _unpack(_tar(("null", tarfile.CHRTYPE, ""), devmajor=1, devminor=3), root)
    _unpack(_tar(("fifo", tarfile.FIFOTYPE, ""), mode=0o622), root)
    info = (root / "null").stat()
    assert (stat.S_ISCHR(info.st_mode), info.st_rdev, stat.S_IMODE(info.st_mode)) == (True, os.makedev(1, 3), 0o640)
    assert (root / "fifo").stat().st_mode == stat.S_IFIFO | 0o622


def test_names_that_are_not_utf8(root: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        archive.addfile(tarfile.TarInfo(os.fsdecode(b"odd\xff/" + b"n\xfe" * 100)))
    _unpack(out.getvalue(), root)
    assert Path(os.fsdecode(os.fsencode(root) + b"/odd\xff/" + b"n\xfe" * 100)).is_file()


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_truncated_archive_is_an_input_error(root: Path, codec: str) -> None:
    data = COMPRESS[codec](_tar(("one", FILE, os.urandom(50_000)), ("two", FILE, os.urandom(50_000))))
    for length in (len(data) // 3, len(data) // 2):
        with pytest.raises(InputError, match="cannot unpack the archive"):
            _unpack(data[:length], root)


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_corrupt_archive_is_an_input_error(root: Path, codec: str) -> None:
    data = bytearray(COMPRESS[codec](_tar(*((f"{i}", FILE, os.urandom(1000)) for i in range(50)))))
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xa5" * 2000
    with pytest.raises(InputError, match="cannot unpack the archive"):
        _unpack(bytes(data), root)


@pytest.mark.parametrize("field", ["uid", "mtime", "devminor"])
def test_absurd_numbers_never_end_in_a_traceback(root: Path, field: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("file")
        setattr(info, field, 2**50)
        info.type = tarfile.CHRTYPE if field == "devminor" else FILE
        archive.addfile(info)
    if field == "mtime":
        _unpack(out.getvalue(), root)
        assert (root / "file").stat().st_mtime == 0
    else:
        with pytest.raises(InputError, match="cannot unpack the archive"):
            _unpack(out.getvalue(), root)


def test_long_names_nested_a_thousand_deep_never_end_in_a_traceback(root: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    block = info.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511)
    with pytest.raises(InputError, match="cannot unpack the archive"):
        _unpack(block * 3000, root)


# ---------------------------------------------------------------- as ADD


def test_add_unpacks_archives_and_copies_the_rest(root: Path, tmp_path: Path) -> None:
    ctx = tmp_path / "ctx"
    ctx.mkdir()
    (ctx / "archive").write_bytes(gzip.compress(_tar(("file", FILE, b"unpacked"))))
    (ctx / "empty.tar.gz").write_bytes(b"")
    op = Copy(("archive", "empty.tar.gz"), "/new/", unpack=True)
    copy_into(op, select(op, ctx, (), hash_files=True), ctx, root, now_ns=NOW)
    assert sorted(path.name for path in (root / "new").iterdir()) == ["empty.tar.gz", "file"]
    plain = Copy(("archive",), "/copied")
    copy_into(plain, select(plain, ctx, (), hash_files=True), ctx, root, now_ns=NOW)
    assert (root / "copied").read_bytes() == (ctx / "archive").read_bytes()


def test_an_archive_that_changed_since_it_was_hashed_is_an_input_error(root: Path, tmp_path: Path) -> None:
    ctx = tmp_path / "ctx"
    ctx.mkdir()
    (ctx / "a.tar").write_bytes(_tar(("file", FILE, b"one")))
    op = Copy(("a.tar",), "/new/", unpack=True)
    selection = select(op, ctx, (), hash_files=True)
    (ctx / "a.tar").write_bytes(_tar(("file", FILE, b"two")))
    with pytest.raises(InputError, match=r"context file 'a.tar' changed"):
        copy_into(op, selection, ctx, root, now_ns=NOW)


@pytest.mark.parametrize("mtime", ["1e9999999", "1e999999999999", "1e9999", "nan", "-1", "9e99"])
def test_a_time_that_no_file_system_holds_is_none(root: Path, mtime: str) -> None:
    _unpack(_tar(("f", FILE, b""), pax_headers={"mtime": mtime}), root)
    assert (root / "f").stat().st_mtime_ns == 0


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("f", {"path": "a\0b"}),
        ("f", {"linkpath": "a\0b"}),
        ("f", {f"SCHILY.xattr.user.{'a' * 251}": "x"}),
        ("f", {"SCHILY.xattr.user.": "x"}),
        ("f", {"SCHILY.xattr.user.a\0b": "x"}),
        ("f", {"SCHILY.xattr.user.a": "x" * 65537}),
        ("/".join(["d" * 200] * 21), {}),
    ],
)
def test_names_that_the_kernel_has_no_room_for_are_refused_when_they_are_read(
    root: Path, name: str, headers: dict[str, str]
) -> None:
    kind = LINK if "linkpath" in headers else FILE
    with pytest.raises(InputError, match=r"cannot unpack the archive: .* (cannot be|no file can have)"):
        _unpack(_tar((name, kind, b""), pax_headers=headers), root)


def test_a_disk_that_cannot_be_read_is_no_broken_archive(root: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 512:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    data = bz2.compress(_tar(("f", FILE, os.urandom(100_000))))
    with Tree(None) as tree, pytest.raises(OSError, match="Input/output"):
        plan_archive(Failing(data), tree, tree.root, owner=None, now_ns=NOW)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        is_archive(Broken(b"BZh"))
    assert not is_archive(io.BytesIO(b"BZh9 and no more of bzip2"))


def test_a_file_in_the_place_of_a_directory_is_told_with_its_name(root: Path) -> None:
    with pytest.raises(InputError, match="the archive has 'f' for a directory, and that is something else"):
        _unpack(_tar(("f", FILE, b""), ("f/below", FILE, b"")), root)


def test_what_is_none_of_the_kinds_of_files_is_malformed(root: Path) -> None:
    data = bytearray(_tar(("f", FILE, b"")))
    data[156:157] = b"Z"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    with pytest.raises(InputError, match=r"cannot unpack the archive: 'f' is of unknown type b'Z'"):
        _unpack(bytes(data), root)


def test_a_block_of_bzip2_that_is_damaged_is_an_input_error(root: Path) -> None:
    data = bytearray(bz2.compress(_tar(("f", FILE, os.urandom(400_000))), 1))
    data[250_000:250_100] = bytes(100)
    with pytest.raises(InputError, match="cannot unpack the archive"):
        _unpack(bytes(data), root)


def test_an_archive_that_changes_behind_its_members_while_it_is_unpacked_is_an_input_error(tmp_path: Path) -> None:
    class Writer:
        def file(self, *_: object) -> None:
            pass

    path = tmp_path / "a.tar"
    path.write_bytes(_tar(("f", FILE, b"text")))
    with Tree(None) as tree, path.open("rb") as file:
        planned = plan_archive(file, tree, tree.root, owner=None, now_ns=NOW)
    planned.entry = Entry("a.tar", "a.tar", "file", 0o644)
    path.write_bytes(path.read_bytes() + b"more")
    with Origin(tmp_path) as origin, pytest.raises(InputError, match=r"a\.tar' changed"):
        planned.write(origin, cast("LayerWriter", Writer()))


def test_the_destination_itself_as_a_member_changes_nothing_of_it(root: Path) -> None:
    """`tar -c .` begins with it."""
    before = root.stat()
    _unpack(_tar(("./", DIR, ""), ("./file", FILE, b"x")), root)
    after = root.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert (root / "file").read_bytes() == b"x"
