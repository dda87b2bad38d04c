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


@pytest.mark.parametrize("beside", [True, False])
def test_I12_what_the_killed_left_goes_with_the_next_one_and_what_is_used_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, beside: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = [str(tmp_path)] if beside else []
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=Path(__file__).parents[2], check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
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
