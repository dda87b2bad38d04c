"""Overlay mounts, by the mount API where the kernel has it, by mount(2) with short names elsewhere.

Layers are handed to the kernel as descriptors or as names of a few bytes, so that chains of hundreds of layers with
any path, colons and commas included, fit. Sources: fsopen(2), mount_setattr(2), mount(2); Linux
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from storage.errors import DiskError

_libc = ctypes.CDLL(None, use_errno=True)

# <asm/unistd.h>: the same numbers on every architecture since Linux 5.1; <linux/mount.h>, <sched.h>, <sys/mount.h>
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _SET_FD, _CMD_CREATE = 0, 1, 5, 6
_ATTR_RDONLY = 1
_MOVE_F_EMPTY_PATH = 4
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_SECRET = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_OPTIONS = {"redirect_dir": "nofollow", "metacopy": "off", "index": "off"}
"""What makes an upper mean the same beside any other lowers: no entry of it points into a lower."""

_MOST = 500
"""Lowers that one overlay has at most (OVL_MAX_STACK in fs/overlayfs/params.h), and an overlay may be one of them."""
_PATIENCE = 30.0  # seconds for a process that is about to exit, on a busy machine, to let go of a mount


def mount_overlay(target: Path, lowers: Sequence[Path], upper: Path | None = None, work: Path | None = None) -> None:
    """Mount `lowers` (bottom first, 0 to 999) at directory `target`: read-only, or writable with `upper` and an empty
    `work` of one file system. An empty directory `empty` is made beside `target` where the kernel wants a
    lower too many. Until the mount is gone syncs inside it do nothing: the caller makes `upper` durable. Raises
    DiskError."""
    layers = list(dict.fromkeys(reversed(lowers)))  # an image may have a layer twice; the upper one covers the other
    if len(layers) > _MOST:
        _mount_on_one(target, layers, upper, work)
    else:
        _mount_layers(target, layers, upper, work)


def _mount_on_one(target: Path, layers: list[Path], upper: Path | None, work: Path | None) -> None:
    """The lowest of `layers` (top first) as one overlay, for which the other one stays when it is unmounted here."""
    try:
        below = Path(tempfile.mkdtemp(prefix="below-", dir=target.parent))
        try:
            _mount_layers(below, layers[_MOST - 1 :], None, None)
            try:
                _mount_layers(target, [*layers[: _MOST - 1], below], upper, work)
            finally:
                _umount(below, _MNT_DETACH)
        finally:
            below.rmdir()
    except OSError as error:
        raise _explain(error, target, len(layers)) from error


def _mount_layers(target: Path, layers: list[Path], upper: Path | None, work: Path | None) -> None:
    """`layers`: top first."""
    try:
        if len(layers) < (1 if upper else 2):
            # overlay wants two layers; over an empty one even a lone lower hides its whiteouts
            empty = target.parent / "empty"
            empty.mkdir(exist_ok=True)
            layers.append(empty)
        if len(layers) == 1 and upper is None:
            _bind_read_only(layers[0], target)
        elif _has_mount_api():
            _mount_by_descriptors(target, layers, upper, work)
        else:
            _mount_by_short_names(target, layers, upper, work)
    except OSError as error:
        raise _explain(error, target, len(layers)) from error


def mount_memory(target: Path) -> None:
    """Mount an empty tmpfs, 0700, at directory `target`, one that is never swapped out where the kernel (6.4) can.
    Raises OSError."""
    try:
        _mount("tmpfs", str(target), "tmpfs", _SECRET, "mode=0700,noswap")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount("tmpfs", str(target), "tmpfs", _SECRET, "mode=0700")


def mount_read_only(source: Path, target: Path, kind: str) -> None:
    """Mount file system `kind` from `source`, a file or a device, read-only at directory `target`. Raises OSError."""
    _mount(str(source), str(target), kind, _MS_RDONLY, None)


def unmount(target: Path, *, detach: bool = False) -> None:
    """Unmount `target`; `detach` at once, even when it is busy. Harmless when nothing is mounted. Raises DiskError."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _umount(target, _MNT_DETACH if detach else 0)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:
                return None
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise DiskError.of(error, "unmounting a snapshot") from error
            time.sleep(0.01)


def private_mounts() -> None:
    """Give this process mounts of its own: they vanish with it, also at kill -9. Call before threads are started,
    as each thread keeps the mounts it was born with. Raises DiskError."""
    try:
        _check(_libc.unshare(_CLONE_NEWNS))
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)
    except OSError as error:
        raise DiskError.of(error, "making mounts of our own") from error


def mounts_below(path: Path) -> list[Path]:
    """Mount points at and below `path` that this process sees, in the order they were mounted."""
    top = os.fsencode(path.resolve())
    points = [line.split(b" ", 5)[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    names = [re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), point) for point in points]
    return [Path(os.fsdecode(name)) for name in names if name == top or name.startswith(top + b"/")]


def detach_below(path: Path) -> None:
    """Detach all mounts at and below `path`, the last first. Raises OSError."""
    for point in reversed(mounts_below(path)):
        _umount(point, _MNT_DETACH)


# ---------------------------------------------------------------- the mount API (Linux 6.7 for `lowerdir+`)


