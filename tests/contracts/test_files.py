"""The simulated disk against the kernel: the same system calls, the same answers, the same errors."""

from __future__ import annotations

import errno
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.conftest import simulated_place
from tests.simulation.syscalls import Os

os = Os()
NAMES = ("a", "b", "c")


def look(top: Path) -> dict[str, tuple[object, ...]]:
    """All that is below `top`: type, mode, content or target, and which names are the same file."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    waiting = [""]
    while waiting:
        name = waiting.pop()
        path = top / name if name else top
        status = os.lstat(path)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            names = sorted(os.listdir(path))
            waiting += [f"{name}/{entry}".lstrip("/") for entry in reversed(names)]
            content = tuple(names)
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes(), status.st_nlink, first.setdefault(status.st_ino, name)
        found[name] = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode) if name else 0, content
    return found


class Caller:
    """Makes random system calls below `top`, the same for the same seed, and notes what came of them."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.draws = random.Random(seed)
        self.fds: list[int] = []
        self.told: list[tuple[str, object]] = []

    def path(self) -> Path:
        """One or two names deep; through links, too."""
        depth = self.draws.choice((1, 1, 2, 2, 3))
        return self.top.joinpath(*(self.draws.choice(NAMES) for _ in range(depth)))

    def call(self) -> None:
        """One of the calls below."""
        name = self.draws.choice([name for name in dir(self) if name.startswith("do_")])
        try:
            answer: object = getattr(self, name)()
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        self.told.append((name, answer))

    def end(self) -> None:
        """Close what is open."""
        while self.fds:
            os.close(self.fds.pop())

    def do_mkdir(self) -> Any:
        return os.mkdir(self.path(), self.draws.choice((0o755, 0o700)))

    def do_open(self) -> Any:
        flags = self.draws.choice(
            (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_TRUNC,
             os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        )  # fmt: skip
        self.fds.append(os.open(self.path(), flags, 0o644))
        return len(self.fds)

    def do_create(self) -> Any:
        fd = os.open(self.path(), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            return os.write(fd, b"x" * self.draws.randrange(50))
        finally:
            os.close(fd)

    def _fd(self) -> int:
        return self.draws.choice(self.fds) if self.fds else -1

    def _writable(self) -> int:
        """Errors of descriptors that are used against their mode are no code's of ours."""
        for fd in self.draws.sample(self.fds, len(self.fds)):
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
        return -1

    def do_read_back(self) -> Any:
        path = self.path()
        fd = os.open(path, os.O_RDONLY)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return sorted(os.listdir(path))
            return os.read(fd, 20), os.pread(fd, 10, 5), os.lseek(fd, 3, os.SEEK_SET), os.read(fd, 4)
        finally:
            os.close(fd)

    def do_write_at(self) -> Any:
        fd = os.open(self.path(), os.O_RDWR)
        try:
            at, data = self.draws.randrange(80), bytes([self.draws.randrange(256)]) * self.draws.randrange(1, 30)
            return os.pwrite(fd, data, at), os.fstat(fd).st_size
        finally:
            os.close(fd)

    def do_truncate(self) -> Any:
        fd = os.open(self.path(), os.O_RDWR)
        try:
            os.ftruncate(fd, self.draws.randrange(60))
            os.fsync(fd)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def do_rename(self) -> Any:
        return os.rename(self.path(), self.path())

    def do_link(self) -> Any:
        return os.link(self.path(), self.path(), follow_symlinks=False)

    def do_symlink(self) -> Any:
        target = self.draws.choice(("a", "b", "../a", "a/b", "missing"))
        return os.symlink(target, self.path())

    def do_unlink(self) -> Any:
        return os.unlink(self.path())

    def do_rmdir(self) -> Any:
        return os.rmdir(self.path())

    def do_stat(self) -> Any:
        path = self.path()
        status = os.stat(path)
        return stat.S_IFMT(status.st_mode), path.is_dir(), path.is_file(), path.is_symlink(), path.exists()

    def do_scan(self) -> Any:
        with os.scandir(self.path()) as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False))
                for entry in entries
            )

    def do_chmod(self) -> Any:
        return os.chmod(self.path(), self.draws.choice((0o644, 0o4755)))

    def do_times(self) -> Any:
        path, when = self.path(), self.draws.randrange(10**18)
        os.utime(path, ns=(when, when))
        return os.stat(path).st_mtime_ns == when

    def do_attributes(self) -> Any:
        path = self.path()
        os.setxattr(path, b"trusted.x", b"1", follow_symlinks=False)
        return os.listxattr(path, follow_symlinks=False), os.getxattr(path, "trusted.x", follow_symlinks=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="attributes need root")
def test_any_calls_have_the_same_answers_on_both_disks(tmp_path: Path) -> None:
    with simulated_place() as place:
        for seed in range(100 * (20 if os.environ.get("REFLEDGER_LONG") else 1)):
            callers = []
            for top in (tmp_path / str(seed), place / str(seed)):
                top.mkdir()
                caller = Caller(top, seed)
                callers.append(caller)
                for _ in range(60):
                    caller.call()
                caller.end()
            real, simulated = callers
            for number, (one, other) in enumerate(zip(real.told, simulated.told, strict=True)):
                assert one == other, f"seed {seed}, call {number}"
            assert look(real.top) == look(simulated.top), f"seed {seed}"
