"""What benches beside other builders share: the sides, measured commands, a place to work in, and tables.

Peak memory is wait4's ru_maxrss: the largest *single* process among a command and the descendants it waited for, so
steps' own processes count and sums do not. Page cache does not count.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import HostError
from storage.overlay import detach_below
from tools.lab import PROJECT
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.seed import seed

CORES = os.cpu_count() or 1
_SECTOR = 512


@dataclass(frozen=True)
class Measured:
    """`seconds` of wall clock, `settled` with the sync that brings all of it to the disk; `peak` memory in bytes.
    `disk`: bytes that the disk was given to write until that sync, by whomever; `own`: bytes that the command and the
    descendants it waited for made dirty or wrote, as the kernel accounts them (files that are deleted before they
    reach the disk count here, and the file system's own blocks do not)."""

    seconds: float
    peak: int
    settled: float
    disk: int
    own: int

    def then(self, other: Measured) -> Measured:
        """Both, one after the other; the first one's sync counts."""
        return Measured(
            self.seconds + other.seconds, max(self.peak, other.peak), self.settled + other.settled,
            self.disk + other.disk, self.own + other.own,
        )  # fmt: skip


def measure(*command: str, disk: Path, environment: dict[str, str] | None = None) -> Measured:
    """Run `command` to its end; `disk`: a directory on the disk that is watched. Raises HostError with its last words
    when it fails."""
    os.sync()  # what earlier work left to be written is not this command's
    before = written(disk)
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-6:]
            raise HostError(f"{Path(command[0]).name} failed ({process.returncode}): {' / '.join(last)}")
    os.sync()
    settled = time.perf_counter() - started
    return Measured(seconds, usage.ru_maxrss * 1024, settled, written(disk) - before, usage.ru_oublock * _SECTOR)


def written(directory: Path) -> int:
    """Bytes written so far to the block device that holds `directory` (Documentation/block/stat.rst); 0 when it is on
    none."""
    device = directory.stat().st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return 0
    return int(fields[6]) * _SECTOR


class Refledger:
    """This project, by its own command."""

    name = "refledger"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "refledger"

    def empty(self) -> None:
        """Begin anew."""
        clear(self.root)

    def build(self, context: Path, tag: str = "") -> Measured:
        """Build `context`; with `tag`, push the result under that name."""
        command = [str(PROJECT / "tools/refledger"), "build", str(context), "--progress", "quiet"]
        if tag:
            command += ["-t", tag, "--push"]
        return measure(*command, disk=self.directory, environment={"REFLEDGER_ROOT": str(self.root)})

    def pull(self, context: Path, _image: str) -> Measured:
        """What needs all layers: a build with a RUN."""
        return self.build(context)


class Buildah:
    """`buildah bud --layers`, and `podman pull` for a plain pull."""

    name = "buildah"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "containers"
        self.storage = ["--storage-driver", "overlay", "--root", f"{self.root}/root", "--runroot", f"{self.root}/run"]

    def empty(self) -> None:
        """Begin anew."""
        clear(self.root)

    def build(self, context: Path, tag: str = "") -> Measured:
        """Build `context`; with `tag`, push the result under that name."""
        done = measure(
            "buildah", *self.storage, "bud", "--layers", "--quiet", "--runtime", "runc", "--tls-verify=false",
            "--jobs", str(CORES), "--tag", "bench", str(context), disk=self.directory,
        )  # fmt: skip
        if not tag:
            return done
        push = measure(
            "buildah", *self.storage, "push", "--quiet", "--tls-verify=false", "bench", f"docker://{tag}",
            disk=self.directory,
        )  # fmt: skip
        return done.then(push)

    def pull(self, _context: Path, image: str) -> Measured:
        """The bare pull, with nothing run on it."""
        return measure(
            "podman", *self.storage, "pull", "--quiet", "--tls-verify=false", image, disk=self.directory
        )


class SkopeoUmoci:
    """`skopeo copy` to an OCI layout, then `umoci unpack`: the plain way to a root filesystem."""

    name = "skopeo + umoci"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "umoci"

    def empty(self) -> None:
        """Begin anew."""
        clear(self.root)

    def pull(self, _context: Path, image: str) -> Measured:
        """Fetch and unpack `image`."""
        self.root.mkdir()
        layout = f"{self.root}/layout:big"
        fetched = measure(
            "skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}",
            disk=self.directory,
        )  # fmt: skip
        return fetched.then(
            measure("umoci", "unpack", "--image", layout, f"{self.root}/bundle", disk=self.directory)
        )


Side = Refledger | Buildah


@dataclass(frozen=True)
class Place:
    """Where benches make their contexts, and the registry they build from."""

    directory: Path
    registry: LoopbackRegistry

    def context(self, name: str, dockerfile: Sequence[str]) -> Path:
        """A new context with this Dockerfile."""
        context = self.directory / name
        context.mkdir()
        (context / "Dockerfile").write_text("\n".join(dockerfile) + "\n")
        return context

    def image(self, kind: str) -> str:
        """A seeded base image."""
        return seed(self.registry.host, f"base/{kind}", kind).reference


def many_files(context: Path) -> None:
    """10,000 files of 2 kB in 100 directories below `context`/files."""
    content = random.Random(1)  # noqa: S311  the same files every time
    for directory in range(100):
        (context / f"files/{directory:03}").mkdir(parents=True)
        for number in range(100):
            (context / f"files/{directory:03}/{number:03}.dat").write_bytes(content.randbytes(2000))


def cold(side: Side, context: Path, tag: str = "") -> Measured:
    """Build with empty storage."""
    side.empty()
    return side.build(context, tag)


def clear(directory: Path) -> None:
    """Remove a tool's storage with whatever it left mounted."""
    with contextlib.suppress(OSError):  # reason: what stays mounted is told of below
        detach_below(directory)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise HostError("could not be emptied", where=str(directory))


def spread(values: Sequence[float], digits: int) -> str:
    """`median (least to most)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@contextlib.contextmanager
def workplace(parent: Path | None = None) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="refledger-lab-", dir=parent)).resolve()
    try:
        yield directory
    finally:
        clear(directory)