def _mount_by_descriptors(target: Path, layers: Sequence[Path], upper: Path | None, work: Path | None) -> None:
    with ExitStack() as stack:
        context = _check(_libc.syscall(_SYS_FSOPEN, b"overlay", _FSOPEN_CLOEXEC))
        stack.callback(os.close, context)
        try:
            for key, value in _OPTIONS.items():
                _set_string(context, key, value)
            for layer in layers:
                _set_layer(context, "lowerdir+", layer)
            if upper and work:
                _set_layer(context, "upperdir", upper)
                _set_layer(context, "workdir", work)
                _set_flag(context, "volatile")
            _check(_libc.syscall(_SYS_FSCONFIG, context, _CMD_CREATE, None, None, 0))
        except OSError as error:
            raise OSError(error.errno, _messages(context) or error.strerror, error.filename or str(target)) from error
        attributes = 0 if upper else _ATTR_RDONLY
        mount = _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes))
        stack.callback(os.close, mount)
        _check(
            _libc.syscall(_SYS_MOVE_MOUNT, mount, b"", -100, os.fsencode(target), _MOVE_F_EMPTY_PATH), str(target)
        )


def _set_layer(context: int, key: str, path: Path) -> None:
    """By descriptor (Linux 6.13), or by a name of it: a string longer than 255 bytes is refused."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syscall(_SYS_FSCONFIG, context, _SET_FD, key.encode(), None, fd):
            _set_string(context, key, f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _set_string(context: int, key: str, value: str) -> None:
    _check(_libc.syscall(_SYS_FSCONFIG, context, _SET_STRING, key.encode(), value.encode(), 0))


def _set_flag(context: int, key: str) -> None:
    _check(_libc.syscall(_SYS_FSCONFIG, context, _SET_FLAG, key.encode(), None, 0))


def _messages(context: int) -> str:
    """What the kernel has to say about the attempt, one line."""
    lines = []
    try:
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace").strip().removeprefix("e ").removeprefix("w "))
    except OSError:
        pass  # ENODATA: no more messages
    return "; ".join(dict.fromkeys(lines))


_mount_api: list[bool] = []


def _has_mount_api() -> bool:
    """Does this kernel take layers one by one? Found out once a process."""
    if not _mount_api:
        context = _libc.syscall(_SYS_FSOPEN, b"overlay", _FSOPEN_CLOEXEC)
        if context < 0:
            _mount_api.append(False)
        else:
            _mount_api.append(not _libc.syscall(_SYS_FSCONFIG, context, _SET_STRING, b"lowerdir+", b"/", 0))
            os.close(context)
    return _mount_api[0]


# ---------------------------------------------------------------- the old system call


def _mount_by_short_names(target: Path, layers: Sequence[Path], upper: Path | None, work: Path | None) -> None:
    """The options must fit in one page, so layers are named by links of one to three letters in the directory that
    a thread of its own has as working directory."""
    with tempfile.TemporaryDirectory(prefix="l-", dir=target.parent) as directory:
        names = [_short(number) for number in range(len(layers))]
        for name, layer in zip(names, layers, strict=True):
            Path(directory, name).symlink_to(layer.absolute())
        options = [f"{key}={value}" for key, value in _OPTIONS.items()] + ["lowerdir=" + ":".join(names)]
        if upper and work:
            Path(directory, "U").symlink_to(upper.absolute())
            Path(directory, "W").symlink_to(work.absolute())
            options += ["upperdir=U", "workdir=W", "volatile"]
        where = str(target.absolute())

        def act() -> None:
            _check(_libc.unshare(_CLONE_FS))
            os.chdir(directory)
            try:
                _mount("overlay", where, "overlay", 0 if upper else _MS_RDONLY, ",".join(options))
            except OSError as error:
                if error.errno != errno.EINVAL or "volatile" not in options:
                    raise
                options.remove("volatile")  # Linux before 5.10
                _mount("overlay", where, "overlay", 0, ",".join(options))

        _in_a_thread(act)


def _short(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return (_short(number // 36) if number >= 36 else "") + digits[number % 36]


def _in_a_thread(act: Callable[[], None]) -> None:
    failure: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failure.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _bind_read_only(source: Path, target: Path) -> None:
    _mount(str(source), str(target), None, _MS_BIND, None)
    try:
        _mount("none", str(target), None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY, None)
    except OSError:
        _umount(target, _MNT_DETACH)
        raise


# ---------------------------------------------------------------- system calls


def _check(result: int, where: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), where)
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind and kind.encode(), ctypes.c_ulong(flags),
        options and options.encode(),
    )  # fmt: skip
    _check(result, target)


def _umount(target: Path, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(target), flags | _UMOUNT_NOFOLLOW), str(target))


def _explain(error: OSError, target: Path, layers: int) -> DiskError:
    known = DiskError.of(error, f"mounting an overlay of {layers} layers")
    hints = {
        errno.ENODEV: "this kernel has no overlay file system: modprobe overlay",
        errno.EINVAL: "the file system of REFLEDGER_ROOT may not serve as overlay upper (another overlay, NFS): "
        "put it on ext4, xfs, btrfs or tmpfs; 999 layers are the most",
        errno.EPERM: "run as root, outside of containers that may not mount",
        errno.ENOENT: "a layer is missing: was the root changed by hand?",
    }
    return DiskError(known.what, where=known.where or str(target), hint=hints.get(error.errno or 0, known.hint))
