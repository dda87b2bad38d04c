"""The points of a run at which faults could strike, counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from tests.simulation.chance import Faults, is_dead
from tests.simulation.report import Offer

LOST_POWER = "power loss"
"""The kind of fault that takes all processes of the machine along, and what was not durable."""
INTERRUPT = "interrupt"
"""The kind that sends a signal to the process, as Ctrl-C does."""
HARMLESS = frozenset({
    INTERRUPT, "stalled", "late", "short", "slow", "503 once", "resumed", "again", "no ranges", "refused"
})  # fmt: skip
"""Kinds that cost time, and are no reason to fail."""
Strike = tuple[int, int]
"""A fault: the number of a point, and which kind of those that it offers."""
Part = Callable[[int, str, tuple[str, ...]], tuple[Strike, ...]]
"""Told of each point before it is passed: what is to strike from here on, beside what is planned."""


class Points(Faults):
    """Faults that remember where they could have struck, and what ran in which order."""

    __slots__ = ("_part", "_traced", "crashed", "interrupted", "offered", "over", "power_lost")

    def __init__(self, planned: Mapping[int, int], part: Part | None = None) -> None:
        super().__init__(planned)
        self._part = part
        self._traced = hashlib.sha256()
        self.offered: list[Offer] = []
        self.over = False
        """Nothing strikes any more, even if it is planned?"""
        self.crashed: Callable[[], None] = lambda: None
        self.interrupted: Callable[[], None] = lambda: None
        self.power_lost = False
        """Is the power to be lost as soon as the process that crashes now is dead?"""

    @property
    def trace(self) -> str:
        """The same for the same interleaving."""
        return self._traced.hexdigest()

    @property
    def harm(self) -> int:
        """How many faults struck that may be a reason to fail."""
        return sum(1 for *_, kind in self.struck if kind not in HARMLESS)

    def at(self, point: str, *kinds: str) -> str:
        """See Faults.at. Where a process may crash, its machine may lose its power, and it may be interrupted."""
        if "crash" in kinds:
            kinds = (*kinds, LOST_POWER, INTERRUPT)
        if not self.over and not is_dead():
            self.offered.append((point, kinds))
            if self._part is not None and (strikes := self._part(self.points + 1, point, kinds)):
                self.planned = dict(strikes)
        if self.over:
            self.planned = {}
        kind = super().at(point, *kinds)
        self._traced.update(f"{point}\n".encode())
        if kind == LOST_POWER:
            self.power_lost, kind = True, "crash"
        if kind == INTERRUPT:
            self.interrupted()
            kind = ""
        if kind.startswith("crash"):
            self.crashed()
        return kind
