"""Whoever looks over the shoulders of simulated processes counts the living."""

from __future__ import annotations

import asyncio

import pytest

from projections.runner import Views
from storage.interfaces.images import Descriptor, Provider
from tests.simulation.chance import Chance, Faults, Process
from tests.simulation.disk import Disk
from tests.simulation.machine import Doing, Machine
from tests.simulation.registry import MemoryRegistries
from tests.simulation.scenarios import Act
from tests.simulation.stock import LAYER_TYPE
from tests.simulation.watching import Watching


@pytest.mark.parametrize("dies", [False, True])
def test_I4_two_that_fetch_one_layer_at_once_are_found_but_not_one_after_another_s_death(dies: bool) -> None:
    disk, registries = Disk(Chance(1), Faults()), MemoryRegistries(Chance(1), Faults())
    machine, problems = Machine(disk), list[str]()
    data = b"a layer"
    blob = Descriptor(LAYER_TYPE, registries.host("one.test").put_blob("images", data), len(data))
    provider = Provider.of("one.test", "images")

    def client(build: str) -> tuple[Doing, Watching]:
        doing = Doing(Act("build"), build, machine, set(), 0, problems, owner=Process(build))
        return doing, Watching(registries.client(), doing, registries)

    async def fetch() -> None:
        (first, one), (_, other) = client("1"), client("2")
        async with one.blob(provider, blob):
            if dies:
                first.process.calls.die()
            async with other.blob(provider, blob):
                pass

    try:
        asyncio.run(fetch())
    finally:
        disk.end()
        Views.close(machine.views)
    assert any(problem.startswith("I4") for problem in problems) != dies
