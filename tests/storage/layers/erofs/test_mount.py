"""Which way an image is mounted, on kernels that refuse some of them, and what a refusal leaves."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.digest import sha256
from storage.errors import DiskError
from storage.layers.erofs import mount
from storage.layers.erofs.image import ImageWriter
from storage.layers.erofs.mount import ErofsMounts, mount_loop
from storage.overlay import mounts_below

GET_FREE, CONFIGURE, CLEAR = 0x4C82, 0x4C0A, 0x4C01


@dataclass
class LoopDevices:
    """The kernel's loop devices, numbered as they are asked for: `taken` of them by others just before us."""

    place: Path
    taken: int = 0
    refuse: int = 0
    asked: int = 0
    attached: dict[int, bytes] = field(default_factory=dict)
    """By the open device."""
    _open: Callable[..., int] = os.open

    def open(self, path: str | os.PathLike[str], flags: int, *more: int) -> int:
        if str(path).startswith("/dev/loop"):
            path = self.place / Path(path).name
            flags |= os.O_CREAT
        return self._open(path, flags, *more)

    def ioctl(self, fd: int, request: int, argument: bytes | int = 0) -> int:
        if request == GET_FREE:
            self.asked += 1
            return self.asked
        if request == CLEAR:
            del self.attached[fd]
            return 0
        assert request == CONFIGURE
        assert isinstance(argument, bytes)
        if self.refuse or self.asked <= self.taken:
            raise OSError(self.refuse or errno.EBUSY, "refused")
        self.attached[fd] = os.pread(int.from_bytes(argument[:4], "little"), 100, 0)
        return 0


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopDevices:
    devices = LoopDevices(tmp_path)
    monkeypatch.setattr(os, "open", devices.open)
    monkeypatch.setattr(fcntl, "ioctl", devices.ioctl)
    return devices


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"an image")
    return path


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def test_a_loop_device_that_somebody_else_was_quicker_at_is_not_used(
    loops: LoopDevices, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted: list[tuple[Path, Path, str]] = []
    monkeypatch.setattr(mount, "mount_read_only", lambda *what: mounted.append(what))
    loops.taken = 3
    before = descriptors()
    mount_loop(image, Path("target"))
    assert mounted == [(Path("/dev/loop4"), Path("target"), "erofs")]
    assert list(loops.attached.values()) == [b"an image"]
    assert descriptors() <= before  # those of a test before may be gone meanwhile


@pytest.mark.parametrize(("taken", "refuse"), [(10**6, 0), (0, errno.EINVAL)])
def test_no_loop_device_is_an_error_that_leaves_nothing_open(
    loops: LoopDevices, image: Path, taken: int, refuse: int
) -> None:
    loops.taken, loops.refuse = taken, refuse
    before = descriptors()
    with pytest.raises(OSError, match="refused" if refuse else "no free loop device"):
        mount_loop(image, Path("target"))
    assert loops.asked == (1 if refuse else 50)
    assert descriptors() <= before  # those of a test before may be gone meanwhile


def test_a_loop_device_whose_image_cannot_be_mounted_is_free_again(
    loops: LoopDevices, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        assert loops.attached
        raise OSError(errno.ENODEV, "no EROFS")

    monkeypatch.setattr(mount, "mount_read_only", refuse)
    before = descriptors()
    with pytest.raises(OSError, match="no EROFS"):
        mount_loop(image, Path("target"))
    assert loops.attached == {}
    assert descriptors() <= before  # those of a test before may be gone meanwhile


@pytest.mark.parametrize("way", ["none", "file", "loop"])
def test_the_first_way_that_shows_an_overlay_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """By kernels that mount files, devices only, or neither; they do not know of it which `works` asks."""
    used: list[str] = []

    def mounting(name: str) -> Callable[[Path, Path], None]:
        def act(_image: Path, target: Path) -> None:
            used.append(name)
            if name != way:
                raise OSError(errno.ENOTBLK, "a block device is wanted")
            assert target.is_dir()

        return act

    monkeypatch.setattr(mount, "mount_file", mounting("file"))
    monkeypatch.setattr(mount, "mount_loop", mounting("loop"))
    monkeypatch.setattr(mount, "mount_overlay", lambda target, lowers: None)
    monkeypatch.setattr(mount, "unmount", lambda target, *, detach: None)
    mounts = ErofsMounts(tmp_path / "tmp", "b1")
    assert mounts.works == mounts.possible == (way != "none")
    assert used == (["file"] if way == "file" else ["file", "loop"])
    path = tmp_path / "layer.erofs"
    with ImageWriter(path) as out:
        out.finish(sha256(b""))
    if way == "none":
        with pytest.raises(DiskError, match=r"mounts no EROFS images \(use --snapshotter directory\)"):
            mounts.lower(path)
    else:
        assert mounts.lower(path) == mounts.lower(path)
        assert used[-2:] == ["loop", "loop"] or used == ["file", "file"]
    mounts.close()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_image_that_cannot_be_mounted_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layer.erofs"
    with ImageWriter(path) as out:
        out.finish(sha256(b""))
    said = [OSError(errno.EUCLEAN, "Structure needs cleaning")]

    def act(_image: Path, _target: Path) -> None:
        if said:
            raise said.pop()

    monkeypatch.setattr(mount, "_choose_mount", lambda _scratch: act)
    monkeypatch.setattr(mount, "unmount", lambda target, *, detach: None)
    mounts = ErofsMounts(tmp_path / "tmp", "b1")
    with pytest.raises(DiskError, match="mounting a layer: Structure needs cleaning"):
        mounts.lower(path)
    assert mounts.lower(path).is_dir()
    mounts.close()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("at", ["directory", "image"])
def test_a_full_disk_is_no_kernel_without_erofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full) if at == "directory" else monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="trying out EROFS: No space left on device"):
        assert ErofsMounts(tmp_path, "b1").works
    assert list(tmp_path.iterdir()) == []


def made(path: Path) -> Path:
    with ImageWriter(path) as new:
        new.finish(sha256(b""))
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_an_image_that_the_kernel_refuses_is_said(tmp_path: Path) -> None:
    mounts = ErofsMounts(tmp_path / "tmp", "b1")
    if not mounts.works:
        pytest.skip("no EROFS here")
    damaged = made(tmp_path / "image")
    with damaged.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(128))
    with pytest.raises(DiskError, match="mounting a layer"):
        mounts.lower(damaged)
    assert mounts_below(tmp_path) == []
    assert mounts.lower(made(tmp_path / "another")).is_dir(), "and hinders no other"
    mounts.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
def test_a_loop_device_is_let_go_of_when_its_file_cannot_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(bytes(1 << 16))
    (tmp_path / "at").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        mount_loop(tmp_path / "none", tmp_path / "at")
    held = [file.read_text().strip() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert str(tmp_path / "none") not in held
