"""Opening a simulated root, mending it after a crash, and letting go of what is in it: by the real code of tools/."""

from __future__ import annotations

import time as real_time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from projections.collect import Plan, Policy
from projections.runner import Views
from tests.simulation.disk import DiskProcess
from tools import collecting, connecting, roots
from tools.collecting import Collected
from tools.roots import Root


@contextmanager
def simulated_time(process: DiskProcess, sleep: Callable[[float], None] | None = None) -> Iterator[None]:
    """Have tools/ read the disk's clock, and `sleep` the way the simulation does; without any, time does not pass."""

    def now() -> float:
        return process.disk.now() / 1e9

    clock = SimpleNamespace(
        time=now, time_ns=process.disk.now, monotonic=now, perf_counter=real_time.perf_counter,
        sleep=sleep or (lambda seconds: None),
    )  # fmt: skip
    with patch.object(roots, "time", clock), patch.object(collecting, "time", clock):
        yield


@contextmanager
def open_root(process: DiskProcess, *, folded: bool = True) -> Iterator[Root]:
    """tools.roots.open_root, with views in memory."""

    def leave(path: object, log: object, views: object) -> None:
        """Nothing to be kept for a reader: views end with the process."""

    with (
        patch.object(roots, "SqliteEventLog", lambda path: process.log),
        patch.object(roots, "Views", lambda path, projections: Views(None, projections)),
        patch.object(roots, "_leave", leave),
    ):
        opening = roots.open_root(process.path, folded=folded)
        root = opening.__enter__()
    try:
        yield root
    finally:
        root.views.close()


def recover(process: DiskProcess, root: Root, found_by: str) -> list[str]:
    """tools.roots.recover: what the build `found_by` does first."""
    with simulated_time(process):
        return roots.recover(root, found_by)


async def plan(process: DiskProcess, root: Root, policy: Policy, client: Callable[..., Any]) -> Plan:
    """tools.collecting.plan_collection. `client` makes what asks registries (RegistrySource, with `aclose`)."""
    with simulated_time(process), patch.object(connecting, "registry_client", client):
        return await collecting.plan_collection(root, policy, dry_run=False)


def carry_out(
    process: DiskProcess, root: Root, plan: Plan, policy: Policy, sleep: Callable[[float], None] | None = None
) -> Collected:
    """tools.collecting.carry_out. Blocking: `sleep` lets others go on."""
    with simulated_time(process, sleep):
        return collecting.carry_out(root, plan, policy)


async def prune(
    process: DiskProcess, policy: Policy, client: Callable[..., Any], sleep: Callable[[float], None] | None = None
) -> Collected:
    """What `refledger prune` does in a process of its own: plan, then carry out."""
    with open_root(process) as root:
        made = await plan(process, root, policy, client)
        return carry_out(process, root, made, policy, sleep)
