"""docs/differences.md lists every deviation and every lenient builder, and counts the cases as they are."""

from __future__ import annotations

import re
from pathlib import Path

from tests.differential.cases.config import EXPANSION, FORMAT, FROM_ARG, METADATA
from tests.differential.cases.expected import HANDWRITTEN
from tests.differential.cases.mistakes import LENIENT, MISTAKES
from tests.differential.cases.steps import ADD, COPY, IGNORE, RUN
from tests.differential.deviations import BOTH, DEVIATIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs/differences.md").read_text()
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in PAGE.splitlines() if line[:1] == "|"]
GROUPS = {
    "format": FORMAT, "variables": EXPANSION, "`FROM`, `ARG`": FROM_ARG, "metadata": METADATA, "`RUN`": RUN,
    "`COPY`": COPY, "`ADD`": ADD, "`.dockerignore`": IGNORE,
}  # fmt: skip


def test_every_deviation_is_a_row() -> None:
    first = {row[0] for row in ROWS}
    assert {deviation.what for deviation in DEVIATIONS} <= first
    assert {f"`{name}`" for name in LENIENT} <= first


def test_the_counts_are_those_of_the_tables() -> None:
    counted = {row[0]: [int(cell) for cell in row[1:]] for row in ROWS if all(re.fullmatch(r"\d+", c) for c in row[1:])}
    wanted = {
        name: [len(cases), *(sum(oracle not in case.lacks for case in cases.values()) for oracle in BOTH)]
        for name, cases in GROUPS.items()
    }  # fmt: skip
    assert counted == {
        **wanted,
        "all": [sum(column) for column in zip(*wanted.values(), strict=True)],
        "mistakes": [len(MISTAKES)] * 3,
        "written by hand": [len(HANDWRITTEN), 0, 0],
    }


def test_there_are_at_least_120_and_no_name_twice() -> None:
    names = [name for cases in GROUPS.values() for name in cases] + [*HANDWRITTEN, *MISTAKES]
    assert len(names) == len(set(names))
    assert sum("buildkit" not in case.lacks for cases in GROUPS.values() for case in cases.values()) >= 120
