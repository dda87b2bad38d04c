"""The points of a run at which faults could strike, counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from tests.simulation.chance import Faults

LOST_POWER = "power loss"
"""The kind of fault that takes all processes of the machine along, and what was not durable."""


class Points(Faults):
    """Faults that remember where they could have struck, and what ran in which order."""

    __slots__ = ("crashed", "offered", "power_lost", "traced")

    def __init__(self, planned: Mapping[int, int]) -> None:
        super().__init__(planned)
        self.offered: list[tuple[str, tuple[str, ...]]] = []
        self.traced = hashlib.sha256()
        self.crashed: Callable[[], None] = lambda: None
        self.power_lost = False
        """Is the power to be lost as soon as the process that crashes now is dead?"""

    def at(self, point: str, *kinds: str) -> str:
        """See Faults.at. Where a process may crash, its machine may lose its power."""
        if "crash" in kinds:
            kinds = (*kinds, LOST_POWER)
        kind = super().at(point, *kinds)
        self.offered.append((point, kinds))
        self.traced.update(f"{point}\n".encode())
        if kind == LOST_POWER:
            self.power_lost, kind = True, "crash"
        if kind.startswith("crash"):
            self.crashed()
        return kind
