"""How an image comes to be mounted, whatever this kernel offers; and what is said where it offers nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.digest import sha256
from storage.errors import DiskError
from storage.layers.erofs import mount
from storage.layers.erofs.image import ImageWriter
from storage.layers.erofs.mount import ErofsMounts, mount_loop
from storage.overlay import mounts_below

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[ErofsMounts]:
    made = ErofsMounts(tmp_path / "tmp", "b1")
    yield made
    made.close()


def image(path: Path) -> Path:
    with ImageWriter(path) as new:
        new.finish(sha256(b""))
    return path


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def test_a_kernel_that_mounts_none_is_told_of_with_what_to_do(
    mounts: ErofsMounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount, "mount_file", refuse(errno.ENODEV))
    monkeypatch.setattr(mount, "mount_loop", refuse(errno.ENODEV))
    assert not mounts.works
    assert not mounts.possible
    with pytest.raises(DiskError, match=r"this kernel mounts no EROFS images \(use --snapshotter directory\)"):
        mounts.lower(image(tmp_path / "image"))
    assert list((tmp_path / "tmp").iterdir()) == []


@needs_root
@pytest.mark.parametrize("way", ["mount_file", "mount_loop"])
def test_a_way_that_gives_no_overlay_is_not_taken(
    mounts: ErofsMounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Nor is anything left of trying it."""
    other = {"mount_file": "mount_loop", "mount_loop": "mount_file"}[way]
    monkeypatch.setattr(mount, other, refuse(errno.ENOTBLK))
    monkeypatch.setattr(mount, way, lambda image, target: None)
    monkeypatch.setattr(mount, "mount_overlay", refuse(errno.EINVAL))
    assert not mounts.works
    assert list((tmp_path / "tmp").iterdir()) == mounts_below(tmp_path) == []


def test_a_disk_on_which_it_cannot_be_tried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="trying out EROFS"):
        ErofsMounts(tmp_path / "file/tmp", "b1").works  # noqa: B018  reason: asking is what is tried
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(DiskError, match="trying out EROFS: No space left on device"):
        ErofsMounts(tmp_path / "tmp", "b1").works  # noqa: B018
    assert list((tmp_path / "tmp").iterdir()) == []


@needs_root
def test_an_image_that_the_kernel_refuses_is_said(mounts: ErofsMounts, tmp_path: Path) -> None:
    if not mounts.works:
        pytest.skip("no EROFS here")
    damaged = image(tmp_path / "image")
    with damaged.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(128))
    with pytest.raises(DiskError, match="mounting a layer"):
        mounts.lower(damaged)
    assert mounts_below(tmp_path) == []
    assert mounts.lower(image(tmp_path / "another")).is_dir(), "and hinders no other"


@needs_root
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
def test_a_loop_device_is_let_go_of_when_its_file_cannot_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(bytes(1 << 16))
    (tmp_path / "at").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        mount_loop(tmp_path / "none", tmp_path / "at")
    held = [file.read_text().strip() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert str(tmp_path / "none") not in held


class Loops:
    """A kernel with loop devices, as `fcntl` and `os` of the module: of the free ones others take the first few."""

    def __init__(self, place: Path, taken: int, error: int = errno.EBUSY) -> None:
        self._place = place
        self._taken = taken
        self._error = error
        self.open_files: set[int] = set()

    def ioctl(self, fd: int, request: int, *_: object) -> int:
        """The number of a free device, or what becomes of configuring it."""
        assert fd in self.open_files
        if request == mount._LOOP_CTL_GET_FREE:
            return 7
        if request == mount._LOOP_CONFIGURE and self._taken:
            self._taken -= 1
            raise OSError(self._error, os.strerror(self._error))
        return 0

    def open(self, path: object, flags: int) -> int:
        """A device, or a real file."""
        name = str(path)
        fd = os.open(self._place if name.startswith("/dev/") else name, os.O_RDONLY | os.O_CLOEXEC)
        self.open_files.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Of either."""
        self.open_files.remove(fd)
        os.close(fd)


@pytest.mark.parametrize("taken", [0, 3])
def test_others_may_be_quicker_at_a_free_loop_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    loops = kernel(tmp_path, monkeypatch, taken)
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(mount, "mount_read_only", lambda *arguments: asked.append(arguments))
    mount_loop(tmp_path / "device", tmp_path)
    assert asked == [(Path("/dev/loop7"), tmp_path, "erofs")]
    assert loops.open_files == set()


@pytest.mark.parametrize(("taken", "error", "said"), [
    (1000, errno.EBUSY, "no free loop device"), (1, errno.EPERM, "Operation not permitted"),
])  # fmt: skip
def test_where_no_loop_device_is_to_be_had_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, error: int, said: str
) -> None:
    loops = kernel(tmp_path, monkeypatch, taken, error)
    with pytest.raises(OSError, match=said):
        mount_loop(tmp_path / "device", tmp_path)
    assert loops.open_files == set()


def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, error: int = errno.EBUSY) -> Loops:
    (tmp_path / "device").touch()
    loops = Loops(tmp_path / "device", taken, error)
    names = {name: getattr(os, name) for name in ("O_RDONLY", "O_RDWR", "O_CLOEXEC")}
    monkeypatch.setattr(mount, "os", SimpleNamespace(open=loops.open, close=loops.close, **names))
    monkeypatch.setattr(mount, "fcntl", SimpleNamespace(ioctl=loops.ioctl))
    return loops
