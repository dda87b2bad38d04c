"""Layers that come as files, taken into the root, and that in the log."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.aside import shown_step
from engine.clock import Clock
from engine.errors import DiskError, InputError, VerificationError
from engine.events import LayerStored
from engine.graph import ImageLayer
from engine.images.definition import Given
from engine.ledger import Facts
from engine.refs.ref import of_layer
from engine.together import COLLECT, locked
from storage.interfaces.layers import LayerIntake, StagedLayer
from storage.interfaces.locks import Locks
from storage.threads import in_thread

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN = "-"
_LOOK = 0.1
"""Seconds between two looks at whether a pipe that says nothing is still waited for."""


@dataclass(frozen=True, slots=True)
class LayerFiles:
    """Implements Take, by its method `take`."""

    intake: LayerIntake
    locks: Locks
    facts: Facts
    clock: Clock

    async def take(self, name: str) -> Given:
        """Store the layer in file `name`, `-` for standard input, durably. Raises InputError, DiskError."""
        step, shown = f"[internal] store layer {name}", f"store:{name}"
        async with shown_step(self.facts, step, shown) as outputs:
            given = await self._store(name, shown)
            outputs.append(of_layer(given.layer, 0).id)
        return given

    async def _store(self, name: str, shown: str) -> Given:
        """The layer, durable, and that in the log: nothing is removed between the two."""
        held: list[StagedLayer] = []
        try:
            stopped = threading.Event()
            await in_thread(lambda: held.append(self._read(name, stopped)), stopped.set)
            async with locked(self.locks, COLLECT, shared=True):
                stored = await in_thread(held[0].commit)
                layer = ImageLayer(stored.diff_id, stored.blob)
                ref = of_layer(layer, 0).id
                await self.facts.record(LayerStored(ref=ref, name=name, layer=layer.to_json()), vertex=shown)
        finally:
            for staged in held:
                staged.abort()
        return Given(name, layer, stored.newest)

    def _read(self, name: str, stopped: threading.Event) -> StagedLayer:
        now = self.clock.now() // 10**9
        where = "standard input" if name == STDIN else name
        try:
            if name == STDIN and sys.stdin.isatty():
                raise InputError("standard input is a terminal", hint="pipe the layer into it, or name a file")
            try:
                file = _opened(name)
            except OSError as error:
                raise InputError(f"the layer cannot be read: {error.strerror}", where=where) from error
            with file:
                return self.intake.read(io.BufferedReader(_Stoppable(file, stopped)), now)
        except VerificationError as error:
            raise InputError(error.what, where=where, hint=error.hint) from error
        except DiskError as error:
            error.where = error.where or where
            raise


def _opened(name: str) -> io.FileIO:
    """At once, also where it is a pipe that nobody writes to yet. Raises OSError."""
    if name == STDIN:
        return io.FileIO(sys.stdin.fileno(), closefd=False)
    return io.FileIO(name, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


class _Stoppable(io.RawIOBase):
    """`file`, until `stopped`: whoever writes to a pipe may say nothing for ever."""

    def __init__(self, file: io.FileIO, stopped: threading.Event) -> None:
        super().__init__()
        self._file = file
        self._stopped = stopped
        self._said = select.poll()
        self._said.register(file, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._stopped.is_set():
            if self._said.poll(_LOOK * 1000) and (read := self._file.readinto(buffer)) is not None:
                return read
        raise InterruptedError("nobody waits for the layer any more")
