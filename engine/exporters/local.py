"""A local directory (`type=local`): the one export that needs every file, so it materializes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.errors import DiskError
from engine.events import Exported, ExportStarted
from engine.graph import Copy
from engine.ledger import Facts
from engine.ops.copy import copy_layer
from engine.ops.select import select
from engine.refs.materializer import Clock, Materializer
from engine.refs.ref import Ref
from engine.together import in_thread
from storage.interfaces import LayerWriter, SnapshotStore


@dataclass(slots=True)
class LocalExporter:
    """Copies the files of a ref into a directory, over what is there. `writer` writes into an existing directory."""

    materializer: Materializer
    snapshots: SnapshotStore
    facts: Facts
    clock: Clock
    writer: Callable[[Path], LayerWriter]

    async def export(self, ref: Ref, dest: str) -> None:
        """Write all files of `ref` below `dest`. Raises DiskError, MaterializationError."""
        started = await self.facts.record(ExportStarted(kind="local", target=dest, digest=""))
        needed_by = f"the export to {dest}"
        local = await self.materializer.materialize(ref, vertex=None, reason="export", needed_by=needed_by)
        everything = Copy(sources=(".",), dest="/", from_context=False)

        def copy() -> None:
            target = Path(dest)
            target.mkdir(parents=True, exist_ok=True)
            with self.snapshots.view(local.lowers) as tree:
                selection = select(everything, tree, hash_files=False)
                begin = partial(self.writer, target)
                copy_layer(everything, selection, tree, target, begin, now_ns=self.clock.now())

        try:
            await in_thread(copy)
        except OSError as error:
            raise DiskError.of(error, f"exporting to {dest}") from error
        await self.facts.record(Exported(kind="local", target=dest, digest="", layers=()), cause=started)
