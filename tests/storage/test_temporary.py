"""Temporary directories go with their process, or with the next one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.temporary import TemporaryPlace

KILLED = """
import os, signal, sys
from pathlib import Path
from storage.temporary import TemporaryPlace
place = TemporaryPlace(Path(sys.argv[1]) if sys.argv[1:] else None)
(place.path / "deep/er").mkdir(parents=True)
(place.path / "deep/er/file").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""
TRACED = """
import os, sys
from storage.temporary import TemporaryPlace

def told(event, args):
    if event == "open" and str(args[0]).startswith(os.environ["TMPDIR"]):
        print(args[0])

sys.addaudithook(told)
TemporaryPlace()
"""
PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("beside", [True, False])
def test_I12_what_the_killed_left_goes_with_the_next_one_and_what_is_used_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, beside: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = [str(tmp_path)] if beside else []
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=PROJECT, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert (left / "deep/er/file").exists()
    (tmp_path / "refledger-tmp.of a person").mkdir()
    (tmp_path / "refledger-tmp.filefile").write_text("")
    used = TemporaryPlace(tmp_path if beside else None)
    with TemporaryPlace(tmp_path if beside else None) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert not left.exists()
        assert used.path.exists()
        (path / "file").write_text("x")
    assert not path.exists()
    used.remove()
    used.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refledger-tmp.filefile", "refledger-tmp.of a person"]


def test_it_goes_when_nobody_removes_it(tmp_path: Path) -> None:
    path = TemporaryPlace(tmp_path).path
    assert not path.exists()


def test_I12_nothing_is_tried_where_a_kill_would_leave_it(tmp_path: Path) -> None:
    """tempfile finds its directory by a file of a name of its own, which nobody removes when that process dies."""
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TRACED], env=env, capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert {Path(name).name.partition(".")[0] for name in done.stdout.splitlines()} == {"refledger-tmp"}
