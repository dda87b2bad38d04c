"""`type=local`: the files of a result, written over what a directory has already."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DiskError, InputError
from engine.exporters import local
from engine.grants import Grants
from engine.ops.copy import copy_layer
from engine.refs.ref import of_step, scratch
from storage.interfaces.layers import Look
from storage.layers.snapshots import OverlaySnapshots
from storage.overlay import detach_below
from tests.writeback import FailingWriteBack
from tools.bootstrap import engine
from tools.roots import open_root

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

OLD = 1_500_000_000_987_654_321


def _export(tmp_path: Path, below: str = "") -> None:
    """A result with one of most things, exported to `tmp_path`/out, or to `below` in it."""

    async def run() -> None:
        made, registry = engine(root, "b1", None, {}, "directory", Grants())
        try:
            await made.exporters().local.export([(below, of_step("s", scratch(), 0))], str(tmp_path / "out"))
        finally:
            await registry.aclose()

    with open_root(tmp_path / "root") as root:
        store = OverlaySnapshots(root.path / "snapshots", root.tmp, "b1")
        if not store.has("s"):
            writer = store.compose("s")
            writer.directory(b"dir", Look(0o2750, 3, 4, OLD))
            writer.file(b"dir/file", Look(0o4711, 5, 6, OLD, {b"user.note": b"x"}), 4, [b"text"])
            writer.link(b"dir/hard", b"dir/file")
            writer.node(b"link", Look(0o777, 0, 0, OLD), "symlink", b"/etc/passwd", 0)
            writer.file(b"sparse", Look(0o644, 0, 0, OLD), 32 << 20, [bytes(1 << 20)] * 32)
            writer.commit()
        try:
            asyncio.run(run())
        finally:
            left = [*root.tmp.iterdir()]
            detach_below(tmp_path)
        assert left == []


def _check(out: Path) -> None:
    info = (out / "dir/file").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns) == (0o4711, 5, 6, OLD)
    assert (out / "dir/file").read_text() == "text"
    assert os.getxattr(out / "dir/file", "user.note") == b"x"
    assert (out / "dir/hard").samefile(out / "dir/file")
    info = (out / "dir").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns) == (0o2750, 3, 4, OLD)
    assert (out / "link").readlink() == Path("/etc/passwd")
    assert (out / "sparse").stat().st_size == 32 << 20
    assert (out / "sparse").stat().st_blocks * 512 <= 1 << 20


def test_a_new_directory_gets_everything(tmp_path: Path) -> None:
    _export(tmp_path)
    _check(tmp_path / "out")
    _export(tmp_path)
    _check(tmp_path / "out")


def test_I6_an_export_that_the_kernel_failed_to_write_back_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FailingWriteBack(monkeypatch)

    def copied(*arguments: Any, **named: Any) -> None:
        copy_layer(*arguments, **named)
        kernel.fail()

    monkeypatch.setattr(local, "copy_layer", copied)
    with pytest.raises(DiskError, match=r"exporting to .*Input/output error"):
        _export(tmp_path)


def test_what_is_there_is_replaced_or_stays_and_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    out = tmp_path / "out"
    (out / "dir").mkdir(parents=True)
    (out / "other").write_text("stays")
    (out / "dir/other").write_text("stays")
    (out / "dir/file").symlink_to(victim)
    (out / "link").symlink_to(victim)
    (out / "sparse").write_text("replaced")
    _export(tmp_path)
    _check(out)
    assert (out / "other").read_text() == (out / "dir/other").read_text() == "stays"
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_directory_takes_the_place_of_nothing_else(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "link":
        (tmp_path / "host").mkdir()
        (out / "dir").symlink_to(tmp_path / "host")
    else:
        (out / "dir").write_text("a file")
    with pytest.raises(InputError, match="over '/dir': not a directory"):
        _export(tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["dir"]


def test_a_platforms_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """An image that was exported before, to the same place, may have put it there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/linux_amd64").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="not a directory, or a link to one"):
        _export(tmp_path, "linux_amd64")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "out/linux_amd64").unlink()
    _export(tmp_path, "linux_amd64")
    _check(tmp_path / "out/linux_amd64")
