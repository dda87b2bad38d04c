"""The command line where standard streams are full, closed, or of another language: it says so, or says nothing.

The processes are started with what they inherit from a shell, so each has an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builder import PROJECT, Builder

CLOSED = "Bad file descriptor"
FULL = "ERROR: writing to standard output: No space left on device\n"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def shell(builder: Builder, script: str) -> tuple[int, str]:
    """The exit code of `script` in bash, where $R is the command, and what was printed, on whichever stream."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=PROJECT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**builder.env, "R": f"'{sys.executable}' -m tools.cli.main", "C": str(builder.context)}, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        pytest.param("eval $R --version >/dev/full", 3, FULL, id="a full disk"),
        pytest.param("eval $R build --help >/dev/full", 3, FULL, id="a full disk, for click's own"),
        pytest.param("eval $R --version >&-", 3, FULL.replace("No space left on device", CLOSED), id="none"),
        pytest.param("eval $R build --help | true", 0, "", id="nobody reads"),
        pytest.param("eval $R show nothing 2>/dev/full", 2, "", id="an error that nobody reads"),
        pytest.param("eval $R show nothing 2>&-", 2, "", id="an error without a place"),
        pytest.param("eval $R login --password-stdin 127.0.0.1:1 -u me <&-", 2, None, id="no input"),
    ],
)
def test_output_that_cannot_be_written_is_an_error_and_told_in_one_line(
    tmp_path: Path, script: str, code: int, said: str | None
) -> None:
    found, printed = shell(Builder(tmp_path), script)
    assert found == code, printed
    assert "internal error" not in printed
    assert said is None or printed == said


@root_only
def test_a_file_that_cannot_be_written_is_called_what_it_was_called(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.must_build("FROM scratch\nLABEL a=b\n")
    build = json.loads(builder.run("history", "--json").out)["id"]
    for command in (["report", build], ["bundle", build]):
        done = builder.run(*command, "-o", "/dev/full")
        assert done.code == 3
        assert done.err.startswith("ERROR: /dev/full: writing the "), done.err


@root_only
def test_a_build_goes_on_to_its_end_whoever_listens(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.write({"Dockerfile": "FROM scratch\nCOPY ünïcode /\n", "ünïcode": "x"})
    assert shell(builder, "eval $R build '$C' --iidfile '$C/../iid' 2>/dev/full")[0] == 0
    assert (tmp_path / "iid").read_text()
    assert shell(builder, "eval $R build '$C' --progress json >/dev/full") == (3, FULL)
    assert shell(builder, "eval $R build '$C' --progress plain 2>&1 | true") == (0, "")
    assert [build["status"] for build in builder.builds()] == ["completed"] * 3


@root_only
def test_a_terminal_of_another_language_gets_what_it_can_show(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.write({"Dockerfile": "FROM scratch\nCOPY ünïcode /\n", "ünïcode": "x"})
    code, printed = shell(builder, "PYTHONIOENCODING=ascii eval $R build '$C' --progress plain")
    assert code == 0
    assert r"COPY \xfcn\xefcode /" in printed
    code, printed = shell(builder, "PYTHONIOENCODING=ascii eval $R events")
    assert code == 0
    assert printed.isascii()


@root_only
@pytest.mark.parametrize("wish", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_for_terminals_that_take_them_and_users_who_want_them(tmp_path: Path, wish: dict[str, str]) -> None:
    builder = Builder(tmp_path)
    builder.must_build("FROM scratch\nLABEL a=b\n")
    build = json.loads(builder.run("history", "--json").out)["id"]
    settings = " ".join(f"{name}={value}" for name, value in {"TERM": "xterm", **wish}.items())
    plain, drawn = (
        shell(builder, f'script -qec "env {how} $R show {build}" /dev/null')[1] for how in (settings, "TERM=xterm")
    )
    assert "\x1b[" in drawn
    assert "\x1b[" not in plain


def test_who_interrupts_while_it_starts_sees_no_traceback(tmp_path: Path) -> None:
    """In the place of a module that is imported early: one that interrupts."""
    goes_on = "os.write(1, b'went on')\nos._exit(0)\n"
    (tmp_path / "click.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n{goes_on}")
    where = f"PYTHONPATH='{tmp_path}'"
    assert shell(Builder(tmp_path), f"eval env --default-signal=INT {where} $R history") == (128 + 2, "")
    assert shell(Builder(tmp_path), f"eval env --ignore-signal=INT {where} $R history") == (0, "went on")
