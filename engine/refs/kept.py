"""What this root keeps of layers, and finding out what of that was damaged.

I8: what is damaged is found before it is used (once a process and layer, as far as that is cheap: see
storage/layers/seal.py and storage/layers/erofs/check.py), said in the log, and removed: from then on it is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.events import LayerLaidOut, LocalLost
from engine.ledger import Facts
from engine.refs.ref import Layer
from engine.together import locked
from storage.digest import Digest
from storage.errors import VerificationError
from storage.interfaces.images import Provider
from storage.interfaces.layers import Checked, CheckedLayers, CheckedSnapshots
from storage.interfaces.locks import Locks
from storage.threads import in_thread


class Known(Protocol):
    """What the log says of layers: a projection answers."""

    def providers(self, digest: Digest) -> Sequence[Provider]:
        """Everyone who is known to have the blob, the likeliest first."""
        ...

    def let_go(self, name: str) -> bool:
        """Were the bytes of `name` (a digest, a diff ID, the id of a snapshot) removed here on purpose?"""
        ...

    def unexplained(self, diff_ids: Sequence[str]) -> Sequence[str]:
        """Those of `diff_ids`, which are mountable here, of which the log as it is now does not tell how they came.
        Blocking."""
        ...


class NothingKnown:
    """Implements Known."""

    def providers(self, _digest: Digest) -> Sequence[Provider]:
        """See Known.providers."""
        return ()

    def let_go(self, _name: str) -> bool:
        """See Known.let_go."""
        return False

    def unexplained(self, _diff_ids: Sequence[str]) -> Sequence[str]:
        """See Known.unexplained: there is no log that could tell."""
        return ()


@dataclass(slots=True)
class Kept:
    """Layers that are mountable here: an image's by diff ID, a step's by the snapshot that it made."""

    layers: CheckedLayers
    snapshots: CheckedSnapshots
    locks: Locks
    facts: Facts
    known: Known = field(default_factory=NothingKnown)
    _checked: set[tuple[str, str | None]] = field(default_factory=set)
    _lost: set[str] = field(default_factory=set)

    def mountable(self, layer: Layer) -> bool:
        """Is `layer` mountable here, damaged or not?"""
        if layer.snapshot and self.snapshots.has(layer.snapshot):
            return True
        return layer.diff_id is not None and self.layers.has(layer.diff_id)

    def lower(self, layer: Layer) -> Path:
        """Where `layer`, which is mountable here, serves as overlay lower. Blocking. Raises DiskError."""
        if layer.snapshot and self.snapshots.has(layer.snapshot):
            return self.snapshots.lower(layer.snapshot)
        assert layer.diff_id is not None  # mountable() said so
        return self.layers.lower(layer.diff_id)

    async def check(self, layers: Sequence[Layer], vertex: str | None = None) -> None:
        """Find out which of `layers`, that `vertex` wants, are damaged. Those are not here any more then; and the log
        tells of all that are. Raises DiskError."""
        unknown = [layer for layer in layers if (layer.snapshot, layer.diff_id) not in self._checked]
        if not unknown:
            return
        places = [(layer, *place) for layer in unknown for place in self._places(layer)]
        problems = await in_thread(lambda: [store.check(name) for _, _, store, name in places])
        for (layer, kind, _, name), problem in zip(places, problems, strict=True):
            if problem:
                await self.lose(layer, kind, name, vertex=vertex)
        for layer in await self._unexplained(unknown):
            async with locked(self.locks, f"layer-{layer.name}"):  # whoever brings it says so before he lets go of it
                await self.explain(layer, vertex)
        self._checked.update((layer.snapshot, layer.diff_id) for layer in unknown)

    async def explain(self, layer: Layer, vertex: str | None = None) -> None:
        """Have the log say that `layer`, whose lock is held, is mountable here, if it does not yet: as it is not known
        who laid it out, all of it is looked at first, and it is not here any more if it is damaged. Raises DiskError,
        LogError."""
        diff_id = layer.diff_id
        if diff_id is None or not await self._unexplained([layer]):
            return
        try:
            verified = await in_thread(lambda: self.layers.verify(diff_id))
        except VerificationError as error:
            await in_thread(lambda: self.layers.discard(str(diff_id)))
            self._tell("layer", str(diff_id), "corrupt", error.what, vertex)
            return
        if verified:
            digest = str(layer.blob.digest) if layer.blob else ""
            found = LayerLaidOut(diff_id=str(diff_id), digest=digest, how="found", verified=(verified,))
            await self.facts.record(found, vertex=vertex)

    async def _unexplained(self, layers: Sequence[Layer]) -> list[Layer]:
        here = {str(layer.diff_id): layer for layer in layers if layer.diff_id and self.layers.has(layer.diff_id)}
        if not here:
            return []
        return [here[diff_id] for diff_id in await in_thread(lambda: self.known.unexplained([*here]))]

    async def usable(self, layer: Layer, vertex: str | None = None) -> bool:
        """Is `layer` mountable here, and not known to be damaged? Raises DiskError."""
        await self.check([layer], vertex)
        return self.mountable(layer)

    async def lose(
        self, layer: Layer, kind: str, name: str, problem: str = "", *, vertex: str | None = None
    ) -> None:
        """Remove what is kept of `layer` as `name`, a snapshot's or a layer's, if it is damaged: `problem` says so
        where a check does not find it. Raises DiskError."""
        store: Checked = self.snapshots if kind == "snapshot" else self.layers
        async with locked(self.locks, f"layer-{layer.name}"):
            problem = problem or await in_thread(lambda: store.check(name))
            if not problem:
                return  # somebody made it anew
            await in_thread(lambda: store.discard(name))
        self._tell(kind, name, "corrupt", problem, vertex)

    def miss(self, layer: Layer) -> None:
        """Say that the snapshot of `layer`, which nobody else has, is not here; unless the log says why. What is left
        of it goes. Raises DiskError."""
        name = layer.snapshot
        if not name or layer.providers or name in self._lost or self.known.let_go(name):
            return
        problem = "" if self.snapshots.has(name) else self.snapshots.check(name)
        if problem:
            self.snapshots.discard(name)
        self._tell("snapshot", name, "vanished", problem)

    def _places(self, layer: Layer) -> list[tuple[str, Checked, str]]:
        """Where `layer` may be: kind, store, and its name there."""
        places: list[tuple[str, Checked, str]] = []
        if layer.snapshot:
            places.append(("snapshot", self.snapshots, layer.snapshot))
        if layer.diff_id:
            places.append(("layer", self.layers, str(layer.diff_id)))
        return places

    def _tell(self, kind: str, name: str, problem: str, detail: str, vertex: str | None = None) -> None:
        self._lost.add(name)
        self.facts.post(LocalLost(kind=kind, name=name, problem=problem, detail=detail), vertex=vertex)
