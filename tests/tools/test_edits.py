"""Every edit of the table runs the steps that it must, `refledger why` names it, and the page says so."""

from __future__ import annotations

import os
import re

import pytest

from tests.edit_table import EDITS
from tests.edits import PAGE, Edit, Shop, attempt, page, prepare, row
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Shop:
    return prepare(tmp_path_factory.mktemp("edits"), registry, "t/edits/base")


@pytest.mark.parametrize("edit", EDITS, ids=[edit.what for edit in EDITS])
def test_each_edit_runs_the_steps_that_it_must_and_why_names_it(warm: Shop, edit: Edit) -> None:
    done = attempt(warm, edit)
    assert len(done.ran) == len(edit.runs), done.ran
    for expected in edit.runs:
        assert sum(name.startswith(expected) for name in done.ran) == 1, (expected, done.ran)
    assert re.search(edit.says, done.line), done.line
    steps = done.told["steps"]
    assert isinstance(steps, list)
    missed = [step for step in steps if step["outcome"] == "miss" and step["needed"]]
    assert len(missed) == len(done.ran)
    assert [step["number"] for step in missed[:1]] == [done.told["first"]] * bool(missed)
    followed = done.told["followed"]
    assert (f"{followed} later step{'s' if followed != 1 else ''} followed" in done.text) == bool(followed)
    assert row(edit, done) in PAGE.read_text().splitlines()


def test_the_page_has_a_row_for_every_edit_and_no_other() -> None:
    text = PAGE.read_text()
    head = page(())
    assert text.startswith(head)
    assert [line.split(" | ")[0].removeprefix("| ") for line in text.removeprefix(head).splitlines()] == [
        edit.what.replace("|", "\\|") for edit in EDITS
    ]
