"""Mounting EROFS images: the file itself where the kernel takes one (Linux 6.12), else through a loop device.

Sources: mount(2), loop(4), Linux <linux/loop.h>; Documentation/filesystems/erofs.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from storage.digest import sha256
from storage.errors import DiskError
from storage.layers.erofs.header import Image
from storage.overlay import mount_overlay, mount_read_only, unmount
from storage.scratch import Scratch, clear_away

KIND = "erofs"
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_CLR_FD = 0x4C82, 0x4C0A, 0x4C01
_READ_ONLY, _AUTOCLEAR = 1, 4
_LOOP_CONFIG = struct.Struct("<II52xI176x64x")  # fd, block size, loop_info64 with lo_flags, reserved
_TRIES = 50

Mount = Callable[[Path, Path], None]


def mount_file(image: Path, target: Path) -> None:
    """Mount the file at `image` itself. Raises OSError, ENOTBLK on kernels that want a device."""
    mount_read_only(image, target, KIND)


def mount_loop(image: Path, target: Path) -> None:
    """Mount by way of a loop device that goes away with the mount. Raises OSError."""
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, loop = _loop_device(fd)
        try:
            mount_read_only(loop, target, KIND)
        except OSError:
            with suppress(OSError):
                fcntl.ioctl(device, _LOOP_CLR_FD)
            raise
        finally:
            os.close(device)
    finally:
        os.close(fd)


def _loop_device(fd: int) -> tuple[int, Path]:
    """A loop device on the open file `fd`: its descriptor, and its name. Others may be quicker at each free one."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(fd, 512, _READ_ONLY | _AUTOCLEAR))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")


def _choose_mount(scratch: Scratch) -> Mount | None:
    """The way that this kernel mounts EROFS images on the file system of `scratch`, and overlays on them; None when
    there is none. Tried with an empty image. Raises DiskError when that cannot be written."""
    from storage.layers.erofs.image import ImageWriter

    try:
        directory = scratch.directory()
    except OSError as error:
        raise DiskError.of(error, "trying out EROFS") from error
    try:
        with ImageWriter(directory / "image") as image:
            image.finish(sha256(b""))
        for name in ("mounted", "overlay"):
            (directory / name).mkdir()
        for mount in (mount_file, mount_loop):
            with suppress(OSError, DiskError):
                mount(directory / "image", directory / "mounted")
                try:
                    mount_overlay(directory / "overlay", [directory / "mounted"])
                    unmount(directory / "overlay", detach=True)
                    return mount
                finally:
                    unmount(directory / "mounted", detach=True)
    except OSError as error:
        raise DiskError.of(error, "trying out EROFS") from error
    finally:
        clear_away(directory)
    return None


@cache
def _is_listed() -> bool:
    """Has the kernel the file system already? Asked for each layer that is looked for."""
    return f"\t{KIND}\n" in Path("/proc/filesystems").read_text()


class ErofsMounts:
    """The images that this process has mounted: each once, in a scratch directory of its owner, while it lives. What an
    image's layer only implies is noted beside its mount, as beside a directory's tree (storage/layers/implied.py).

    Mounts belong to the mount namespace: a build has one of its own, so they vanish with it, also at kill -9.
    """

    def __init__(self, tmp: Path, owner: str) -> None:
        """`owner` names the scratch directory. Raises InputError when it is not lower-case alphanumeric."""
        self._scratch = Scratch(tmp, owner)
        self._way: list[Mount | None] = []
        self._directory: Path | None = None
        self._mounted: dict[Path, Path] = {}
        self._count = 0
        self._lock = threading.Lock()

    @property
    def possible(self) -> bool:
        """Can images be mounted here? Tried out once, but for the usual case: there are some, and the kernel lists
        the file system. Raises DiskError."""
        with self._lock:
            return (not self._way and _is_listed()) or self._choose() is not None

    @property
    def works(self) -> bool:
        """Like `possible`, tried out for certain."""
        with self._lock:
            return self._choose() is not None

    def lower(self, image: Path) -> Path:
        """Mount `image` unless it is; the directory where it is. Raises DiskError."""
        with self._lock:
            target = self._mounted.get(image)
            if target is None:
                target = self._mounted[image] = self._mount(image)
            return target

    def forget(self, image: Path) -> None:
        """Unmount `image` if it is mounted: what will be at that path is another file. Raises DiskError."""
        with self._lock:
            target = self._mounted.pop(image, None)
            if target is not None:
                unmount(target, detach=True)

    def close(self) -> None:
        """Unmount everything. Raises DiskError."""
        with self._lock:
            for target in self._mounted.values():
                unmount(target, detach=True)
            self._mounted.clear()
            if self._directory is not None:
                clear_away(self._directory)
                self._directory = None

    def _mount(self, path: Path) -> Path:
        from storage.layers.implied import write_implied

        way = self._choose()
        if way is None:
            raise DiskError("this kernel mounts no EROFS images", where=str(path), hint="use --snapshotter directory")
        try:
            image = Image.open(path)
            if self._directory is None:
                self._directory = self._scratch.directory()
            self._count += 1
            target = self._directory / str(self._count) / "fs"
            target.mkdir(parents=True)
            write_implied(target.parent, image.implied())
            way(path, target)
        except OSError as error:
            raise DiskError.of(error, "mounting a layer") from error
        return target

    def _choose(self) -> Mount | None:
        if not self._way:
            self._way.append(_choose_mount(self._scratch))
        return self._way[0]
