"""Ending containers, and finding those whose owner died: processes, control groups, files.

A container's id is `<owner>.<random>.<number>`; its control groups lie at `/refledger/<id>` of every hierarchy, its
bundle and the runtime's state in `bundles/<id>` and `state/<id>` of the sandbox directory.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from engine.errors import SandboxError

CGROUP = "/refledger"
BUNDLES = "bundles"
STATE = "state"
PROBE = "probe"
"""Directories in which a runtime is tried out are called `probe-<owner>-<random>`."""

_ID = re.compile(r"[a-z0-9]+\.[0-9a-f]+\.[0-9]+")
_PATIENCE = 30.0  # seconds for killed processes to be gone; more means that the kernel is stuck in one


def children(pid: int) -> list[int]:
    """Process ids of the children of single-threaded process `pid`; empty when it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill(pid: int) -> None:
    """SIGKILL; harmless when it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def remove_container(directory: Path, container: str) -> None:
    """Kill what still runs in `container`, then remove its control groups and the runtime's state. Blocking, at once
    where nothing runs any more. Raises SandboxError when its processes do not die."""
    deadline = time.monotonic() + _PATIENCE
    groups = list(_groups(container))
    while groups:
        for group in groups:
            for pid in _processes(group):
                kill(pid)
        groups = [group for group in groups if not _remove_group(group)]
        if groups:
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"processes of container {container} do not die", where=str(groups[0]),
                    hint="the kernel holds them; a reboot ends them",
                )  # fmt: skip
            time.sleep(0.01)
    shutil.rmtree(directory / STATE / container, ignore_errors=True)


def sweep_containers(directory: Path, is_alive: Callable[[str], bool]) -> list[str]:
    """Remove everything of containers in sandbox directory `directory` whose owner `is_alive` does not know any more;
    returns their ids. Blocking. Raises SandboxError as `remove_container` does."""
    found = {path.name for part in (BUNDLES, STATE) for path in _entries(directory / part)}
    dead = sorted(name for name in found if _ID.fullmatch(name) and not is_alive(name.partition(".")[0]))
    for name in dead:
        remove_container(directory, name)
        shutil.rmtree(directory / BUNDLES / name, ignore_errors=True)
    for path in _entries(directory):
        kind, _, owner = path.name.partition("-")
        if kind == PROBE and not is_alive(owner.partition("-")[0]):
            sweep_containers(path, lambda _: False)
            shutil.rmtree(path, ignore_errors=True)
    return dead


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _groups(container: str) -> Iterator[Path]:
    """The container's control group in each hierarchy where it has one (proc(5), mountinfo: fields after ` - `)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup"):
            point = mount.split(" ")[4].encode().decode("unicode_escape")
            group = Path(point + CGROUP) / container
            if group.is_dir():
                yield group


def _processes(group: Path) -> list[int]:
    try:
        return [pid for pid in map(int, (group / "cgroup.procs").read_text().split()) if pid > 0]
    except OSError:
        return []


def _remove_group(group: Path) -> bool:
    """A group can be removed once nothing lives in it; its files are the kernel's."""
    for path, names, _ in os.walk(group, topdown=False):
        for name in names:
            with suppress(OSError):
                (Path(path) / name).rmdir()
    with suppress(OSError):
        group.rmdir()
    return not group.is_dir()
