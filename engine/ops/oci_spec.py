"""A step's process as an OCI runtime configuration (runtime-spec config.md, config-linux.md). Pure: no I/O.

What a process may see and do follows docker's defaults: its 14 capabilities, seccomp profile, masked and read-only
paths, mounts and devices. Two things are stricter. With the network of the host a process has no CAP_NET_RAW: a default
docker gives it a network of its own, and on the host's it would hear, and could forge, everybody's packets. And files
in /proc that docker keeps from being written by AppArmor, which may not be there, are read-only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
_ALL_CAPABILITIES = """
chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
""".upper().split()  # by number, <linux/capability.h>
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = (
    "/proc/bus", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger",
)  # fmt: skip
_DEVICES = (
    ("/dev/kmsg", 1, 11), ("/dev/cuse", 10, 203), ("/dev/fuse", 10, 229), ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200), ("/dev/loop-control", 10, 237),
)  # fmt: skip
SCRIPTS = "/dev/pipes"
"""Where a process finds its `scripts`."""


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """Something mounted at absolute `target`: file or directory `source` of the host, or an empty tmpfs of at most
    `size` bytes (0: half of the memory) when `source` is "". `directory`: what it needs to be mounted on."""

    target: str
    source: str = ""
    readonly: bool = False
    directory: bool = True
    size: int = 0
    mode: int = 0o1777


@dataclass(frozen=True, slots=True)
class Process:
    """A command to run in a mounted root file system, and all it may know of the host.

    `env` is the whole environment, ordered (without PATH only absolute commands are found); `cwd` absolute, made
    when missing; `groups` supplementary; `network` `host` or `none` (loopback only); `root` a writable, mounted root
    file system on the host; `scripts` appear, executable and read-only, in /dev/pipes; `mounts` parents first;
    `insecure`: all capabilities and devices, no seccomp, kernel files writable. `secret_env` are more variables, whose
    values may lie nowhere but in `private`, a directory on a tmpfs, which is needed when there are any. `terminal`: it
    gets one, as `Sandbox.attach` needs.
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
    mounts: tuple[ContainerMount, ...] = ()
    insecure: bool = False
    secret_env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    private: Path | None = None
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """What the configuration depends on. `machine` as uname(2) says; `unified`: the host has cgroup v2 only; `x32`:
    its kernel has the x32 ABI; `capabilities`: all that a process here can have; `loops`: number of loop devices;
    `thermal`: the files in /sys that tell how warm each processor gets (a side channel: GHSA-6fw5-f8r9-fgfm); `core`:
    the largest core file that a process may ask for, in bytes, -1 for no bound."""

    machine: str
    unified: bool = False
    x32: bool = False
    capabilities: tuple[str, ...] = ()
    loops: int = 0
    thermal: tuple[str, ...] = ()
    core: int = 0


def capability_names(mask: int) -> tuple[str, ...]:
    """The capabilities whose bits are set, of those that there are names for."""
    return tuple(f"CAP_{name}" for bit, name in enumerate(_ALL_CAPABILITIES) if mask >> bit & 1)


def runtime_config(process: Process, host: Host, *, cgroup: str, binds: tuple[tuple[str, str], ...] = ()) -> Json:
    """The content of config.json. `cgroup`: absolute cgroup path; `binds`: read-only bind mounts `(source on the
    host, destination)`. Raises KeyError as `seccomp.profile` does."""
    root = process.uid == 0
    capabilities = host.capabilities if process.insecure else _capabilities(process.network)
    return {
        "ociVersion": "1.0.2",
        "hostname": process.hostname,
        "root": {"path": str(process.root), "readonly": False},
        "process": {
            "terminal": process.terminal,
            # the primary group is also a supplementary one, or a file could deny it by group (CVE-2022-36109)
            "user": {
                "uid": process.uid, "gid": process.gid, "umask": 0o022,
                "additionalGids": list(dict.fromkeys((process.gid, *process.groups))),
            },
            "args": list(process.argv),
            "env": [f"{key}={value}" for key, value in (*process.env, *process.secret_env)],
            "cwd": process.cwd,
            "capabilities": {
                "bounding": list(capabilities),
                "effective": list(capabilities) if root else [],
                "permitted": list(capabilities) if root else [],
            },
            "noNewPrivileges": False,
            # the memory of what crashed, secrets and all, would be a file in the step's layer
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": host.core % 2**64}],
        },
        "mounts": [
            *_mounts(writable=process.insecure),
            *(_bind(source, target, "ro", "nosuid", "nodev") for source, target in binds),
            *(_extra(mount) for mount in process.mounts),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in _namespaces(process.network, host.unified)],
            **(_insecure(host) if process.insecure else _confined(host)),
        },
    }  # fmt: skip


def _capabilities(network: str) -> tuple[str, ...]:
    return tuple(name for name in _CAPABILITIES if network == "none" or name != "CAP_NET_RAW")


def _confined(host: Host) -> Json:
    return {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "seccomp": seccomp.profile(host.machine, x32=host.x32),
        "maskedPaths": [*_MASKED, *host.thermal],
        "readonlyPaths": list(_READ_ONLY),
    }


def _insecure(host: Host) -> Json:
    """What BuildKit's `security.insecure` lifts and adds."""
    devices = [{"path": path, "type": "c", "major": major, "minor": minor} for path, major, minor in _DEVICES]
    loops = [{"path": f"/dev/loop{n}", "type": "b", "major": 7, "minor": n} for n in range(host.loops)]
    allowed = [{"allow": True, "type": kind, "access": "rwm"} for kind in ("c", "b")]
    return {"resources": {"devices": allowed}, "devices": devices + loops}


def _namespaces(network: str, unified: bool) -> list[str]:
    kinds = ["mount", "pid", "ipc", "uts"]
    if network == "none":
        kinds.append("network")
    if unified:  # as docker: a cgroup namespace on cgroup v2, none on v1
        kinds.append("cgroup")
    return kinds


def _mounts(*, writable: bool) -> list[Json]:
    kernel = "rw" if writable else "ro"
    return [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", kernel),
        _mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", kernel),
    ]


def _mount(destination: str, kind: str, *options: str) -> Json:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def _bind(source: str, destination: str, *options: str) -> Json:
    return {"destination": destination, "type": "bind", "source": source, "options": ["bind", *options]}


def _extra(mount: ContainerMount) -> Json:
    access = "ro" if mount.readonly else "rw"
    if mount.source:
        return _bind(mount.source, mount.target, access)
    size = [f"size={mount.size}"] if mount.size else []
    return _mount(mount.target, "tmpfs", "nosuid", access, f"mode={mount.mode:o}", *size)
