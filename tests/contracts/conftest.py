"""Where stores lie whose contract is tested: on this machine's disk, and on a simulated one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.overlay import detach_below
from tests.simulation.chance import Chance, Faults
from tests.simulation.disk import Disk
from tests.simulation.paths import simulated_files


@contextmanager
def simulated_place() -> Iterator[Path]:
    """An empty directory on a simulated disk."""
    with simulated_files():
        disk = Disk(Chance(1), Faults(), time.time_ns)
        directory = disk.process("test").path
        directory.mkdir()
        yield directory
        disk.end()


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty directory of either kind."""
    if request.param == "disk":
        yield tmp_path
        detach_below(tmp_path)
    else:
        with simulated_place() as directory:
            yield directory
