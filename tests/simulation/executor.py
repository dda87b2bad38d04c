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

from engine.errors import InputError, StepFailed
from engine.events import RuntimeChosen
from engine.executor import Outcome, Task
from engine.graph import Copy, Mkdir, Run
from engine.ops.local import LocalExecutor
from engine.ops.output import OutputRecorder
from engine.ops.sandbox import Sandbox
from engine.ops.selection import Entry, Selection
from engine.record import changed
from engine.refs.ref import Local
from engine.together import both
from storage.digest import Digest, sha256
from storage.interfaces.layers import Look, Snapshot
from storage.interfaces.parts import Seen
from tests.simulation.model import Tree, written_by_run

PLAIN = Look(0o644, 0, 0, 0)
DIRECTORY = Look(0o755, 0, 0, 0)
TreeOf = Callable[[Sequence[Path]], Tree]
"""All files of some lowers, bottom first."""


class ScriptedExecutor(LocalExecutor):
    """`RUN step <number> seconds=<s> fails=<bool>`: see model.written_by_run."""

    __slots__ = ("put", "tree_of")
    tree_of: TreeOf
    put: Callable[[Snapshot, str, bytes], None]
    """Has a file appear in a snapshot that is being written."""

    async def _run(self, task: Task, op: Run) -> Outcome:
        base = await self._materialize(task, task.inputs[0], "run")
        await self._ready_sandbox()
        command = op.argv[-1]
        _, _, seconds, fails = command.replace("seconds=", "").replace("fails=", "").split()

        async def run(snapshot: Snapshot) -> int:
            output = OutputRecorder(self.facts, task.vertex.digest, self.clock.monotonic)
            try:
                output.write(1, f"{command}\n".encode())
                await asyncio.sleep(float(seconds))
                path, data = written_by_run(command, self.tree_of(base.lowers), task.execution)
                self.put(snapshot, path, data)
            finally:
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
        data = self.tree_of(lowers).get(path)
        if data is None:
            raise InputError(f"{path} is not there")
        entry = Entry(path, path, "file", 0o644, len(data), sha256(data))
        return data, Selection((entry,), (), 1, len(data))


async def no_sandbox() -> tuple[Sandbox, RuntimeChosen]:
    """What LocalExecutor.make_sandbox makes here: commands are data, so nothing runs them."""
    return None, RuntimeChosen(runtime="scripted", version="0", rejected={})  # type: ignore[return-value]


class TreeLayer:
    """A LayerTree over the files of one layer."""

    def __init__(self, files: Tree) -> None:
        self._files = {path.rstrip("/"): data for path, data in files.items()}
        self._directories = {path.rstrip("/") for path in files if path.endswith("/")}
        self._directories |= {path[:at] for path in files for at in range(len(path)) if path[at] == "/"}

    def look(self, path: bytes) -> Seen:
        """See LayerTree."""
        name = path.decode()
        if not name or name in self._directories:
            return Seen("directory", ends=False)
        if name in self._files:
            return Seen("other", ends=True)
        return Seen("missing", ends=any(name.startswith(f"{file}/") for file in self._files))

    def names(self, path: bytes) -> set[bytes]:
        """See LayerTree."""
        prefix = f"{path.decode()}/" if path else ""
        return {file[len(prefix) :].split("/")[0].encode() for file in self._files if file.startswith(prefix)}


