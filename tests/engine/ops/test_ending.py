"""How a runtime that was started ends, whatever became of what should have started it."""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import DEVNULL

import pytest

from engine.ops import container
from engine.ops.container import _begin, _end, _to_stderr
from tests.waiting import PATIENCE


def test_a_guard_that_ended_before_it_began_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        asyncio.run(asyncio.wait_for(_begin(ours), PATIENCE))


def test_a_guard_without_a_namespace_is_killed_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_SPAWN_POLLS", 2)

    async def run() -> int | None:
        child = await asyncio.create_subprocess_exec("sleep", "1000", stdin=DEVNULL)
        await _end(child, guarded=True)
        return child.returncode

    assert asyncio.run(run()) == -9


def test_what_has_ended_is_not_killed() -> None:
    async def run() -> int | None:
        child = await asyncio.create_subprocess_exec("true", stdin=DEVNULL)
        await child.wait()
        await _end(child, guarded=False)
        return child.returncode

    assert asyncio.run(run()) == 0


def test_what_the_runtime_says_of_an_attached_command_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    _to_stderr(1, b"no such command\n")
    assert capfd.readouterr().err == "no such command\n"
