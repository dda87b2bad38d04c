"""The executor of this process with a scripted sandbox: commands are data, and so is what they leave.

Everything that decides is LocalExecutor's: inputs are materialized by the real Materializer, a COPY asks the real
AskedPaths, a step's snapshot is begun, committed and dropped as by the real one. Only what the kernel does is not: a
tree is a mapping of paths to bytes, as the simulated disk has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from engine.clock import Clock
from engine.errors import InputError, StepFailed
from engine.events import RuntimeChosen
from engine.grants import Grants
from engine.graph import Copy, Mkdir, Run
from engine.ledger import Facts
from engine.ops.executor import Outcome, Task
from engine.ops.local import LocalExecutor, SandboxFactory
from engine.ops.output import OutputRecorder
from engine.ops.redact import Redactor
from engine.ops.run_mounts import RunMounts
from engine.ops.sandbox import Sandbox
from engine.ops.selection import Entry, Selection
from engine.ops.sources import SourceFetcher
from engine.record import changed
from engine.refs.asked import AskedPaths
from engine.refs.ref import Local
from engine.together import both
from storage.digest import Digest, sha256
from storage.interfaces.layers import Look, Snapshot, SnapshotStore
from tests.simulation.model import TOC, Tree, written_by_run
from tests.simulation.mounting import merged_content
from tests.simulation.paths import DiskPath

PLAIN = Look(0o644, 0, 0, 0)
DIRECTORY = Look(0o755, 0, 0, 0)


class ScriptedExecutor(LocalExecutor):
    """`RUN step <number> seconds=<s> fails=<bool>`: see model.written_by_run. A step prints the secrets that are
    mounted for it; those of `grants`."""

    __slots__ = ("_grants",)

    def __init__(
        self, asked: AskedPaths, snapshots: SnapshotStore, sources: Callable[[], SourceFetcher],
        make_sandbox: SandboxFactory, facts: Facts, clock: Clock, grants: Grants,
    ) -> None:  # fmt: skip
        nothing = cast("RunMounts", None)  # _run, which alone asks it, is our own
        super().__init__(asked.materializer, asked, snapshots, sources, make_sandbox, facts, clock, nothing)
        self._grants = grants

    async def _run(self, task: Task, op: Run) -> Outcome:
        base = await self._materialize(task, task.inputs[0], "run")
        await self._ready_sandbox()
        command = op.argv[-1]
        _, _, seconds, fails = command.replace("seconds=", "").replace("fails=", "").split()

        async def run(snapshot: Snapshot) -> int:
            output = OutputRecorder(self.facts, task.vertex.digest, self.clock.monotonic)
            redactor = Redactor(self._grants.secrets.values(), output.write)
            try:
                redactor.write(1, f"{command}\n".encode())
                for mount in op.mounts:
                    redactor.write(2, self._grants.secrets[mount.id][:5])
                    redactor.write(2, self._grants.secrets[mount.id][5:] + b" is what nobody may know\n")
                await asyncio.sleep(float(seconds))
                path, data = written_by_run(command, _tree(base.lowers), task.execution)
                DiskPath(snapshot.root / path).write_bytes(data)
            finally:
                redactor.close()
                output.close()
            if fails == "True":
                raise StepFailed(command, 7)
            return 0

        return await self._step(task, base, run)

    async def _copy(self, task: Task, op: Copy) -> Outcome:
        under = task.inputs[0]
        content: list[Digest] = []

        def write(lowers: Sequence[Path] | None) -> int:
            writer = self.snapshots.compose(task.execution)
            try:
                if lowers is None:
                    data = op.files[0].data.encode()
                else:
                    data, selection = self._selected(op, lowers)
                    content.append(self.materializer.blobs.put(selection.listing()))
                writer.file(op.dest.strip("/").encode(), PLAIN, len(data), [data])
                return writer.commit()
            finally:
                writer.discard()

        async with AsyncExitStack() as stack:
            base, lowers = await both(
                self._materialize(task, under, "copy"), self._asked(stack, task, op, task.inputs[1:])
            )
            size = await self._compose(task, lambda: write(lowers))
        made = await self._finish(task, base, size)
        return changed(made, content=content[0]) if content else made

    async def _mkdir(self, task: Task, op: Mkdir) -> Outcome:
        base: Local = await self._materialize(task, task.inputs[0], "run")

        def write() -> int:
            writer = self.snapshots.compose(task.execution)
            try:
                writer.directory(op.path.strip("/").encode(), DIRECTORY)
                return writer.commit()
            finally:
                writer.discard()

        return await self._finish(task, base, await self._compose(task, write))

    def _selection(self, op: Copy, lowers: Sequence[Path]) -> Selection:
        return self._selected(op, lowers)[1]

    def _selected(self, op: Copy, lowers: Sequence[Path]) -> tuple[bytes, Selection]:
        """The one file that `op` takes."""
        path = op.sources[0].strip("/")
        data = _tree(lowers).get(path)
        if data is None:
            raise InputError(f"{path} is not there")
        entry = Entry(path, path, "file", 0o644, len(data), sha256(data))
        return data, Selection((entry,), (), 1, len(data))


def _tree(lowers: Sequence[Path]) -> Tree:
    return {path: data for path, data in merged_content(lowers).items() if path not in TOC}


async def no_sandbox() -> tuple[Sandbox, RuntimeChosen]:
    """What LocalExecutor.make_sandbox makes here: commands are data, so nothing runs them."""
    return None, RuntimeChosen(runtime="scripted", version="0", rejected={})  # type: ignore[return-value]
