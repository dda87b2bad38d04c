"""Mistakes fail here as they do elsewhere, and our message names the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.differential.cases.case import Case
from tests.differential.cases.mistakes import LENIENT, MISTAKES, SOMETIMES
from tests.differential.conftest import Builders
from tests.differential.deviations import BOTH


@pytest.mark.parametrize("oracle", BOTH)
def test_there_is_somebody_to_compare_with(builders: Builders, oracle: str) -> None:
    """Skipped, with the reason, where that builder cannot run: cases are compared with the other one alone then."""
    if oracle in builders.missing:
        pytest.skip(f"nothing is compared with {oracle}: {builders.missing[oracle]}")
    assert oracle in [there.name for there in builders.oracles]


@pytest.mark.parametrize("name", MISTAKES)
def test_nobody_builds_it(builders: Builders, name: str, tmp_path: Path) -> None:
    text, line, words = MISTAKES[name]
    files = {".dockerignore": "ignored.txt\n", "ignored.txt": "x"}
    outcomes = builders.build(name, Case(text, files), tmp_path, whole=True)
    ours = outcomes.pop("ours")
    assert ours.image is None
    error = ours.said[ours.said.rindex("ERROR:") :]
    assert re.search(words, error), error
    if line:
        marked = rf"(?m)^ *{line} \| >>>"
        assert f"Dockerfile:{line}" in ours.said, ours.said
        assert re.search(marked, ours.said), ours.said
    takes_it = {oracle for oracle, theirs in outcomes.items() if theirs.image is not None}
    assert takes_it - SOMETIMES.get(name, set()) == LENIENT.get(name, set()) & set(outcomes)
