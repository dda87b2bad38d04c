"""Looking at a command where it runs: the file system, mounts and environment that it has, while it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.ledger import Facts
from engine.ops.executor import Task
from engine.ops.oci_spec import Process
from engine.ops.sandbox import Sandbox
from engine.refs.ref import Local
from storage.interfaces.layers import Snapshot, SnapshotStore


@dataclass(frozen=True, slots=True)
class Attended:
    """A command ready to run, or that just failed. `snapshot` is its file system, writable and mounted, on `base`; all
    mounts of `process` are there. `snapshots`: where more of them are made; `facts`: where to tell of those."""

    task: Task
    process: Process
    snapshot: Snapshot
    base: Local
    sandbox: Sandbox
    snapshots: SnapshotStore
    facts: Facts


class Attend(Protocol):
    """Whoever looks. The step goes on when these return; cancelling them must work at any time."""

    async def before(self, step: Attended) -> None:
        """All is ready, nothing ran."""
        ...

    async def failed(self, step: Attended, status: int) -> None:
        """The command ended with `status`, not 0; what it left is dropped when this returns."""
        ...
