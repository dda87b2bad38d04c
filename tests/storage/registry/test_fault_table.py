"""Every fault of the table ends as it must, with as many requests and pauses as the page says; no wrong byte is kept.

That is part of playing a row (tests/faults/scene.py): what a root or a registry has afterwards is looked at, and what
failed is done again without the fault.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.faults.image import put_image
from tests.faults.page import PAGE, ROWS, line, page
from tests.faults.scene import RIGHT, Outcome, play
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


@pytest.fixture(scope="module")
def image(registry: RegistryProcess) -> str:
    """The repository that is pulled from."""
    put_image(registry, "t/faults/image")
    return "t/faults/image"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[f"{row.side}, {row.what}, {row.at}" for row in ROWS])
def test_I3_each_fault_ends_as_the_table_says(
    registry: RegistryProcess, image: str, directory: Path, number: int
) -> None:
    row, told = ROWS[number], PAGE.read_text().splitlines()
    repository = f"t/faults/{number}" if row.pushes else image
    outcome = play(row, registry, repository, directory)
    if outcome.stalls and line(row, outcome) not in told:  # a third of a second may be too short on a busy machine
        outcome = play(row, registry, f"{repository}/again" if row.pushes else image, directory, patience=10)
    kind, _, pattern = row.ends.partition(": ")
    if row.ends == RIGHT:
        assert outcome.result == RIGHT
    else:
        assert outcome.result.startswith(f"{kind}: ")
        assert re.search(pattern, outcome.result)
    assert line(row, outcome) in told


def test_the_page_has_a_line_for_every_row_and_no_other() -> None:
    blank = [(row, Outcome("", 0, 0, 0, "")) for row in ROWS]

    def named(text: str) -> list[str]:
        """All of it, of the table's lines only what names them."""
        return [" | ".join(line.split(" | ")[:2]) if line.startswith("| ") else line for line in text.splitlines()]

    assert named(PAGE.read_text()) == named(page(blank))
    assert len({(row.side, row.what, row.at) for row in ROWS}) == len(ROWS) >= 60
