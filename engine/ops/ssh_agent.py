"""ssh agents for steps: one of our own for key files, and a relay into the container that only asks and signs.

Keys are held by OpenSSH's ssh-agent, started for the build: nothing of ours ever parses one. It is killed by the
kernel when our process dies (PR_SET_PDEATHSIG; without new privileges, as a set-group-id program would lose that).
The container never gets the agent's own socket: the relay has the mode and owner that the mount asks for, and passes
on what names keys and signs, not what adds, removes or locks them. Protocol: draft-miller-ssh-agent.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from asyncio.subprocess import Process as Child
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from engine.errors import DiskError, HostError, InputError

_PASSED_ON = frozenset({11, 13})  # SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENTC_SIGN_REQUEST
_FAILURE = b"\0\0\0\1\5"  # SSH_AGENT_FAILURE
_LONGEST = 256 * 1024  # bytes of a message; OpenSSH has the same bound
_CLIENTS = 64  # at once: more would take the descriptors that the build itself needs
_POLLS, _POLL = 500, 0.01
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SSH_ASKPASS_REQUIRE": "never"}
_HINT = "apt-get install openssh-client, or give the socket of a running agent"


@asynccontextmanager
async def agents_of_keys(keys: Mapping[str, Sequence[tuple[str, bytes]]], place: Path) -> AsyncIterator[dict[str, str]]:
    """Run an agent for each id with its keys, each `(name for messages, content)`; gives sockets below `place` by id.
    Raises InputError for a key that cannot be used, HostError where there is no ssh-agent."""
    async with AsyncExitStack() as stack:
        sockets = {}
        for number, (name, files) in enumerate(keys.items()):
            sockets[name] = await stack.enter_async_context(_agent(files, place, f"agent.{number}"))
        yield sockets


@asynccontextmanager
async def _agent(keys: Sequence[tuple[str, bytes]], place: Path, name: str) -> AsyncIterator[str]:
    agent = await _start(place, name)
    try:
        for where, content in keys:
            await _add(place, name, where, content)
        yield str(place / name)
    finally:
        with suppress(ProcessLookupError):
            agent.kill()
        await agent.wait()


async def _start(place: Path, name: str) -> Child:
    guard = ("setpriv", "--no-new-privs", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
    try:
        # a short relative name: a socket's path has 107 bytes at most
        child = await asyncio.create_subprocess_exec(
            *guard, "ssh-agent", "-D", "-a", name, cwd=place, env=_ENVIRONMENT, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise HostError(f"ssh-agent cannot be started: {error.strerror}", hint=_HINT) from None
    for _ in range(_POLLS):
        with suppress(OSError), _near(place / name) as near, socket.socket(socket.AF_UNIX) as probe:
            probe.connect(near)  # reason: the socket is there before anybody listens
            return child
        if child.returncode is not None:
            break
        await asyncio.sleep(_POLL)
    with suppress(ProcessLookupError):
        child.kill()
    await child.wait()
    raise HostError("ssh-agent did not start", hint=_HINT)


async def _add(place: Path, name: str, where: str, content: bytes) -> None:
    child = await asyncio.create_subprocess_exec(
        "ssh-add", "-q", "-", cwd=place, env={**_ENVIRONMENT, "SSH_AUTH_SOCK": name}, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, said = await child.communicate(content if content.endswith(b"\n") else content + b"\n")
    if child.returncode != 0:
        reason = " ".join(said.decode("utf-8", "replace").split()) or f"exit code {child.returncode}"
        hint = "a key with a passphrase must be in a running agent: ssh-add it, and give the agent's socket"
        raise InputError(f"ssh-add does not take this key: {reason[:200]}", where=where, hint=hint)


@asynccontextmanager
async def relay(agent: str, listen: Path, mode: int, uid: int, gid: int) -> AsyncIterator[None]:
    """Listen at `listen`, a new socket of that mode and owner, and pass requests on to the agent at `agent`. Raises
    DiskError."""
    try:
        server_socket = _listen(listen, mode, uid, gid)
    except OSError as error:
        raise DiskError.of(error, "forwarding the ssh agent") from error
    clients: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(clients) >= _CLIENTS:
            writer.close()
            return
        clients.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await _serve(reader, writer, agent)
        finally:
            clients.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(serve, sock=server_socket)
    try:
        yield
    finally:
        server.close()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def _listen(path: Path, mode: int, uid: int, gid: int) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _near(path) as near:
            server.bind(near)
        os.chown(path, uid, gid)
        path.chmod(mode)
    except OSError:
        server.close()
        raise
    return server


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, agent: str) -> None:
    with _near(Path(agent)) as near:
        agent_reader, agent_writer = await asyncio.open_unix_connection(near)
    try:
        while True:
            request = await _message(reader)
            if request[4] in _PASSED_ON:
                agent_writer.write(request)
                await agent_writer.drain()
                writer.write(await _message(agent_reader))
            else:
                writer.write(_FAILURE)
            await writer.drain()
    finally:
        agent_writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One message with its length in front. Raises IncompleteReadError at the end and for what is none."""
    head = await reader.readexactly(4)
    size = int.from_bytes(head)
    if not 0 < size <= _LONGEST:
        raise asyncio.IncompleteReadError(head, None)
    return head + await reader.readexactly(size)


@contextmanager
def _near(path: Path) -> Iterator[str]:
    """A name for socket `path` that is short enough for sockaddr_un."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
