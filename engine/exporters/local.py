"""A local directory (`type=local`): the one export that needs every file, so it materializes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.clock import Clock
from engine.errors import DiskError, InputError
from engine.events import Exported, ExportStarted
from engine.graph import Copy
from engine.ledger import Facts
from engine.ops.copy import copy_layer
from engine.ops.select import select
from engine.ops.selection import printable
from engine.refs.materializer import Materializer
from engine.refs.ref import Local, Ref
from storage.interfaces.layers import LayerWriter, SnapshotStore
from storage.threads import in_thread


@dataclass(slots=True)
class LocalExporter:
    """Copies the files of a ref into a directory, over what is there. `writer` writes into an existing directory, with
    no time later than so many ns since the epoch, if any; `watched` gives, for a directory, what returns once all that
    was written since on its file system is durable; both raise OSError."""

    materializer: Materializer
    snapshots: SnapshotStore
    facts: Facts
    clock: Clock
    writer: Callable[[Path, int | None], LayerWriter]
    watched: Callable[[Path], AbstractContextManager[Callable[[], None]]]

    async def export(self, trees: Sequence[tuple[str, Ref]], dest: str, epoch: int | None = None) -> None:
        """Write all files of `trees`, each below its directory ("" for none), to directory `dest`. `epoch`: no file is
        later (SOURCE_DATE_EPOCH, in seconds). Raises DiskError, MaterializationError, and InputError for a path that
        two of the trees have, or that something else is at."""
        started = await self.facts.record(ExportStarted(kind="local", target=dest, digest=""))
        needed_by = f"the export to {dest}"
        found = [
            (below, await self.materializer.materialize(ref, vertex=None, reason="export", needed_by=needed_by))
            for below, ref in trees
        ]
        taken: set[str] = set()
        try:
            await in_thread(partial(Path(dest).mkdir, parents=True, exist_ok=True))
            with self.watched(Path(dest)) as flush:
                for below, local in found:
                    await in_thread(partial(self._copy, local, Path(dest), below, epoch, taken))
                    if below:
                        taken.clear()
                await in_thread(flush)
        except OSError as error:
            raise DiskError.of(error, f"exporting to {dest}") from error
        await self.facts.record(Exported(kind="local", target=dest, digest="", layers=()), cause=started)

    def _copy(self, local: Local, dest: Path, below: str, epoch: int | None, taken: set[str]) -> None:
        everything = Copy(sources=(".",), dest="/", from_context=False)
        with self.snapshots.view(local.lowers) as tree, _entered(dest, below) as target:
            selection = select(everything, tree, hash_files=False)
            for entry in selection.entries:
                if entry.type != "dir":
                    if entry.path in taken:
                        raise several(entry.path)
                    taken.add(entry.path)
            begin = partial(self.writer, target, None if epoch is None else epoch * 10**9)
            copy_layer(everything, selection, tree, target, begin, now_ns=self.clock.now())


@contextmanager
def _entered(dest: Path, below: str) -> Iterator[Path]:
    """A name of directory `below` in `dest`, made where it is missing. What is at `dest` may be an image exported
    earlier: a link that it has in that place would lead elsewhere on this machine. Raises OSError, InputError."""
    if not below:
        yield dest
        return
    top = os.open(dest, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileExistsError):
            os.mkdir(below, dir_fd=top)
        try:
            fd = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except NotADirectoryError:
            hint = "remove it, or name another dest"
            raise InputError("this is not a directory, or a link to one", where=f"{dest}/{below}", hint=hint) from None
    finally:
        os.close(top)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def several(path: str) -> InputError:
    """What is said of a path that several platforms have, in an output that keeps them in one tree."""
    hint = "leave platform-split=false out: each gets a directory of its own"
    return InputError(f"{printable(path)!r} is there for several platforms", hint=hint)
