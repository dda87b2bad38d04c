"""Our cache and that of BuildKit are one: what dockerd exports are the names that we give."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.differential.caches import capture, push_bases
from tests.differential.oracles import BuildKit, Unavailable, dockerd
from tests.engine.buildkit.cases import CASES
from tests.engine.buildkit.comparing import compare, compiled, named
from tests.registry_fixture import RegistryProcess


@pytest.fixture(scope="module")
def docker() -> Iterator[BuildKit]:
    try:
        with dockerd() as daemon:
            yield daemon
    except Unavailable as error:
        warnings.warn(f"no cache is compared with BuildKit: {error}", stacklevel=1)
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bases(registry: RegistryProcess) -> dict[str, dict[str, Any]]:
    return push_bases(registry)


@pytest.mark.parametrize("name", CASES)
def test_every_step_has_the_name_that_dockerd_exports(
    name: str, registry: RegistryProcess, docker: BuildKit, tmp_path: Path, bases: dict[str, dict[str, Any]]
) -> None:
    records = capture(registry.host, docker, name, tmp_path, bases)
    images = {image["reference"]: image for image in bases.values()}
    graph = compiled((tmp_path / "Dockerfile").read_text(), images, tmp_path)
    assert compare(graph, named(graph, tmp_path), records) == []
