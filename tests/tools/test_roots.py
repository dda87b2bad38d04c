"""Roots as they are opened."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from engine.events import BuildCompleted, BuildStarted, Fact, to_data
from storage.errors import InputError
from storage.interfaces.log import NewEvent
from tools.roots import FORMAT, Root, open_root, owning, recover


@pytest.mark.parametrize("left", ["", "\0\0"])
def test_I12_a_root_whose_making_was_cut_short_can_be_opened(tmp_path: Path, left: str) -> None:
    (tmp_path / "format").write_text(left)
    with open_root(tmp_path) as root:
        assert root.log.last_seq() == 0
    assert (tmp_path / "format").read_text().strip() == FORMAT


def test_a_root_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("2\n")
    with pytest.raises(InputError, match="format '2'"), open_root(tmp_path):
        pass


def test_a_new_root_is_its_owners_alone(tmp_path: Path) -> None:
    with open_root(tmp_path / "a/root"):
        pass
    assert stat.S_IMODE((tmp_path / "a/root").stat().st_mode) == 0o700


def _log(root: Root, build: str, *facts: Fact) -> None:
    for fact in facts:
        root.log.append(NewEvent(f"build/{build}", type(fact).__name__, to_data(fact), build))


def _ends(root: Root) -> list[str]:
    return [event.type for event in root.log.read() if event.type != "BuildStarted"]


STARTED = BuildStarted(frontend="", definition="", options={}, context=None, engine_version="", host={})


def test_I12_a_build_that_ends_while_another_one_begins_is_not_said_to_have_been_interrupted(tmp_path: Path) -> None:
    with open_root(tmp_path) as first:
        _log(first, "aa", STARTED)
        with open_root(tmp_path) as second:
            _log(first, "aa", BuildCompleted(results=()))  # after the other one folded its views
            assert recover(second, "bb") == []
            assert _ends(second) == ["BuildCompleted"]


def test_I12_a_build_that_lives_is_not_said_to_have_been_interrupted(tmp_path: Path) -> None:
    with open_root(tmp_path) as first:
        _log(first, "aa", STARTED)
        with open_root(tmp_path) as second:
            with owning(first, "aa"):
                assert recover(second, "bb") == []
            assert recover(second, "bb") == ["aa"]


def test_I12_two_that_find_the_same_dead_build_say_so_once(tmp_path: Path) -> None:
    with open_root(tmp_path) as first:
        _log(first, "aa", STARTED)
        with open_root(tmp_path) as second:
            assert recover(first, "bb") == ["aa"]
            assert recover(second, "cc") == []
            assert _ends(second) == ["BuildInterrupted"]
