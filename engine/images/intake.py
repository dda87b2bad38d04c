"""Layers that come as files, taken into the root, and that in the log."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from engine.aside import shown_step
from engine.clock import Clock
from engine.errors import DiskError, InputError, VerificationError
from engine.events import LayerStored
from engine.graph import ImageLayer
from engine.images.definition import Given
from engine.ledger import Facts
from engine.refs.ref import of_layer
from engine.together import COLLECT, in_thread, locked
from storage.interfaces.layers import LayerIntake, StagedLayer
from storage.interfaces.locks import Locks

STDIN = "-"


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
            await in_thread(lambda: held.append(self._read(name)))
            async with locked(self.locks, COLLECT, shared=True):
                stored = await in_thread(held[0].commit)
                layer = ImageLayer(stored.diff_id, stored.blob)
                ref = of_layer(layer, 0).id
                await self.facts.record(LayerStored(ref=ref, name=name, layer=layer.to_json()), vertex=shown)
        finally:
            for staged in held:
                staged.abort()
        return Given(name, layer, stored.newest)

    def _read(self, name: str) -> StagedLayer:
        now = self.clock.now() // 10**9
        where = "standard input" if name == STDIN else name
        try:
            if name == STDIN:
                if sys.stdin.isatty():
                    raise InputError("standard input is a terminal", hint="pipe the layer into it, or name a file")
                return self.intake.read(sys.stdin.buffer, now)
            try:
                file = Path(name).open("rb")  # noqa: SIM115 - what is wrong with it is the user's to mend
            except OSError as error:
                raise InputError(f"the layer cannot be read: {error.strerror}", where=where) from error
            with file:
                return self.intake.read(file, now)
        except VerificationError as error:
            raise InputError(error.what, where=where, hint=error.hint) from error
        except DiskError as error:
            error.where = error.where or where
            raise
