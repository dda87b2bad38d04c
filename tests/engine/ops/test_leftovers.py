"""What is left of containers, also where it does not want to go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import SandboxError
from engine.ops import leftovers
from engine.ops.leftovers import children, remove_container, sweep_containers


def test_a_process_that_is_gone_has_no_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert children(process.pid) == []


def _group(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    group = directory / "group"
    (group / "inner").mkdir(parents=True)
    monkeypatch.setattr(leftovers, "_groups", lambda _: iter([group] if group.exists() else []))
    return group


def test_groups_below_a_containers_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = _group(tmp_path, monkeypatch)
    (tmp_path / "state/b1.0.1").mkdir(parents=True)
    remove_container(tmp_path, "b1.0.1")
    assert not group.exists()
    assert list((tmp_path / "state").iterdir()) == []


def test_processes_that_do_not_die_are_told_and_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = _group(tmp_path, monkeypatch)
    (group / "held").touch()  # as little can be removed as a group in which something lives
    monkeypatch.setattr(leftovers, "_PATIENCE", 0.02)
    with pytest.raises(SandboxError, match=r"processes of container b1.0.1 do not die \(the kernel holds them"):
        remove_container(tmp_path, "b1.0.1")


def test_what_was_tried_out_by_a_process_that_died_goes(tmp_path: Path) -> None:
    for owner in ("dead", "alive"):
        (tmp_path / f"probe-{owner}-x1y2/bundles/probe.00.1").mkdir(parents=True)
    assert sweep_containers(tmp_path, lambda owner: owner == "alive") == []
    assert [path.name for path in tmp_path.iterdir()] == ["probe-alive-x1y2"]
