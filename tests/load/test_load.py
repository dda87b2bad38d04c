"""Each scenario of the load drill, in its short form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.load.scenarios import ALL, SHORT, Scenario, told
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.__name__)
def test_much_of_it_ends_right(scenario: Scenario, tmp_path: Path, registry: RegistryProcess) -> None:
    result = scenario(tmp_path / "a load", registry, SHORT)
    assert not result.wrong, "\n".join(told(result))
