"""What is wrong after a crash and the next start. Everything is looked at from outside, by other code than the
command that ran."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storage.bundle.reading import read_bundle
from storage.errors import LogError, RefledgerError
from storage.locks import FileLocks
from storage.log.eventlog import SqliteEventLog
from tests.crash.outcomes import lacking, pushed
from tests.crash.place import Place
from tools.auditing.keys import FILE, read_signer
from tools.auditing.verify import verify_root

_ENDS = frozenset({"BuildCompleted", "BuildFailed", "BuildCancelled", "BuildInterrupted"})
_CGROUPS = "refledger"
_SHARED = ("/run", "/run/runc", "/run/crun", "/run/netns", "/run/lock", "/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp")
_WORD = re.compile(r"[0-9a-z]+")


def problems(place: Place) -> list[str]:
    """All that is wrong with the root and with what lies around it; what is in `out` the scene knows."""
    if not (place.root / "log.db").exists():
        return leftovers(place)
    return [*told(place), *unsound(place), *leftovers(place)]


def told(place: Place) -> list[str]:
    """Builds that did not end exactly once in the log (I12: the record that it happened)."""
    started, ended = [], Counter[str]()
    log = SqliteEventLog(place.root / "log.db", read_only=True)
    try:
        for event in log.read(types=_ENDS | {"BuildStarted"}):
            if event.type == "BuildStarted":
                started.append(str(event.build))
            else:
                ended[str(event.build)] += 1
    finally:
        log.close()
    return [f"build {build} has {ended[build]} ends in the log" for build in started if ended[build] != 1]


def events(place: Place) -> int:
    """How many there are in the log; 0 when there is none."""
    try:
        log = SqliteEventLog(place.root / "log.db", read_only=True)
    except LogError:
        return 0
    try:
        return sum(1 for _ in log.read())
    finally:
        log.close()


def unsound(place: Place, *, views: bool = True) -> list[str]:
    """What `audit verify` finds: the form of the log, the bytes that it names, views that differ from a fresh fold."""
    key = place.root / FILE
    keys = [read_signer(key).verifier] if (place.root / "checkpoint").exists() else []  # something is signed
    try:
        faults = verify_root(place.root, keys=keys).faults
    except RefledgerError as error:
        return [f"audit verify: {error}"]
    return [f"audit verify: {fault}" for fault in faults if views or fault.kind != "views"]


def torn(place: Place) -> list[str]:
    """Files in `out` that are neither whole nor absent; a directory that is written is not looked into."""
    found = []
    for path in place.out.iterdir():
        if path.is_dir() or path.name.startswith("."):
            continue
        data = path.read_bytes()
        whole = bool(data)
        if path.suffix == ".json":
            with suppress(ValueError):
                json.loads(data)
                continue
            whole = False
        elif path.suffix == ".html":
            whole = data.rstrip().endswith(b"</html>")
        elif path.suffix == ".tar":
            whole = len(data) % 512 == 0 and data.endswith(bytes(1024))
        elif path.suffix == ".bundle":
            with suppress(RefledgerError):
                whole = read_bundle(path).damage is None
        if not whole:
            found.append(f"{path.name} is torn: {len(data)} bytes")
    return found


def holes(place: Place) -> list[str]:
    """Names that lead to what is not there, where others may read at any moment (I11): in registries, and in layouts
    in `out`."""
    found = []
    for host in (place.host, place.second):
        for repository in (place.repository, f"{place.repository}/cache"):
            told = pushed(host, repository)
            if told.startswith("a hole"):
                found.append(f"{host}/{repository}: {told}")
    for index in place.out.glob("*/index.json"):
        found += [f"{index.parent.name}: a hole: {one}" for one in lacking(index.parent)]
    return found


def leftovers(place: Place) -> list[str]:
    """What nobody works with and nobody will remove: in the root, and outside of it."""
    return [*mounts(place), *loops(place), *_processes(place), *_elsewhere(place), *_files(place)]


def mounts(place: Place) -> list[str]:
    """Mounts that this process sees."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line.split()[4]}" for line in lines if line.split()[4].startswith(f"{place.directory}/")]


def loops(place: Place) -> list[str]:
    """Loop devices on files here."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            backing = path.read_text().strip()
            if backing.startswith(f"{place.directory}/"):
                found.append(f"loop device {path.parts[3]} on {backing}")
    return found


def processes(place: Place) -> dict[int, str]:
    """Processes that have to do with the place: by their session, command, environment or a mount of theirs."""
    mark = os.fsencode(place.directory) + b"/"
    own = {os.getpid(), os.getppid()}
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) in own:
            continue
        with suppress(OSError):
            command = (path / "cmdline").read_bytes()
            place_of = [command, (path / "environ").read_bytes(), os.fsencode((path / "cwd").readlink()) + b"/"]
            place_of.append((path / "mountinfo").read_bytes())
            session = int((path / "stat").read_bytes().rpartition(b")")[2].split()[3])
            if session in place.sessions or any(mark in one for one in place_of):
                found[int(path.name)] = command.replace(b"\0", b" ").decode("utf-8", "replace")[:120]
    return found


def _processes(place: Place) -> list[str]:
    return [f"process {pid}: {command}" for pid, command in processes(place).items()]


def _elsewhere(place: Place) -> Iterator[str]:
    """What is called after a build of this root where nobody but the machine could know of it: control groups, runtime
    state, network namespaces, shared memory."""
    owners = set(builds(place))
    where = [Path(name) for name in _SHARED]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup"):
            where.append(Path(mount.split(" ")[4], _CGROUPS))
    for directory in where:
        for path in directory.glob("*"):
            if owners.intersection(_WORD.findall(path.name)):
                yield f"{path}"


def builds(place: Place) -> list[str]:
    """Ids of all that were begun."""
    if not (place.root / "log.db").exists():
        return []
    log = SqliteEventLog(place.root / "log.db", read_only=True)
    try:
        return [str(event.build) for event in log.read(types=frozenset({"BuildStarted"}))]
    finally:
        log.close()


def _files(place: Place) -> Iterator[str]:
    """Unfinished files. What an interrupted pull or upload is gone on with is kept on purpose."""
    root = place.root
    for where in ("tmp/*", "run/*/*", "run/*.*[0-9]", "*.new", "*.part", "moments/*.part", "uploads/*.part"):
        for path in root.glob(where):
            yield f"file {path.relative_to(root)}"
    locks = FileLocks(root / "locks")
    for path in root.glob("locks/*"):
        if not locks.held(path.name):
            yield f"a lock that nobody holds: {path.name}"
    for part in ("tmp", "home", "runtime"):
        for path in (place.directory / part).rglob("*"):
            name = str(path.relative_to(place.directory))
            if name not in place.keeps and (not path.is_dir() or not any(path.iterdir())):
                yield f"file {name}"
