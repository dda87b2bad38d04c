"""RUN and .dockerignore: the same image as other builders make, for each case of the tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.cases.case import Case
from tests.differential.cases.steps import IGNORE, RUN
from tests.differential.conftest import Builders
from tests.differential.judging import judge

CASES = RUN | IGNORE


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_the_same_image(builders: Builders, name: str, case: Case, tmp_path: Path) -> None:
    judge(builders, name, case, tmp_path)
