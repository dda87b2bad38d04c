"""Overlay mounts: any number of layers, any path, and nothing left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import overlay
from storage.errors import DiskError
from storage.overlay import detach_below, mount_overlay, mounts_below, unmount
from tests.storage.layers.trees import names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(params=["mount API", "mount(2)"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a mount point `root`; both ways to mount."""
    monkeypatch.setattr(overlay, "_mount_api", [request.param == "mount API"])
    (tmp_path / "root").mkdir()
    yield tmp_path
    detach_below(tmp_path)


def layer(place: Path, name: str, **files: str) -> Path:
    path = place / name
    path.mkdir()
    for file, content in files.items():
        (path / file).write_text(content)
    return path


def upper_of(place: Path) -> tuple[Path, Path]:
    (place / "upper").mkdir()
    (place / "work").mkdir()
    return place / "upper", place / "work"


def test_the_kernel_that_runs_this_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_mount_api", [])
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert overlay._has_mount_api() == (release >= (6, 7))


@pytest.mark.parametrize("writable", [False, True])
def test_501_layers_more_than_one_overlay_takes_mount_and_read(place: Path, writable: bool) -> None:
    """Each layer has a file of its own, all have the same one; the third and the last remove what was there."""
    count = 501
    lowers = [layer(place, f"layer-{number:03}-{'x' * 150}", same=str(number), **{f"f{number}": "x"})
              for number in range(count)]  # fmt: skip
    os.mknod(lowers[2] / "f1", 0o020644, 0)
    os.mknod(lowers[count - 1] / "f0", 0o020644, 0)
    mount_overlay(place / "root", lowers, *(upper_of(place) if writable else ()))
    assert (place / "root/same").read_text() == str(count - 1)
    assert len(names(place / "root")) == count + 1 - 2
    if writable:
        (place / "root/f3").unlink()
        (place / "root/same").write_text("new")
        assert (place / "root/same").read_text() == "new"
        assert len(names(place / "root")) == count + 1 - 3
    assert mounts_below(place) == [place / "root"]
    unmount(place / "root")
    assert names(place / "root") == []
    assert [path.name for path in place.glob("below-*")] == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_views_are_read_only_and_uppers_are_not(place: Path, count: int) -> None:
    lowers = [layer(place, f"lower{number}", **{f"f{number}": "x"}) for number in range(count)]
    expected = {f"f{number}" for number in range(count)}
    mount_overlay(place / "root", lowers)
    assert set(names(place / "root")) == expected
    with pytest.raises(OSError, match="Read-only"):
        (place / "root/new").write_text("")
    unmount(place / "root")
    mount_overlay(place / "root", lowers, *upper_of(place))
    (place / "root/new").write_text("n")
    assert set(names(place / "root")) == {*expected, "new"}
    unmount(place / "root")
    assert names(place / "upper") == ["new"]
    assert mounts_below(place) == []


def test_whiteouts_of_a_lone_layer_are_not_seen(place: Path) -> None:
    lower = layer(place, "lower", there="x")
    os.mknod(lower / "gone", stat.S_IFCHR, 0)
    mount_overlay(place / "root", [lower])
    assert names(place / "root") == ["there"]


def test_paths_may_hold_anything(place: Path) -> None:
    lowers = [layer(place, name, **{str(number): "x"}) for number, name in enumerate(["a:b", "c,d=e", "f\\ g", "ü\n"])]
    (place / "up,per:").mkdir()
    (place / "w:o,rk").mkdir()
    mount_overlay(place / "root", lowers, place / "up,per:", place / "w:o,rk")
    (place / "root/new").write_text("")
    assert names(place / "root") == ["0", "1", "2", "3", "new"]


def test_uppers_hold_no_pointers_into_lowers(place: Path) -> None:
    lower = layer(place, "lower", file="content")
    (lower / "dir").mkdir()
    (lower / "dir/x").write_text("x")
    mount_overlay(place / "root", [lower], *upper_of(place))
    (place / "root/file").chmod(0o600)
    with pytest.raises(OSError, match="cross-device"):
        (place / "root/dir").rename(place / "root/moved")
    unmount(place / "root")
    assert (place / "upper/file").read_text() == "content"
    assert not {"trusted.overlay.redirect", "trusted.overlay.metacopy"} & set(os.listxattr(place / "upper/file"))


def test_no_file_is_left_beside_the_mount(place: Path) -> None:
    lowers = [layer(place, "one"), layer(place, "two")]
    mount_overlay(place / "root", lowers)
    assert names(place) == ["one", "root", "two"]


def test_the_working_directory_of_the_process_stays(place: Path) -> None:
    before = Path.cwd()
    mount_overlay(place / "root", [layer(place, "one"), layer(place, "two")])
    assert Path.cwd() == before


def test_failures_are_disk_errors_with_a_hint(place: Path) -> None:
    one = layer(place, "one")
    with pytest.raises(DiskError) as caught:
        mount_overlay(place / "root", [one, place / "missing"])
    assert "a layer is missing" in caught.value.hint
    with pytest.raises(DiskError) as caught:
        mount_overlay(place / "root", [one], Path("/proc/self"), layer(place, "work"))
    assert "may not serve as overlay upper" in caught.value.hint
    assert mounts_below(place) == []


def test_unmounting_waits_only_so_long_for_a_busy_mount(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_PATIENCE", 0.05)
    mount_overlay(place / "root", [layer(place, "one", f="x")])
    with (place / "root/f").open(), pytest.raises(DiskError, match="busy"):
        unmount(place / "root")
    unmount(place / "root")
    unmount(place / "root")
    unmount(place / "nothing")
    mount_overlay(place / "root", [place / "one"])
    with (place / "root/f").open():
        unmount(place / "root", detach=True)
        assert mounts_below(place) == []


def test_a_bug_in_the_thread_that_mounts_is_no_mount() -> None:
    def act() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        overlay._in_a_thread(act)


def test_mounts_below_are_found_and_detached_deepest_first(place: Path) -> None:
    odd = place / "with space\tand ü"
    odd.mkdir()
    (place / "root-not-below").mkdir()
    one = layer(place, "one")
    (one / "inner").mkdir()
    mount_overlay(place / "root", [one])
    subprocess.run(["mount", "--bind", one, place / "root/inner"], check=True)
    for point in (odd, place / "root-not-below"):
        mount_overlay(point, [one])
    assert mounts_below(place / "root") == [place / "root", place / "root/inner"]
    assert odd in mounts_below(place)
    detach_below(place / "root")
    assert mounts_below(place) == [odd, place / "root-not-below"]


def test_I12_private_mounts_vanish_with_a_killed_process(place: Path) -> None:
    (place / "one").mkdir()
    program = """
import os, signal, sys
from pathlib import Path
from storage.overlay import mount_overlay, mounts_below, private_mounts
private_mounts()
mount_overlay(Path(sys.argv[1]) / "root", [Path(sys.argv[1]) / "one"])
print(len(mounts_below(Path(sys.argv[1]))), flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", program, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"1\n"
    assert mounts_below(place) == []
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    (place / "root").rmdir()
