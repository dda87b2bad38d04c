"""What a root is after whoever made it was killed, or the machine went down, at any point of that."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from engine.events import BuildStarted, to_data
from storage.errors import InputError
from storage.interfaces import NewEvent
from tools.roots import open_root, recover


def test_I12_a_root_whose_making_was_cut_short_is_usable(tmp_path: Path) -> None:
    root = tmp_path / "a/root"
    root.mkdir(parents=True)
    (root / "format").touch()  # its bytes never reached the disk
    with open_root(root) as opened:
        assert opened.log.last_seq() == 0
    assert (root / "format").read_text() == "1\n"


def test_I12_two_that_recover_at_once_say_of_a_dead_build_once_that_it_was_interrupted(tmp_path: Path) -> None:
    with open_root(tmp_path) as one:
        started = BuildStarted(frontend="test", definition="", options={}, context=None, engine_version="", host={})
        one.log.append(NewEvent("build/dead", "BuildStarted", to_data(started), "dead"))
    with open_root(tmp_path) as one, open_root(tmp_path) as other:
        assert recover(one, "one") == ["dead"]
        assert recover(other, "other") == []
        assert [event.type for event in one.log.read()] == ["BuildStarted", "BuildInterrupted"]


def test_a_new_root_is_its_owners_alone(tmp_path: Path) -> None:
    with open_root(tmp_path / "a/root"):
        pass
    assert stat.S_IMODE((tmp_path / "a/root").stat().st_mode) == 0o700


def test_a_root_of_another_format_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("99\n")
    with pytest.raises(InputError, match="format '99'"), open_root(tmp_path):
        pass
    assert (tmp_path / "format").read_text() == "99\n"
