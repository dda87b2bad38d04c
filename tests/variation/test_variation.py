"""What a build makes tells nothing of where, when and by whom it was made. A sample; all of it with REFLEDGER_LONG, or
by `python -m tests.variation`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builder import PROJECT
from tests.registry_fixture import RegistryProcess
from tests.variation.project import Place, differing, push_base, write_context
from tests.variation.surroundings import OTHER, USUAL

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def test_what_is_made_is_the_same_in_other_surroundings(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    base = push_base(registry, repository)
    made = []
    for surroundings in (USUAL, OTHER):
        place = Place(tmp_path / surroundings.name, surroundings)
        write_context(place.context, base, random.Random(surroundings.name))
        made.append(place.build())
    one, two = made
    assert differing(one.outputs, two.outputs) == {}
    assert differing(one.facts, two.facts) == {}
    for words in (("bundle", two.build, "--full", "-o", "-"), ("audit", "report", two.build, "--json")):
        said = set()
        for place.surroundings in (USUAL, OTHER):
            said.add(place.run(*words))
        assert len(said) == 1


@pytest.mark.skipif(not os.environ.get("REFLEDGER_LONG"), reason="takes half an hour: set REFLEDGER_LONG")
def test_nothing_differs_in_any_surroundings_and_after_any_history(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.variation", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
