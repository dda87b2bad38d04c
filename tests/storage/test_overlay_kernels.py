"""What kernels other than this one say to the same calls, and what is made of it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import overlay
from storage.errors import DiskError
from storage.overlay import detach_below, mount_memory, mount_overlay, mounts_below, private_mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Two lowers, a mount point `root`, and `upper` and `work`."""
    for name in ("lower0", "lower1", "root", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower0/file").write_text("content")
    yield tmp_path
    detach_below(tmp_path)


class Kernel:
    """The C library, some of whose calls fail: `refuses` gives the error of one, 0 for none."""

    def __init__(self, refuses: Callable[..., int]) -> None:
        self._refuses = refuses
        self._real = overlay._libc

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if number := self._refuses(name, *arguments):
                ctypes.set_errno(number)
                return -1
            return int(getattr(self._real, name)(*arguments))

        return call


def lowers(place: Path) -> list[Path]:
    return [place / "lower0", place / "lower1"]


def test_a_kernel_without_the_mount_api_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_mount_api", [])
    monkeypatch.setattr(overlay, "_libc", Kernel(lambda name, *_: errno.ENOSYS if name == "syscall" else 0))
    assert not overlay._has_mount_api()


def test_one_that_takes_layers_by_name_only_is_given_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not overlay._has_mount_api():
        pytest.skip("needs the mount API")

    def refuses(name: str, *arguments: Any) -> int:
        return errno.EINVAL if name == "syscall" and arguments[0::2][:2] == (431, 5) else 0

    monkeypatch.setattr(overlay, "_libc", Kernel(refuses))
    mount_overlay(place / "root", lowers(place), place / "upper", place / "work")
    assert (place / "root/file").read_text() == "content"


def test_one_that_knows_no_volatile_uppers_does_without(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.10."""
    asked: list[bool] = []

    def refuses(name: str, *arguments: Any) -> int:
        if name == "mount":
            asked.append(b"volatile" in arguments[4])
            return errno.EINVAL if asked[-1] else 0
        return 0

    monkeypatch.setattr(overlay, "_mount_api", [False])
    monkeypatch.setattr(overlay, "_libc", Kernel(refuses))
    mount_overlay(place / "root", lowers(place), place / "upper", place / "work")
    assert asked == [True, False]
    (place / "root/new").write_text("x")
    assert (place / "upper/new").read_text() == "x"


def test_another_error_of_that_mount_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_mount_api", [False])
    monkeypatch.setattr(overlay, "_libc", Kernel(lambda name, *_: errno.ENODEV if name == "mount" else 0))
    with pytest.raises(DiskError, match="no overlay file system: modprobe overlay"):
        mount_overlay(place / "root", lowers(place), place / "upper", place / "work")


def test_what_cannot_be_made_read_only_does_not_stay_mounted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no layers at all a view is an empty directory, mounted by itself."""
    monkeypatch.setattr(overlay, "_libc", Kernel(
        lambda name, *arguments: errno.EPERM if name == "mount" and arguments[3].value & 32 else 0
    ))  # fmt: skip
    with pytest.raises(DiskError, match="run as root, outside of containers"):
        mount_overlay(place / "root", [])
    assert mounts_below(place) == []


def test_stacked_overlays_that_cannot_be_made_leave_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_MOST", 1)
    with pytest.raises(DiskError, match="a layer is missing"):
        mount_overlay(place / "none/root", lowers(place))
    with pytest.raises(DiskError):
        mount_overlay(place / "root", [*lowers(place), place / "none"])
    assert mounts_below(place) == []
    assert list(place.glob("below-*")) == []


@pytest.mark.parametrize(("number", "mounted"), [(errno.EINVAL, True), (errno.EPERM, False)])
def test_secrets_are_kept_in_memory_that_may_be_swapped_where_there_is_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int, mounted: bool
) -> None:
    """Linux before 6.4 knows no `noswap`."""
    monkeypatch.setattr(overlay, "_libc", Kernel(
        lambda name, *arguments: number if name == "mount" and b"noswap" in arguments[4] else 0
    ))  # fmt: skip
    if mounted:
        mount_memory(place / "root")
    else:
        with pytest.raises(PermissionError):
            mount_memory(place / "root")
    assert mounts_below(place) == ([place / "root"] if mounted else [])


def test_who_may_have_no_mounts_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_libc", Kernel(lambda name, *_: errno.EPERM if name == "unshare" else 0))
    with pytest.raises(DiskError, match="making mounts of our own"):
        private_mounts()


def test_what_the_kernel_says_of_a_mount_that_it_refuses_is_passed_on(place: Path) -> None:
    if not overlay._has_mount_api():
        pytest.skip("needs the mount API")
    mount_memory(place / "upper")
    for name in ("upper", "work"):
        (place / "upper" / name).mkdir()
    overlay._mount("none", str(place / "upper"), None, 32 | 4096 | 1, None)  # bind, remount, read-only
    with pytest.raises(DiskError, match=r"filesystem on .*/upper/upper is read-only"):
        mount_overlay(place / "root", lowers(place), place / "upper/upper", place / "upper/work")


def test_a_mount_point_that_may_not_be_unmounted_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_libc", Kernel(lambda name, *_: errno.EPERM if name == "umount2" else 0))
    with pytest.raises(DiskError, match="unmounting a snapshot: Operation not permitted"):
        overlay.unmount(place / "root")
    monkeypatch.undo()
    overlay.unmount(place / "root")
    overlay.unmount(place / "none")
