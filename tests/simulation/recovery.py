"""Opening a simulated root, and letting go of what is in it: by the real code of tools/. To be used within
`paths.simulated_files()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from projections.collect import Policy
from tests.simulation.disk import DiskProcess
from tools import collecting, connecting, roots
from tools.collecting import Collected
from tools.roots import Root


@contextmanager
def open_root(process: DiskProcess) -> Iterator[Root]:
    """tools.roots.open_root, with views in memory that end with it."""
    with roots.open_root(process.path) as root:
        yield root


async def prune(process: DiskProcess, policy: Policy, client: Callable[..., Any]) -> Collected:
    """What `refledger prune` does in a process of its own: plan, then carry out. `client` makes what asks registries
    (RegistrySource, with `aclose`)."""
    with open_root(process) as root:
        with patch.object(connecting, "registry_client", client):
            plan = await collecting.plan_collection(root, policy, dry_run=False)
        return collecting.carry_out(root, plan, policy)
