"""Roots: opened for building or for reading, and mended after a build that died. Names the concrete classes in one."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import BuildInterrupted, to_data
from projections.history import History
from projections.moments import Moments
from projections.runner import Views
from projections.standard import STANDARD, TRAVELLED
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.durable import fsync_directory, make_directories, replace_file
from storage.errors import DiskError, InputError, RefledgerError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.log import Event, EventLog, NewEvent
from storage.interfaces.mounts import SecretPlaces
from storage.layers.snapshots import OverlaySnapshots
from storage.locks import FileLocks
from storage.log.eventlog import SqliteEventLog, follow
from storage.overlay import private_mounts
from storage.partial import KEPT_SECONDS, DirectoryPartials
from storage.regular import read_regular
from storage.sweep import sweep

if TYPE_CHECKING:
    from storage.layers.tars import StoredTars

SNAPSHOTTERS = ("auto", "erofs", "directory")
"""How layers may be laid out in a root."""
DIRECTORIES = (
    "blobs", "blobs/sha256", "blobs/sha512", "cache", "layers", "locks", "moments", "partial", "run", "snapshots",
    "tmp", "uploads",
)  # fmt: skip
"""All that a root may have."""
FORMAT = "1"
"""The layout of a root (DESIGN section 5); a root of another format is refused, not guessed at."""


def root_directory() -> Path:
    """`$REFLEDGER_ROOT`, default `~/.local/share/refledger`."""
    return Path(os.environ.get("REFLEDGER_ROOT") or Path.home() / ".local/share/refledger").absolute()


@dataclass(frozen=True, slots=True)
class Root:
    """An open root: `log` to append to, `views` caught up when opened, `locks` of all its processes."""

    path: Path
    log: SqliteEventLog
    views: Views
    locks: FileLocks

    @property
    def tmp(self) -> Path:
        """Where unfinished things lie, named after the build that owns them."""
        return self.path / "tmp"

    @property
    def run(self) -> Path:
        """Where the OCI runtime keeps bundles and state of running containers."""
        return self.path / "run"


@contextmanager
def open_root(path: Path, *, folded: bool = True) -> Iterator[Root]:
    """Open a root for building, making it when it is not there; `folded`: with its views caught up.
    Raises DiskError, LogError, InputError."""
    try:
        make_directories(path, 0o700)
        _check_owner(path)
        _check_directories(path)
        for name in ("layers", "snapshots", "locks", "tmp", "run"):
            (path / name).mkdir(exist_ok=True, mode=0o700)
        _check_format(path)
        fsync_directory(path)  # also of what another process made just now: what is published in there must stay (I6)
    except OSError as error:
        raise DiskError.of(error, "opening the root") from error
    with ExitStack() as stack:
        log = SqliteEventLog(path / "log.db")
        stack.callback(log.close)
        views = stack.enter_context(Views(path / "views.db", STANDARD))
        if folded:
            views.catch_up(log)
        stack.callback(_leave, path, log, views)
        yield Root(path, log, views, FileLocks(path / "locks"))


def _leave(path: Path, log: EventLog, views: Views) -> None:
    """Fold what was appended, so that whoever reads next need not."""
    with suppress(RefledgerError):  # reason: views may always be behind, or gone; what was to be done is done
        views.catch_up(log)
        past(path).extend(log)


@contextmanager
def read_root(path: Path) -> Iterator[tuple[SqliteEventLog, Views]]:
    """Open a root for reading only: nothing below it changes, also when it is on a read-only disk (I13). Of a damaged
    log what lies before the damage can be read; then LogDamaged is raised at the end. Raises LogError, InputError."""
    if not (path / "log.db").exists():
        raise InputError(
            "nothing was built here yet", where=str(path), hint="run refledger build, or set REFLEDGER_ROOT"
        )
    log = SqliteEventLog(path / "log.db", read_only=True)
    try:
        if not log.last_seq() and log.damage:
            raise log.damage
        log.end_before_damage()
        with Views.read_only(path / "views.db", log, STANDARD) as views:
            yield log, views
        if log.damage:
            raise log.damage
    finally:
        log.close()


@contextmanager
def open_log(path: Path) -> Iterator[SqliteEventLog]:
    """The log of the root at `path`, which is there, to be written to. Raises LogError, DiskError, InputError."""
    _check_directories(path)
    log = SqliteEventLog(path / "log.db")
    try:
        yield log
    finally:
        log.close()


def past(path: Path) -> Moments:
    """The views of a root as they were."""
    return Moments(path / "moments", TRAVELLED)


def follow_log(log: EventLog, after: int, types: frozenset[str] | None) -> Iterator[Event]:
    """Events later than `after`, for ever."""
    return follow(log, after, lambda: False, types=types)


def read_blobs(path: Path) -> DirectoryBlobs:
    """The blobs of a root, for reading."""
    return DirectoryBlobs(path, owner="reader")


def scratch_blobs(path: Path, owner: str) -> BlobStore:
    """A store of its own in the directory `path`."""
    return DirectoryBlobs(path, owner=owner)


def stored_tars(path: Path, scratch: Path) -> StoredTars:
    """The layers of a root as tars, for reading; `scratch` is a directory elsewhere."""
    from storage.layers.tars import StoredTars

    snapshots = OverlaySnapshots(path / "snapshots", scratch, "reader")
    return StoredTars(path / "layers", path / "snapshots", snapshots, read_blobs(path))


def stored_text(path: Path, digest: str) -> str:
    """A stored definition. Raises FileNotFoundError, VerificationError, InputError."""
    return read_blobs(path).get(Digest(digest)).decode("utf-8", "replace")


def _check_owner(path: Path) -> None:
    """Raises InputError for a directory that somebody else may write to: whoever can put a link, a layer or a lock
    there decides what is built, and where this process writes. One that was made for the root is closed to others."""
    status = path.stat()
    sudo = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    if status.st_uid not in {0, os.geteuid(), int(sudo) if sudo.isdecimal() else 0} or status.st_mode & 0o002:
        raise InputError(
            "others may write to this directory, so it cannot be a root", where=str(path),
            hint="set REFLEDGER_ROOT to a new directory, or make this one your own",
        )  # fmt: skip
    if status.st_uid == os.geteuid() and {entry.name for entry in path.iterdir()} <= {"lost+found"}:
        path.chmod(stat.S_IMODE(status.st_mode) & ~0o007)


def _check_directories(path: Path) -> None:
    """Raises InputError for a link in the place of one of them: what lies there is written to, and swept."""
    for name in DIRECTORIES:
        if (path / name).is_symlink():
            raise InputError(
                "a link in the place of a directory of the root", where=str(path / name),
                hint="put the directory itself there, or set REFLEDGER_ROOT to where there is room",
            )  # fmt: skip


def _check_format(path: Path) -> None:
    """A root whose making was cut short has a file that says nothing yet: it is as good as new."""
    file = path / "format"
    found = read_regular(file, 4096).decode(errors="replace").strip("\0\n ") if file.exists() else ""
    if not found:
        replace_file(file, FORMAT.encode() + b"\n")
    elif found != FORMAT:
        raise InputError(
            f"this root has format {found[:20]!r}, this Refledger knows {FORMAT}",
            where=str(path),
            hint="use the Refledger that made it, or another REFLEDGER_ROOT",
        )


# ---------------------------------------------------------------- recovery


def new_build_id() -> str:
    """Twelve hexadecimal digits."""
    return secrets.token_hex(6)


@contextmanager
def owning(root: Root, build: str) -> Iterator[None]:
    """Hold the lock that says `build` is alive: its death, however sudden, lets go of it."""
    while (lock := root.locks.try_acquire(_owner_lock(build))) is None:
        time.sleep(0.01)  # ids are unique: whoever holds it sweeps
    with lock:
        yield


def recover(root: Root, found_by: str) -> list[str]:
    """Say in the log which builds died without a word, and remove what they left; returns their ids."""

    def is_alive(owner: str) -> bool:
        return owner == found_by or root.locks.held(_owner_lock(owner))

    silent = [record.id for record in History(root.views).list(status="running")]
    removed = sweep(root.tmp, is_alive, found_by)
    DirectoryPartials(root.path / "partial").sweep(time.time() - KEPT_SECONDS, root.locks)
    removed += _sweep_containers(root.run, is_alive)
    buried = [build for build in silent if _bury(root, build, found_by, removed)]
    root.locks.sweep()
    return buried


def _sweep_containers(run: Path, is_alive: Callable[[str], bool]) -> list[str]:
    try:
        if not any(run.glob("*/*")):
            return []
        from engine.ops.leftovers import sweep_containers  # reason: slow to import, and seldom needed

        return sweep_containers(run, is_alive)
    except OSError as error:
        raise DiskError.of(error, "removing containers of builds that died") from error


def _bury(root: Root, build: str, found_by: str, removed: Sequence[str]) -> bool:
    """Say that `build`, which had no end when the views were folded, was interrupted; False when it lives, or has an
    end by now: its own, or because another process said so first."""
    lock = root.locks.try_acquire(_owner_lock(build))
    if lock is None:
        return False
    with lock:
        root.views.catch_up(root.log)
        if History(root.views).get(build).status != "running":
            return False
        fact = BuildInterrupted(
            error="its process ended without a word (killed, or the machine went down)",
            found_by=found_by,
            removed=tuple(item for item in removed if build in item)[:50],
        )
        root.log.append(NewEvent(f"build/{build}", "BuildInterrupted", to_data(fact), build))
    return True


def is_running(path: Path, build: str) -> bool:
    """Is a process building `build` in the root at `path`?"""
    try:
        return FileLocks(path / "locks").held(_owner_lock(build))
    except DiskError:
        return False  # reason: nobody builds in a root that cannot be written to


def _owner_lock(build: str) -> str:
    return f"build-{build}"


def prepare_process() -> None:
    """Give this process mounts of its own, before it has threads: they vanish with it, also at kill -9."""
    if os.geteuid() != 0:
        raise InputError("refledger build needs root, for mounts and ownership", hint="run it with sudo")
    private_mounts()


def secret_places(root: Root, build: str) -> SecretPlaces:
    """Where secrets of `build` may lie."""
    from storage.cachemounts import MemoryPlaces

    return MemoryPlaces(root.tmp, build)


def host_facts() -> dict[str, object]:
    """What BuildStarted says of this machine."""
    uname = os.uname()
    return {
        "hostname": uname.nodename, "kernel": uname.release, "machine": uname.machine, "pid": os.getpid(),
        "cpus": os.cpu_count() or 1,
    }  # fmt: skip

