"""What an OCI runtime is given to run a process: the bundle (runtime-spec bundle.md), and a root file system in which
there is something to mount on."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import DiskError, InputError
from engine.ops.leftovers import BUNDLES, CGROUP, STATE
from engine.ops.machine import host
from engine.ops.mountpoints import MountPoints
from engine.ops.oci_spec import SCRIPTS, Process, runtime_config
from engine.ops.rootfs import RootDir
from engine.ops.targets import settled

_DIRECTORIES = ("/proc", "/sys", "/dev")
_HOSTS, _RESOLV = "/etc/hosts", "/etc/resolv.conf"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is ready for `container`. `config`: the directory of config.json; `state`: that of the runtime's state;
    `log`: the file that the runtime logs to."""

    container: str
    config: Path
    state: Path
    log: Path


@contextmanager
def prepared(process: Process, container: str, directory: Path) -> Iterator[Bundle]:
    """All that the runtime needs, below sandbox directory `directory`, until the end of the context; by then nothing
    of the container may live. Raises InputError (the image cannot hold the process) and DiskError."""
    process = _settled(process)
    _check_cwd(process)
    place = directory / BUNDLES / container
    directories, files = _mount_points(process)
    # where there are secrets in the configuration, which runtimes may keep with the state, both are on the tmpfs
    config = process.private or place
    bundle = Bundle(container, config, config / STATE if process.private else directory / STATE, place / "log.json")
    try:
        with MountPoints(process.root, directories=directories, files=files):
            _write_bundle(process, bundle, place)
            yield bundle
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write_bundle(process: Process, bundle: Bundle, place: Path) -> None:
    """In `place`, beside the configuration: what is mounted into the container."""
    contents = {_HOSTS: _hosts(process.hostname), _RESOLV: _resolv()}
    binds = {target: place / Path(target).name for target in contents}
    try:
        bundle.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.mkdir(parents=True, mode=0o700)
        for target, data in contents.items():
            _write(binds[target], data, 0o644)
        if process.scripts:
            binds[SCRIPTS] = _write_scripts(place / "scripts", process)
        config = runtime_config(
            process, host(), cgroup=f"{CGROUP}/{bundle.container}", binds=tuple((str(s), t) for t, s in binds.items())
        )
        _write(bundle.config / "config.json", json.dumps(config).encode(), 0o600)
    except OSError as error:
        raise DiskError.of(error, "preparing the container") from error


def _settled(process: Process) -> Process:
    try:
        return replace(process, mounts=settled(process.root, process.mounts, (_HOSTS, _RESOLV)))
    except OSError as error:
        raise DiskError.of(error, "preparing the container") from error


def _mount_points(process: Process) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The directories and the files that must be there to be mounted on. What lies below another mount is made by the
    runtime, in what is mounted there."""
    covered = [*_DIRECTORIES, *(mount.target for mount in process.mounts)]
    own = [m for m in process.mounts if not any(m.target.startswith(above + "/") for above in covered)]
    directories = tuple(mount.target for mount in own if mount.directory)
    return (*_DIRECTORIES, *directories), (_HOSTS, _RESOLV, *(mount.target for mount in own if not mount.directory))


def _check_cwd(process: Process) -> None:
    try:
        with RootDir(process.root) as root:
            if stat.S_ISDIR(root.stat(process.cwd).st_mode):
                return
        reason = "not a directory"
    except FileNotFoundError:
        return  # the runtime makes it, as docker does
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise InputError(f"working directory {process.cwd!r} cannot be used: {reason}", hint="change WORKDIR")


def _write_scripts(directory: Path, process: Process) -> Path:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    for script in process.scripts:
        if not script.name or "/" in script.name or "\0" in script.name or script.name in {".", ".."}:
            raise InputError(f"not a file name: {script.name!r}", hint="give the heredoc another name")
        _write(directory / script.name, script.data.encode("utf-8", "surrogateescape"), 0o755)
    return directory


def _write(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def _hosts(hostname: str) -> bytes:
    return f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback {hostname}\n".encode()


def _resolv() -> bytes:
    try:
        return Path(_RESOLV).read_bytes()
    except OSError:
        return b""
