"""One process in one container of an OCI runtime (runc or crun), from bundle to exit code.

The runtime runs inside its own pid namespace whose first process dies with us, however and whenever we die
(PR_SET_PDEATHSIG); the kernel then ends everything in it. Killing that first process is also how a step is cancelled.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from asyncio.subprocess import Process as Child
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from engine.errors import DiskError, InputError, SandboxError
from engine.ops.leftovers import BUNDLES, CGROUP, STATE, children, kill, remove_container
from engine.ops.mountpoints import MountPoints
from engine.ops.oci_spec import SCRIPTS, Host, Process, capability_names, runtime_config
from engine.ops.rootfs import RootDir
from engine.ops.seccomp import MACHINES
from engine.ops.streams import Streams
from engine.ops.targets import settled

OnOutput = Callable[[int, bytes], None]

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# what runs in the new namespace says that it is there, and begins when it is told to: see _begin
_WAIT = ("sh", "-c", 'echo >&0; read -r go && exec "$@" </dev/null', "sh")
_DIRECTORIES = ("/proc", "/sys", "/dev")
_HOSTS, _RESOLV = "/etc/hosts", "/etc/resolv.conf"
_GUARD = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells and docker have it
_SPAWN_POLLS, _SPAWN_POLL = 100, 0.01  # the namespace's first process appears within a few ms of the guard
_SPARE_LOOPS = 8  # loop devices are made when they are first asked for
_OUR_FAULT = "runc run failed: "
# what runc and crun say when the container is fine but its command is not
_EXEC = re.compile(r'(?:^|: )(exec: ".*|exec \S+: .*|executable file .*|chdir to cwd .*)$', re.DOTALL)


class OciSandbox:
    """Runs processes with OCI runtime `runtime` (a path). `directory` holds bundles and the runtime's state, `owner`
    (lower-case alphanumerics: the build's id) names the containers, for `sweep_containers`.

    Call it from an event loop whose thread lives as long as the build: containers die with that thread.
    """

    def __init__(self, runtime: Path | str, directory: Path, owner: str) -> None:
        self._runtime = str(runtime)
        self._directory = directory
        self._names = (f"{owner}.{secrets.token_hex(4)}.{number}" for number in itertools.count(1))

    async def run(self, process: Process, on_output: OnOutput) -> int:
        """See `Sandbox.run`."""
        container = next(self._names)
        bundle = self._directory / BUNDLES / container
        process = _settled(process)
        _check_cwd(process)
        stop = asyncio.Event()
        directories, files = _mount_points(process)
        try:
            with MountPoints(process.root, directories=directories, files=files):
                self._write_bundle(bundle, container, process)
                supervision = asyncio.create_task(self._supervise(container, process, on_output, stop))
                try:
                    return await asyncio.shield(supervision)
                finally:
                    stop.set()
                    while not supervision.done():  # mounts stay until everything below them has died
                        with suppress(asyncio.CancelledError):
                            await asyncio.wait([supervision])
        finally:
            shutil.rmtree(bundle, ignore_errors=True)

    async def attach(self, process: Process) -> int:
        """See `Sandbox.attach`."""
        assert process.terminal, "a terminal is attached to a process that has one"
        container = next(self._names)
        bundle = self._directory / BUNDLES / container
        process = _settled(process)
        directories, files = _mount_points(process)
        try:
            with MountPoints(process.root, directories=directories, files=files):
                self._write_bundle(bundle, container, process)
                child = await self._spawn(container, process, bundle / "log.json", None)
                try:
                    status = await child.wait()
                finally:
                    if child.returncode is None:
                        await asyncio.shield(_end(child, guarded=bool(guard_command())))
                    await asyncio.to_thread(remove_container, self._directory, container)
                return self._judge(status, bundle / "log.json", _to_stderr)
        finally:
            shutil.rmtree(bundle, ignore_errors=True)

    # ------------------------------------------------------------ before

    def _write_bundle(self, bundle: Path, container: str, process: Process) -> None:
        """The OCI bundle (runtime-spec bundle.md), and beside it what is mounted into the container."""
        contents = {_HOSTS: _hosts(process.hostname), _RESOLV: _resolv()}
        binds = {target: bundle / Path(target).name for target in contents}
        try:
            (self._directory / STATE).mkdir(parents=True, exist_ok=True, mode=0o700)
            bundle.mkdir(parents=True, mode=0o700)
            for target, data in contents.items():
                _write(binds[target], data, 0o644)
            if process.scripts:
                binds[SCRIPTS] = _write_scripts(bundle / "scripts", process)
            config = runtime_config(
                process, host(), cgroup=f"{CGROUP}/{container}", binds=tuple((str(s), t) for t, s in binds.items())
            )
            (self._state(process)).mkdir(exist_ok=True, mode=0o700)
            _write((process.private or bundle) / "config.json", json.dumps(config).encode(), 0o600)
        except OSError as error:
            raise DiskError.of(error, "preparing the container") from error

    # ------------------------------------------------------------ meanwhile

    def _state(self, process: Process) -> Path:
        """Runtimes may keep the configuration with the state: where there are secrets in it, on the tmpfs."""
        return process.private / STATE if process.private else self._directory / STATE

    async def _supervise(self, container: str, process: Process, on_output: OnOutput, stop: asyncio.Event) -> int:
        """Start the runtime and follow it to its end; when `stop` is set or `on_output` raises, end it first."""
        log = self._directory / BUNDLES / container / "log.json"
        with Streams() as streams:
            child = await self._spawn(container, process, log, streams.writers)
        following = asyncio.create_task(_follow(streams, log, on_output))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        clean = following.done() and following.exception() is None
        if not clean:
            await _end(child, guarded=bool(guard_command()))
            following.cancel()
            await asyncio.wait([following])
        status = await child.wait()
        if not clean or status < 0:
            await asyncio.to_thread(remove_container, self._directory, container)
        if following.cancelled():
            return status
        following.result()
        return self._judge(status, log, on_output) if clean else status

    async def _spawn(self, container: str, process: Process, log: Path, writers: tuple[int, int] | None) -> Child:
        """`writers`: where its streams 1 and 2 go; None: it has the streams of this process, and its terminal."""
        if shutil.which(self._runtime) is None:
            raise SandboxError("the OCI runtime is not executable", where=self._runtime)
        bundle = process.private or self._directory / BUNDLES / container
        guard = guard_command()
        argv = (
            self._runtime, "--root", str(self._state(process)), "--log", str(log), "--log-format", "json",
            "run", "--bundle", str(bundle), container,
        )  # fmt: skip
        try:
            if writers is None:
                return await asyncio.create_subprocess_exec(*guard, *argv, env=_ENVIRONMENT)
            if not guard:
                return await _start(argv, subprocess.DEVNULL, writers)
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    child = await _start((*guard, *_WAIT, *argv), theirs.fileno(), writers)
                await _begin(ours)
                return child
        except OSError as error:
            raise SandboxError(f"cannot start {(*guard, *argv)[0]}: {error.strerror}", where=self._runtime) from None

    # ------------------------------------------------------------ after

    def _judge(self, status: int, log: Path, on_output: OnOutput) -> int:
        """The command's exit code; or what the runtime says about itself, told apart by its log."""
        name = Path(self._runtime).name
        if status < 0:
            raise SandboxError(f"{name} was killed by {signal.Signals(-status).name}", where=self._runtime)
        message = next(iter(_errors(log)), None) if status else None
        if message is None:
            return status
        command = _EXEC.search(message)
        if command is None:
            said = message.removeprefix(_OUR_FAULT).replace("\n", " ")
            raise SandboxError(f"{name} could not start the container: {said}", where=self._runtime)
        on_output(2, command[1].encode("utf-8", "surrogateescape") + b"\n")
        missing = "not found" in command[1] or "no such file" in command[1]
        return _NOT_FOUND if missing and not command[1].startswith("chdir") else _NOT_EXECUTABLE


def _to_stderr(_fd: int, data: bytes) -> None:
    os.write(2, data)


async def _start(argv: tuple[str, ...], stdin: int, writers: tuple[int, int]) -> Child:
    return await asyncio.create_subprocess_exec(
        *argv, stdin=stdin, stdout=writers[0], stderr=writers[1], env=_ENVIRONMENT,
        start_new_session=True,  # a Ctrl-C is ours to handle
    )  # fmt: skip


async def _begin(leash: socket.socket) -> None:
    """Have what was started under the guard begin, once each process of the guard has asked the kernel to die with its
    parent. When we die before, its stdin ends and it begins nothing; when we die later, it dies. Without this a
    process whose parent died a moment before it asked would live on."""
    loop = asyncio.get_running_loop()
    leash.setblocking(False)
    with suppress(ConnectionError):  # reason: the guard itself failed, and its exit code says so
        if await loop.sock_recv(leash, 1):
            await loop.sock_sendall(leash, b"go\n")


async def _follow(streams: Streams, log: Path, on_output: OnOutput) -> None:
    """Pass on output until both streams end."""

    def emit(fd: int, data: bytes) -> None:
        if kept := _without_errors(data, log) if fd == 2 else data:
            on_output(fd, kept)

    await streams.follow(emit)


async def _end(child: Child, *, guarded: bool) -> None:
    """Kill the runtime and what depends on it, and see it end. Guarded, the first process of the pid namespace is
    killed: the guard ends only after the kernel has ended all others in there."""
    for _ in range(_SPAWN_POLLS if guarded else 0):
        found = children(child.pid)
        for pid in found:
            kill(pid)
        if found or child.returncode is not None:
            break
        await asyncio.sleep(_SPAWN_POLL)
    else:
        if child.returncode is None:
            kill(child.pid)
    await child.wait()


def _errors(log: Path) -> list[str]:
    """What the runtime logged as errors, in order."""
    found = []
    with suppress(FileNotFoundError):
        for line in log.read_text("utf-8", "surrogateescape").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry["level"] in {"error", "fatal", "panic"}:
                    found.append(str(entry["msg"]))
    return found


def _without_errors(data: bytes, log: Path) -> bytes:
    """runc prints what it logs also on the stream that is the command's: not the step's output."""
    if _OUR_FAULT.encode() not in data:
        return data
    own = {message.encode("utf-8", "surrogateescape") for message in _errors(log)}
    return b"".join(line for line in data.splitlines(keepends=True) if line.rstrip(b"\n") not in own)


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
        done = subprocess.run((*_GUARD, "true"), capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _GUARD if done.returncode == 0 else ()
