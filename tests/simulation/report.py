"""What came of a simulated run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from storage.interfaces.log import Event

Offer = tuple[str, tuple[str, ...]]
"""A point: its name, and the kinds of fault that may strike there."""


@dataclass(frozen=True, slots=True)
class Report:
    """`offered`: the points at which faults could strike, in order; `points`: how many were passed; `struck`: number,
    name and kind of each fault; `trace`: the same for the same interleaving; `crashes`: processes that died, by the
    last event before; `story`: the logs, for people, when something went wrong or somebody asked."""

    problems: tuple[str, ...]
    points: int = 0
    offered: tuple[Offer, ...] = ()
    struck: tuple[tuple[int, str, str], ...] = ()
    trace: str = ""
    crashes: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    story: tuple[str, ...] = ()

    @classmethod
    def of_failure(cls, what: str) -> Report:
        """Of a run that was not brought to its end, which is a bug of the simulation."""
        return cls(problems=(f"a bug of the simulation: {what}",))


def story(number: int, events: Sequence[Event]) -> Iterator[str]:
    """The log of machine `number`, a line an event."""
    for event in events:
        shown = {key: value for key, value in event.data.items() if value not in ("", (), [], None)}
        vertex = (event.vertex or "")[7:15]
        yield f"{number} {event.time} {event.seq} {event.build} {event.type} {vertex} {str(shown)[:300]}"
