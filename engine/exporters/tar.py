"""The files of a result as a tar (`type=tar`), one entry after the other: nothing of it lies on a disk here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import DiskError
from engine.events import Exported, ExportStarted
from engine.exporters.local import several
from engine.ledger import Facts
from engine.refs.materializer import Materializer
from engine.refs.ref import Ref
from storage.digest import Digest, Hasher
from storage.interfaces.layers import SnapshotStore
from storage.interfaces.packing import OutFile
from storage.threads import in_thread

END = bytes(1024)


@dataclass(slots=True)
class TarExporter:
    """Writes tars. `open_file` begins one, which gets its name only when it is complete; `write_tree(tree, below,
    write, epoch, taken)` is storage.tar.pack.write_tree."""

    materializer: Materializer
    snapshots: SnapshotStore
    facts: Facts
    open_file: Callable[[str], OutFile]
    write_tree: Callable[[Path, bytes, Callable[[bytes], Any], int | None, set[bytes]], None]

    async def export(self, trees: Sequence[tuple[str, Ref]], dest: str, epoch: int | None) -> Digest:
        """Write all files of `trees`, each below its directory ("" for none), to `dest`; returns the tar's digest.
        `epoch`: no file is later (SOURCE_DATE_EPOCH). Raises DiskError, MaterializationError, and InputError for a
        path that two of the trees have."""
        started = await self.facts.record(ExportStarted(kind="tar", target=dest, digest=""))
        needed_by = f"the export to {dest}"
        there = [
            (below, await self.materializer.materialize(ref, vertex=None, reason="export", needed_by=needed_by))
            for below, ref in trees
        ]
        hasher, taken = Hasher(), set[bytes]()

        def write() -> None:
            file = self.open_file(dest)

            def give(data: bytes) -> None:
                hasher.update(data)
                file.write(data)

            try:
                for below, local in there:
                    with self.snapshots.view(local.lowers) as tree:
                        self.write_tree(tree, below.encode(), give, epoch, taken)
                give(END)
                file.commit()
            finally:
                file.abort()

        try:
            await in_thread(write)
        except FileExistsError as error:
            raise several(str(error.filename)) from error
        except OSError as error:
            raise DiskError.of(error, f"exporting to {dest}") from error
        digest = hasher.digest()
        await self.facts.record(
            Exported(kind="tar", target=dest, digest=str(digest), layers=()), cause=started
        )
        return digest
