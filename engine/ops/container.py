"""One process in one container of an OCI runtime (runc or crun), from bundle to exit code.

The runtime runs inside its own pid namespace whose first process dies with us, however and whenever we die
(PR_SET_PDEATHSIG); the kernel then ends everything in it. Killing that first process is also how a step is cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from asyncio.subprocess import Process as Child
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine.errors import SandboxError
from engine.ops.bundle import Bundle, prepared
from engine.ops.leftovers import children, kill, remove_container
from engine.ops.machine import guard_command
from engine.ops.oci_spec import Process
from engine.ops.streams import Streams
from storage.threads import in_thread, settle

OnOutput = Callable[[int, bytes], None]

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# what runs in the new namespace says that it is there, and begins when it is told to: see _begin
_WAIT = ("sh", "-c", 'echo >&0; read -r go && exec "$@" </dev/null', "sh")
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells and docker have it
_SPAWN_POLLS, _SPAWN_POLL = 100, 0.01  # the namespace's first process appears within a few ms of the guard
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
        stop = asyncio.Event()
        with prepared(process, next(self._names), self._directory) as bundle:
            supervision = asyncio.create_task(self._supervise(bundle, on_output, stop))
            try:
                return await asyncio.shield(supervision)
            finally:
                stop.set()
                await settle(supervision)  # mounts stay until everything below them has died

    async def attach(self, process: Process) -> int:
        """See `Sandbox.attach`."""
        assert process.terminal, "a terminal is attached to a process that has one"
        with prepared(process, next(self._names), self._directory) as bundle:
            child = await self._spawn(bundle, None)
            try:
                status = await child.wait()
            finally:
                if child.returncode is None:
                    await settle(asyncio.ensure_future(_end(child, guarded=bool(guard_command()))))
                await in_thread(lambda: remove_container(self._directory, bundle.container))
            return self._judge(status, bundle.log, _to_stderr)

    # ------------------------------------------------------------ meanwhile

    async def _supervise(self, bundle: Bundle, on_output: OnOutput, stop: asyncio.Event) -> int:
        """Start the runtime and follow it to its end; when `stop` is set or `on_output` raises, end it first."""
        with Streams() as streams:
            child = await self._spawn(bundle, streams.writers)
        following = asyncio.create_task(_follow(streams, bundle.log, on_output))
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
            await asyncio.to_thread(remove_container, self._directory, bundle.container)
        with suppress(asyncio.CancelledError):  # reason: it was stopped
            following.result()
        return self._judge(status, bundle.log, on_output) if clean else status

    async def _spawn(self, bundle: Bundle, writers: tuple[int, int] | None) -> Child:
        """`writers`: where its streams 1 and 2 go; None: it has the streams of this process, and its terminal."""
        if shutil.which(self._runtime) is None:
            raise SandboxError("the OCI runtime is not executable", where=self._runtime)
        guard = guard_command()
        argv = (
            self._runtime, "--root", str(bundle.state), "--log", str(bundle.log), "--log-format", "json",
            "run", "--bundle", str(bundle.config), bundle.container,
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
