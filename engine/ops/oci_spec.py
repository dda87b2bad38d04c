"""A step's process as an OCI runtime configuration (runtime-spec config.md, config-linux.md). Pure: no I/O.

What a process may see and do follows docker's defaults: its 14 capabilities, seccomp profile, masked and read-only
paths, mounts and devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.graph import InlineFile
from engine.ops import seccomp

Json = dict[str, Any]

_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
SCRIPTS = "/dev/pipes"
"""Where a process finds its `scripts`."""


@dataclass(frozen=True, slots=True)
class Process:
    """A command to run in a mounted root file system, and all it may know of the host.

    `env` is the whole environment, ordered (without PATH only absolute commands are found); `cwd` absolute, made
    when missing; `groups` supplementary; `network` `host` or `none` (loopback only); `root` a writable, mounted root
    file system on the host; `scripts` appear, executable and read-only, in /dev/pipes.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    network: str
    root: Path
    scripts: tuple[InlineFile, ...] = ()
    hostname: str = "refledger"


@dataclass(frozen=True, slots=True)
class Host:
    """What the configuration depends on. `machine` as uname(2) says; `unified`: the host has cgroup v2 only; `x32`:
    its kernel has the x32 ABI."""

    machine: str
    unified: bool = False
    x32: bool = False


def runtime_config(process: Process, host: Host, *, cgroup: str, binds: tuple[tuple[str, str], ...] = ()) -> Json:
    """The content of config.json. `cgroup`: absolute cgroup path; `binds`: read-only bind mounts `(source on the
    host, destination)`. Raises KeyError as `seccomp.profile` does."""
    root = process.uid == 0
    return {
        "ociVersion": "1.0.2",
        "hostname": process.hostname,
        "root": {"path": str(process.root), "readonly": False},
        "process": {
            "terminal": False,
            # the primary group is also a supplementary one, or a file could deny it by group (CVE-2022-36109)
            "user": {
                "uid": process.uid, "gid": process.gid, "umask": 0o022,
                "additionalGids": list(dict.fromkeys((process.gid, *process.groups))),
            },
            "args": list(process.argv),
            "env": [f"{key}={value}" for key, value in process.env],
            "cwd": process.cwd,
            "capabilities": {
                "bounding": list(_CAPABILITIES),
                "effective": list(_CAPABILITIES) if root else [],
                "permitted": list(_CAPABILITIES) if root else [],
            },
            "noNewPrivileges": False,
        },
        "mounts": [*_mounts(), *(_bind(source, target) for source, target in binds)],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in _namespaces(process.network, host.unified)],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "seccomp": seccomp.profile(host.machine, x32=host.x32),
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }  # fmt: skip


def _namespaces(network: str, unified: bool) -> list[str]:
    kinds = ["mount", "pid", "ipc", "uts"]
    if network == "none":
        kinds.append("network")
    if unified:  # as docker: a cgroup namespace on cgroup v2, none on v1
        kinds.append("cgroup")
    return kinds


def _mounts() -> list[Json]:
    return [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
    ]


def _mount(destination: str, kind: str, *options: str) -> Json:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def _bind(source: str, destination: str) -> Json:
    return {"destination": destination, "type": "bind", "source": source, "options": ["bind", "ro", "nosuid", "nodev"]}
