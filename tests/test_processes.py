"""What is forked from a zygote is a process like any other that runs the module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.builder import PROJECT
from tests.processes import run_into, run_module
from tools.cli.main import _COMMANDS

ENV = {"PATH": os.environ["PATH"], "HOME": "/some/where", "TZ": "Asia/Tokyo"}


def fresh(*args: str, env: Mapping[str, str] = ENV, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [sys.executable, "-m", "tests.started", *args], env=env, cwd=PROJECT, capture_output=True, check=False,
        start_new_session=True, **given,
    )  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONUNBUFFERED": "1"}], ids=str)
def test_it_finds_what_a_process_of_its_own_finds(more: dict[str, str]) -> None:
    old = os.umask(0o027)
    try:
        expected, is_so = (
            json.loads(run("found", "x y", env={**ENV, **more}).stdout)
            for run in (fresh, lambda *args, env: run_module("tests.started", *args, env=env))
        )
    finally:
        os.umask(old)
    assert is_so == expected


@pytest.mark.parametrize("how", ["code", "words", "raise", "nowhere", "at once", "killed"])
def test_it_ends_as_a_process_of_its_own_ends(how: str) -> None:
    expected, is_so = fresh(how), run_module("tests.started", how, env=ENV)
    assert (is_so.returncode, is_so.stdout) == (expected.returncode, expected.stdout)
    assert is_so.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


def test_its_output_may_go_into_files(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("what was there before, and is longer than what comes")
    session, code = run_into("tests.started", "killed", env=ENV, out=out, err=err)
    assert (code, out.read_text(), err.read_text()) == (-9, "kept\n", "")
    run_into("tests.started", "found", env=ENV, out=out, err=err)
    assert json.loads(out.read_text())["leads"]
    assert not Path(f"/proc/{session}").exists()


def test_standard_input_is_a_pipe_of_any_size() -> None:
    data = os.urandom(1 << 20)
    assert run_module("tests.started", "copy", env=ENV, stdin=data).stdout == data
    assert run_module("tests.started", "found", env=ENV, stdin=data).returncode == 0, "nobody reads it"


def test_several_run_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(run_module, "tests.started", "meet", str(tmp_path), "8", env=ENV) for _ in range(8)]
        assert [one.result().returncode for one in done] == [0] * 8


def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    run_module("tests.started", "copy", env=ENV)
    for timeout in (1, 10, 100):  # a busy machine may take that long to begin
        with pytest.raises(subprocess.TimeoutExpired):
            run_module("tests.started", "meet", str(tmp_path), "9", env=ENV, timeout=timeout)
        if begun := [name.name for name in tmp_path.iterdir()]:
            break
    assert begun
    for pid in begun:
        while Path(f"/proc/{pid}/status").exists():
            time.sleep(0.01)
    assert run_module("tests.started", "copy", env=ENV, stdin=b"x").stdout == b"x"


@pytest.mark.parametrize("module", sorted(set(_COMMANDS.values())))
def test_every_command_imports_what_it_needs_itself(module: str, tmp_path: Path) -> None:
    """In what is forked other commands' imports would serve it."""
    command = next(name for name, place in _COMMANDS.items() if place == module)
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli.main", command, "--help"], cwd=PROJECT, env={**ENV, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: refledger {command}")
