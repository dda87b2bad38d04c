"""Where the mounts of a container really go: targets without links, and none where the OCI runtime works itself.

A runtime resolves targets inside the root too, but looks at them as they are written to know which one is /dev. Below a
link of the image, content that somebody else wrote then stands in for the /dev that the runtime has just made: what it
takes for /dev/null, and opens for writing before kernel files are read-only, leads to one of those (as in
CVE-2025-31133). So a link is followed here, and the runtime gets the directory it leads to.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.errors import InputError
from engine.ops.oci_spec import ContainerMount

_KERNELS = ("/proc", "/sys")
_DEVICES = "/dev"
_MADE = "console core fd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero"
_RUNTIMES = (*_KERNELS, *(f"{_DEVICES}/{name}" for name in _MADE.split()))
_NO_LINK = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS


def settled(
    root: Path, mounts: Sequence[ContainerMount], files: Sequence[str] = ()
) -> tuple[ContainerMount, ...]:
    """`mounts`, in their order, with targets that hold no link in the root file system at `root` and in what is mounted
    before. Nobody may write to any of it meanwhile. `files`: what the container has besides. Raises InputError for a
    target that is the runtime's own, or that a link leads into another mount; OSError."""
    for path in (_DEVICES, *_KERNELS, *files):
        target = _real(path, root, ())
        if target != path and (path not in files or _is_runtimes(target)):
            hint = "remove it in an earlier step or choose another base image"
            raise InputError(f"the image has a link in the place of {path}, to {target}", hint=hint)
    done: list[ContainerMount] = []
    for mount in mounts:
        target = _real(mount.target, root, done)
        if _is_runtimes(target):
            raise _refused(mount.target, target, "which every step gets from the runtime")
        above = [other.target for other in done if other.source]  # a tmpfs is new, and nobody else's
        if target != mount.target and _lies_in(target, above) and not _lies_in(mount.target, above):
            raise _refused(mount.target, target, "which lies in another mount")
        done.append(replace(mount, target=target))
    return tuple(done)


def _real(target: str, root: Path, done: Sequence[ContainerMount]) -> str:
    """`target` with every link followed inside the container; what is missing is taken as it is written."""
    at, links = "/", 0
    pending = _parts(target)
    while pending:
        part = pending.pop()
        if part == "..":
            at = posixpath.dirname(at)
            continue
        path = posixpath.join(at, part)
        text = _link(path, root, done)
        if text is None:
            at = path
            continue
        links += 1
        if links > _MAX_LINKS:
            raise InputError(f"{target} cannot be mounted: too many symbolic links", hint="choose another target")
        at = "/" if text.startswith("/") else at
        pending += _parts(text)
    return at


def _link(path: str, root: Path, done: Sequence[ContainerMount]) -> str | None:
    """The text of the link at `path`, which has no link before its last component; None for anything else."""
    if any(path.startswith(f"{place}/") for place in (*_KERNELS, _DEVICES)):
        return None  # what the image has there is not seen
    place = root
    inside = path[1:]
    for mount in done:  # the last one that covers it is seen
        if path.startswith(mount.target + "/"):
            if not mount.source:
                return None  # a new tmpfs
            place, inside = Path(mount.source), path[len(mount.target) + 1 :]
    try:
        if stat.S_ISLNK((place / inside).lstat().st_mode):
            return os.fspath((place / inside).readlink())
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    return None


def _is_runtimes(path: str) -> bool:
    return path in {"/", _DEVICES} or _lies_in(path, _RUNTIMES)


def _lies_in(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def _parts(path: str) -> list[str]:
    """Components, last first."""
    return [part for part in path.split("/") if part not in {"", "."}][::-1]


def _refused(written: str, target: str, why: str) -> InputError:
    led = f", a link to {target}" if target != written else ""
    return InputError(f"{written} cannot be mounted over{led}, {why}", hint="choose another target")
