"""What this machine gives to containers. Asked once a process."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
from functools import cache
from pathlib import Path

from engine.errors import SandboxError
from engine.ops.oci_spec import Host, capability_names
from engine.ops.seccomp import MACHINES

_GUARD = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_SPARE_LOOPS = 8  # loop devices are made when they are first asked for


@cache
def host() -> Host:
    """What this machine has. Raises SandboxError where steps cannot be run."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise SandboxError(f"steps cannot be run on {machine}", hint=f"use a machine of type {' or '.join(MACHINES)}")
    # <asm/unistd.h>: __X32_SYSCALL_BIT + getpid; fails with ENOSYS where the kernel has no x32
    x32 = machine == "x86_64" and ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39)) == os.getpid()
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return Host(
        machine,
        unified=Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        x32=x32,
        capabilities=capability_names(int(bounding[1], 16) if bounding else 0),
        loops=len(list(Path("/sys/block").glob("loop*"))) + _SPARE_LOOPS,
        core=resource.getrlimit(resource.RLIMIT_CORE)[1],
        thermal=tuple(sorted(map(str, Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")))),
    )


@cache
def guard_command() -> tuple[str, ...]:
    """The command that ties the life of what it runs to ours; empty where util-linux is missing or too old, and a
    kill -9 leaves a container to `sweep_containers`. Tried once a process (3 ms)."""
    try:
        done = subprocess.run((*_GUARD, "true"), capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _GUARD if done.returncode == 0 else ()
