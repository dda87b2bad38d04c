"""Forwarded agents: a client can ask and sign, and nothing else; keys live in a process that dies with us."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from engine.errors import DiskError, HostError, InputError
from engine.ops import ssh_agent
from engine.ops.ssh_agent import agents_of_keys, relay
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ssh-agent", "ssh-add", "ssh-keygen"))),
    reason="needs root and openssh-client",
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", tmp_path / "id"], check=True)
    return tmp_path / "id"


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A place whose sockets have names too long for a socket address."""
    place = tmp_path / ("d" * 100)
    place.mkdir()
    return place


async def client(socket: Path, *argv: str) -> tuple[int, str]:
    """An OpenSSH command that uses the socket, by a short name."""
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=socket.parent, env={"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": socket.name},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def test_a_relay_asks_and_signs_but_does_not_change_the_agent(key: Path, deep: Path) -> None:
    listen = deep / "forwarded"
    (deep / "text").write_text("to be signed")
    shutil.copy(key.with_suffix(".pub"), deep / "id.pub")

    async def use() -> None:
        async with agents_of_keys({"k": [("id", key.read_bytes())]}, deep) as sockets:
            async with relay(sockets["k"], listen, 0o640, 5, 6):
                info = listen.stat()
                assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o640, 5, 6)
                assert (await client(listen, "ssh-add", "-l"))[1].count("ED25519") == 1
                done = await client(listen, "ssh-keygen", "-Y", "sign", "-n", "test", "-f", "id.pub", "text")
                assert done[0] == 0, done[1]
                for change in (("ssh-add", "-D"), ("ssh-add", "-x"), ("ssh-add", str(key))):
                    assert (await client(listen, *change))[0] != 0
                assert (await client(listen, "ssh-add", "-l"))[0] == 0
            assert (await client(listen, "ssh-add", "-l"))[0] == 2  # nobody listens any more
        assert (await client(Path(sockets["k"]), "ssh-add", "-l"))[0] == 2

    asyncio.run(use())
    check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "test", "-s", str(deep / "text.sig")]
    subprocess.run(check, stdin=(deep / "text").open(), check=True, stdout=subprocess.DEVNULL)


def test_garbage_from_a_client_ends_its_connection_only(key: Path, tmp_path: Path) -> None:
    async def use() -> None:
        async with AsyncExitStack() as stack:
            keys = {"k": [("id", key.read_bytes())]}
            sockets = await stack.enter_async_context(agents_of_keys(keys, tmp_path))
            await stack.enter_async_context(relay(sockets["k"], tmp_path / "s", 0o600, 0, 0))
            for garbage in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x09\x0b"):
                reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
                writer.write(garbage)
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
            assert (await client(tmp_path / "s", "ssh-add", "-l"))[0] == 0

    asyncio.run(use())


def test_what_is_no_key_is_an_input_error_that_shows_nothing_of_it(tmp_path: Path) -> None:
    async def use() -> None:
        async with agents_of_keys({"k": [("notes.txt", b"my dear diary")]}, tmp_path):
            pass

    with pytest.raises(InputError, match=r"notes\.txt: ssh-add does not take this key") as caught:
        asyncio.run(use())
    assert "diary" not in str(caught.value)


def test_a_step_that_opens_connections_without_end_takes_few_descriptors_of_the_build(
    key: Path, tmp_path: Path
) -> None:
    async def use() -> None:
        async with AsyncExitStack() as stack:
            keys = {"k": [("id", key.read_bytes())]}
            sockets = await stack.enter_async_context(agents_of_keys(keys, tmp_path))
            await stack.enter_async_context(relay(sockets["k"], tmp_path / "s", 0o600, 0, 0))
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            opened = [await asyncio.open_unix_connection(str(tmp_path / "s")) for _ in range(200)]
            await asyncio.wait_for(opened[-1][0].read(), PATIENCE)  # one too many is closed at once
            taken = len(os.listdir("/proc/self/fd")) - before - len(opened)  # noqa: PTH208
            for _, writer in opened:
                writer.close()
            assert taken <= 2 * 64 + 20
            async with asyncio.timeout(PATIENCE):
                while (await client(tmp_path / "s", "ssh-add", "-l"))[0]:  # until it knows that they are closed
                    await asyncio.sleep(0.05)

    asyncio.run(use())


def _programs(place: Path, agent: str) -> dict[str, str]:
    (place / "bin").mkdir()
    (place / "bin/ssh-agent").write_text(f"#!/bin/sh\n{agent}\n")
    (place / "bin/ssh-agent").chmod(0o755)
    return {"PATH": f"{place}/bin:/usr/bin:/bin"}


@pytest.mark.parametrize("agent", ["exit 1", "exec sleep 60"])
def test_an_agent_that_does_not_start_is_told_and_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    monkeypatch.setattr(ssh_agent, "_ENVIRONMENT", _programs(tmp_path, agent))
    monkeypatch.setattr(ssh_agent, "_POLLS", 20)

    async def start() -> None:
        async with agents_of_keys({"default": []}, tmp_path):
            raise AssertionError("it started")

    with pytest.raises(HostError, match="ssh-agent did not start"):
        asyncio.run(start())


def test_where_there_is_no_ssh_agent_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_agent, "_ENVIRONMENT", {"PATH": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda _: None)

    async def start() -> None:
        async with agents_of_keys({"default": []}, tmp_path):
            raise AssertionError("it started")

    with pytest.raises(HostError, match=r"ssh-agent cannot be started: No such file .*apt-get install openssh-client"):
        asyncio.run(start())


def test_a_socket_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()

    async def listen() -> None:
        async with relay("/nowhere", tmp_path / "taken", 0o600, 0, 0):
            raise AssertionError("it listens")

    with pytest.raises(DiskError, match="forwarding the ssh agent: Address already in use"):
        asyncio.run(listen())


def test_a_client_that_stays_does_not_hold_up_the_end(tmp_path: Path) -> None:
    agent, listen = tmp_path / "agent", tmp_path / "relay"

    async def stay() -> bytes:
        asked = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            asked.set()

        server = await asyncio.start_unix_server(silent, agent)
        async with relay(str(agent), listen, 0o600, 0, 0):
            reader, writer = await asyncio.open_unix_connection(listen)
            writer.write(b"\0\0\0\1\x0b")
            await asked.wait()
        ended = await reader.read()
        writer.close()
        server.close()
        return ended

    assert asyncio.run(asyncio.wait_for(stay(), PATIENCE)) == b""


def test_an_agent_that_died_before_the_end_of_the_step_is_no_failure(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def use() -> None:
        async with agents_of_keys({"k": [("id", key.read_bytes())]}, tmp_path) as sockets:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(Path(sockets["k"]).name)
                pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                while Path(f"/proc/{pid}").exists():
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # until the loop knows, too

    asyncio.run(use())
