"""Power loss on a real file system: the root lies on ext4, xfs or btrfs in a file; when the plug is pulled, what has
reached that file is what there is. A second mount replays its journal, as after a reboot."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PAGE = 4096
_WRITE_AND_WAIT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER
_GOING_DOWN, _NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)  # XFS_IOC_GOINGDOWN: nothing more is written from now on
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """A file system: how an empty one is made (the file's name is added), and mount options, of which one is drawn."""

    make: tuple[str, ...]
    options: tuple[str, ...]
    mib: int = 400


KINDS = {
    "ext4": Kind(
        ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
        ("data=ordered,commit=300", "data=writeback,commit=300"),
    ),
    "xfs": Kind(("mkfs.xfs", "-q", "-f"), ("nouuid",)),  # others may have an earlier copy mounted still
    "btrfs": Kind(("mkfs.btrfs", "-q", "-f"), ("commit=300",)),
}


class Disk:
    """A file system in the file `image`, mounted at `point`. Needs root, a loop device and mkfs.KIND."""

    def __init__(self, image: Path, point: Path, kind: str = "ext4", mib: int = 0) -> None:
        self._kind = KINDS[kind]
        self._mib = mib or self._kind.mib
        self._image = image
        self._point = point
        self._mounted = False

    def make(self) -> None:
        """An empty one, mounted."""
        with self._image.open("wb") as file:
            file.truncate(self._mib << 20)
        _run(*self._kind.make, str(self._image))
        self.mount(self._kind.options[0])

    def mount(self, options: str) -> None:
        """Replays the journal where there is something to replay."""
        self._point.mkdir(parents=True, exist_ok=True)
        _run("mount", "-o", f"loop,{options}", str(self._image), str(self._point))
        self._mounted = True

    def unmount(self) -> None:
        """Leave nothing mounted here. Others whose mount namespace was made meanwhile may have it for a while: so each
        copy is a new file."""
        if self._mounted:
            _run("umount", "-l", str(self._point))
            self._mounted = False

    def keep(self, copy: Path) -> None:
        """Keep all of it as it is; goes on unmounted."""
        _run("sync", "-f", str(self._point))  # where others have it mounted still, nothing else writes it out
        self.unmount()
        _copy(self._image, copy)

    def put_back(self, copy: Path, dice: random.Random) -> None:
        """Have it as it was when it was kept, mounted."""
        self.unmount()
        _copy(copy, self._image)
        self.mount(dice.choice(self._kind.options))

    def pull_the_plug(self, dice: random.Random) -> None:
        """What was written and not made durable may have reached the disk, in part, in any order: some of it is
        written now. Then take what is in the file, and mount that."""
        _write_some(self._point, dice)
        self._stop()
        lost = self._image.with_name(f"{self._image.name}.lost")
        _copy(self._image, lost)
        self.unmount()
        lost.rename(self._image)
        self.mount(self._kind.options[0])

    def _stop(self) -> None:
        """Have nothing written while the file is copied. ext4 and btrfs write nothing for five minutes by themselves;
        xfs has no such option, and a call instead."""
        if self._kind is KINDS["xfs"]:
            fd = os.open(self._point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, _GOING_DOWN, _NO_LOG_FLUSH)
            finally:
                os.close(fd)


def _write_some(directory: Path, dice: random.Random) -> None:
    chance = dice.choice([0.0, 0.3, 0.7])
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.is_symlink() or dice.random() > chance:
            continue
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            try:
                for start in range(0, os.fstat(fd).st_size, _PAGE):
                    if dice.random() < 0.5:
                        _libc.sync_file_range(
                            fd, ctypes.c_int64(start), ctypes.c_int64(_PAGE), ctypes.c_uint(_WRITE_AND_WAIT)
                        )
            finally:
                os.close(fd)


def _copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    _run("cp", "--sparse=always", str(source), str(target))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def works(directory: Path, kind: str = "ext4") -> bool:
    """Can such a disk be made here?"""
    disk = Disk(directory / "try.img", directory / "try", kind)
    try:
        disk.make()
    except OSError:
        return False
    else:
        disk.unmount()
        return True
    finally:
        for path in directory.glob("try.img*"):
            path.unlink()
