"""Roots as they are opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import InputError
from tools.roots import FORMAT, open_root


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
