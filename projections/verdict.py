"""What is said of each step of a build: hit or miss, where from, why. Plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from projections.asked import Build, Step
from projections.changes import Change
from projections.origin import Origin
from projections.records import Records
from projections.taint import Taint

Json = dict[str, Any]

NEVER_BUILT, CHANGED, SCHEMA, NO_CACHE = "never-built", "component-changed", "key-schema-changed", "no-cache"
EVICTED, LOST, UNREACHABLE, IMPORTER = "evicted", "bytes-lost", "provider-unreachable", "importer-failed"
REASONS = frozenset({NEVER_BUILT, CHANGED, SCHEMA, NO_CACHE, EVICTED, LOST, UNREACHABLE, IMPORTER})
"""Of a miss: the closed list."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Why a recorded result could not be used: `name` (a blob or a snapshot) was let go at `time` (UTC ns) by `policy`
    and `by` whom (`providers`: who had them then), or `provider` ("" for this disk) does not give it (`error`).
    `kind` of the loss as in MaterializationFailed, vanished, or "" when nobody could be asked; `revoked`: found out
    after the hit."""

    name: str
    provider: str = ""
    kind: str = ""
    providers: str = ""
    error: str = ""
    time: int = 0
    policy: str = ""
    by: str = ""
    bytes: int = 0
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """One step. `outcome`: hit or miss; `state`: how it ended, "" when it was not needed; `reason` of a miss, from the
    closed list, and `detail` for people; `changes`: how its key differs from that of `against`, the first one the
    most telling; `gone`: what its recorded result lacks; `follows`: a miss only because a step before it was one, or
    (a hit by content) a hit though one was; `same_as`: the number of the step before that differs in the same."""

    step: Step
    outcome: str
    state: str
    reason: str = ""
    detail: str = ""
    changes: tuple[Change, ...] = ()
    follows: bool = False
    origin: Origin | None = None
    needed: bool = True
    gone: Gone | None = None
    taint: tuple[Taint, ...] = ()
    same_as: int | None = None

    def to_json(self) -> Json:
        """Plain data; the step by its number, name, vertex and lines."""
        step, origin = self.step, self.origin
        return {
            "number": step.number, "name": step.name, "vertex": step.vertex, "lines": list(step.lines),
            "outcome": self.outcome, "state": self.state, "reason": self.reason or None, "detail": self.detail,
            "follows": self.follows, "same_as": self.same_as, "needed": self.needed,
            "origin_build": origin.build or None if origin else None,
            "changes": [change.to_json() for change in self.changes],
            "gone": asdict(self.gone) if self.gone else None,
            "origin": origin.to_json() if origin else None,
            "taint": [item.to_json() for item in self.taint],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Why:
    """One build, compared with `against` (None: there is none); `verdicts` of the steps that the cache was asked for,
    in the graph's order; `records`: what the log says of the results by their keys."""

    build: Build
    against: Build | None
    verdicts: tuple[Verdict, ...]
    records: Records = field(default_factory=Records)

    @property
    def causes(self) -> list[Verdict]:
        """Misses that follow from no other one and differ in something new, the first one first."""
        own = [item for item in self.verdicts if item.outcome == "miss" and item.needed and not item.follows]
        return [item for item in own if item.same_as is None]

    @property
    def followed(self) -> list[Verdict]:
        """Misses that are there because of another one."""
        return [item for item in self.verdicts if item.outcome == "miss" and item.follows]

    @property
    def alike(self) -> list[Verdict]:
        """Misses that differ in the same as one before, and would have run without it."""
        return [item for item in self.verdicts if item.same_as is not None and not item.follows]

    def cause_of(self, follower: Verdict) -> Verdict | None:
        """The first cause that `follower` stands on; the first of all when the build as a whole is the cause."""
        below: set[str] = set()
        left = [follower.step.vertex]
        while left:
            vertex = left.pop()
            if vertex not in below and vertex in self.build.steps:
                below.add(vertex)
                left += self.build.steps[vertex].inputs
        causes = self.causes
        return next((item for item in causes if item.step.vertex in below), causes[0] if causes else None)

    def to_json(self) -> Json:
        """Plain data; `first`: number of the first step that differs."""
        causes = self.causes
        return {
            "build": self.build.id,
            "against": self.against.id if self.against else None,
            "first": causes[0].step.number if causes else None,
            "followed": len(self.followed),
            "alike": len(self.alike),
            "imports": [asdict(item) for item in self.build.imports],
            "steps": [item.to_json() for item in self.verdicts],
        }
