"""Why each step of a build ran or did not: where a hit came from, and what a miss differs in from an earlier build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from projections.asked import Asked, Blobs, Build, Import, Loss, Step, read_build
from projections.changes import Change, Hides, is_content, pair_steps, step_changes
from projections.history import BuildRecord, History
from projections.nearest import nearest
from projections.origin import Origin, origin_of
from projections.records import Records, Tombstone, read_records
from projections.taint import Taint, taint_of
from storage.errors import InputError
from storage.interfaces import EventLog

Json = dict[str, Any]

NEVER_BUILT, CHANGED, SCHEMA, NO_CACHE = "never-built", "component-changed", "key-schema-changed", "no-cache"
EVICTED, LOST, UNREACHABLE, IMPORTER = "evicted", "bytes-lost", "provider-unreachable", "importer-failed"
REASONS = frozenset({NEVER_BUILT, CHANGED, SCHEMA, NO_CACHE, EVICTED, LOST, UNREACHABLE, IMPORTER})
"""Of a miss: the closed list."""
_AWAY = frozenset({"auth", "transport"})
"""Kinds of a loss after which nobody knows whether the bytes are still there."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Why a recorded result could not be used: `name` (a blob or a snapshot) was let go at `time` (UTC ns) by `policy`
    and `by` whom (`providers`: who had them then), or `provider` ("" for this disk) does not give it (`error`).
    `revoked`: found out after the hit."""

    name: str
    provider: str = ""
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
    (a hit by content) a hit though one was."""

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

    def to_json(self) -> Json:
        """Plain data; the step by its number, name, vertex and lines."""
        step, origin = self.step, self.origin
        return {
            "number": step.number, "name": step.name, "vertex": step.vertex, "lines": list(step.lines),
            "outcome": self.outcome, "state": self.state, "reason": self.reason or None, "detail": self.detail,
            "follows": self.follows, "needed": self.needed, "origin_build": origin.build or None if origin else None,
            "changes": [change.to_json() for change in self.changes],
            "gone": asdict(self.gone) if self.gone else None,
            "origin": origin.to_json() if origin else None,
            "taint": [item.to_json() for item in self.taint],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Why:
    """One build, compared with `against` (None: there is none); `verdicts` of the steps that the cache was asked for,
    in the graph's order."""

    build: Build
    against: Build | None
    verdicts: tuple[Verdict, ...]

    @property
    def causes(self) -> list[Verdict]:
        """Misses that follow from no other one, the first one first."""
        return [item for item in self.verdicts if item.outcome == "miss" and item.needed and not item.follows]

    @property
    def followed(self) -> list[Verdict]:
        """Misses that are there because of another one."""
        return [item for item in self.verdicts if item.outcome == "miss" and item.follows]

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
            "imports": [asdict(item) for item in self.build.imports],
            "steps": [item.to_json() for item in self.verdicts],
        }


def explain(
    log: EventLog, blobs: Blobs, history: History, record: BuildRecord, against: str | None, hides: Hides
) -> Why:
    """Explain `record`, compared with build `against` or the nearest earlier one of the same definition.
    Raises InputError (no such build), LogError, VerificationError."""
    build = read_build(log, blobs, record)
    if against is None:
        old = nearest(log, blobs, history, build)
    else:
        old = read_build(log, blobs, history.get(against))
        if old.id == record.id:
            raise InputError(f"build {record.id} cannot be compared with itself", hint="give --against another build")
    builds = {item.id: item for item in history.list()}
    explainer = _Explainer(blobs, build, old, hides, read_records(log, record.last_seq), builds)
    return Why(build, old, tuple(explainer.verdicts()))


@dataclass(slots=True)
class _Explainer:
    blobs: Blobs
    build: Build
    old: Build | None
    hides: Hides
    records: Records
    builds: Mapping[str, BuildRecord]
    missed: set[str] = field(default_factory=set)
    """Steps that were made anew, or would be."""
    told: set[Change] = field(default_factory=set)
    """Changes that a step before is explained with."""

    def verdicts(self) -> list[Verdict]:
        pairs = pair_steps(self.old, self.build) if self.old else {}
        needed = self._needed()
        found = []
        for vertex, step in self.build.steps.items():
            asked = self.build.answer(vertex)
            if asked is not None:
                verdict = self._verdict(step, asked, pairs.get(vertex), needed=vertex in needed)
                if verdict.outcome == "miss" and verdict.needed:
                    self.missed.add(vertex)
                found.append(replace(verdict, taint=self._taint(verdict, asked)))
        return found

    def _needed(self) -> set[str]:
        """What ran or stood in for something that did; of a build that only told what would run: what would."""
        build = self.build
        if not build.dry:
            over = build.record.status == "completed"
            return {vertex for vertex in build.steps if build.states.get(vertex) or not over}
        needed: set[str] = set()
        left = list(build.targets)
        while left:
            vertex = left.pop()
            answer = build.answer(vertex)
            if vertex in build.steps and vertex not in needed:
                needed.add(vertex)
                left += () if answer and answer.outcome == "hit" else build.steps[vertex].inputs
        return needed

    def _verdict(self, step: Step, asked: Asked, other: str | None, *, needed: bool) -> Verdict:
        state = self.build.states.get(step.vertex, "")
        revoked = self.build.revoked.get(step.vertex)
        if revoked is not None and asked.seq < revoked.seq:
            return self._revoked(step, state, revoked)
        if asked.outcome == "hit":
            origin = origin_of(asked, self.records, self.builds)
            return Verdict(step, "hit", state, origin=origin, follows=asked.by == "content", needed=needed)
        if not needed:
            detail = "not needed: what stands on it was cached"
            return Verdict(step, "miss", state, asked.reason, detail, needed=False)
        verdict = replace(self._miss(step, asked, other), state=state)
        own = {change for change in verdict.changes if change.component != "input"}
        if not verdict.follows and own and own <= self.told and self._stands_on_miss(step):
            verdict = replace(verdict, follows=True)
        self.told |= own
        return verdict

    def _stands_on_miss(self, step: Step) -> bool:
        return bool(self.missed.intersection(step.inputs))

    def _revoked(self, step: Step, state: str, loss: Loss) -> Verdict:
        told = [item for item in self.build.losses if item.name == loss.name and item.seq < loss.seq]
        last = told[-1] if told else loss
        reason = UNREACHABLE if told and all(item.kind in _AWAY for item in told) else LOST
        gone = Gone(loss.name, loss.provider or last.provider, error=loss.error or last.error, revoked=True)
        return Verdict(step, "miss", state, reason, gone=gone, follows=self._stands_on_miss(step))

    def _miss(self, step: Step, asked: Asked, other: str | None) -> Verdict:
        """Why a needed step was not in the cache."""
        stands_on_miss = self._stands_on_miss(step)
        miss = Verdict(step, "miss", "", asked.reason, follows=stands_on_miss)
        if asked.reason == NO_CACHE:
            return replace(miss, detail="the build was told not to ask", follows=bool(self.missed))
        if asked.reason in {EVICTED, LOST, UNREACHABLE}:
            return replace(miss, gone=self._gone(asked))
        old = self.old
        if old is None:
            first = replace(miss, follows=bool(self.missed))
            return self._unexplained(first, "no earlier build of this definition")
        if other is None:
            detail = f"a new step: build {old.id} has none in its place"
            return replace(miss, reason=NEVER_BUILT, detail=detail, follows=False)
        changes = step_changes(
            self.blobs, old, other, self.build, step.vertex, self.hides, self._known_content(old, other)
        )
        if changes is None:
            why = "did not come to it" if other not in old.asked else "keeps its key no more"
            return self._unexplained(miss, f"build {old.id} {why}")
        if not changes:
            ended = old.states.get(other, "")
            but = f", but the step {_ENDED[ended]}" if ended in _ENDED else ""
            return self._unexplained(miss, f"build {old.id} asked for the same{but}")
        own = [change for change in changes if change.component != "input"]
        reason = SCHEMA if any(change.component == "schema" for change in own) else CHANGED
        follows = stands_on_miss and not any(not self._given_by_step(step, change) for change in own)
        return replace(miss, reason=reason, changes=tuple(changes), follows=follows)

    def _given_by_step(self, step: Step, change: Change) -> bool:
        """Is it about files that a step before made, not about files of a context?"""
        return is_content(change) and not any(item in self.build.contexts for item in step.inputs)

    def _unexplained(self, miss: Verdict, detail: str) -> Verdict:
        """Nothing here tells why: maybe a cache that could not be read would have had it."""
        failed = [item for item in self.build.imports if item.error]
        if failed:
            return replace(miss, reason=IMPORTER, detail="never built here; " + "; ".join(map(unreadable, failed)))
        read = [item.source for item in self.build.imports]
        has_none = f"; not in cache {', '.join(read)} either" if read else ""
        return replace(miss, reason=NEVER_BUILT, detail=detail + has_none)

    def _known_content(self, old: Build, vertex: str) -> Asked | None:
        """The key by content that is recorded for the result which step `vertex` of `old` had."""
        asked = old.asked.get(vertex)
        if asked is None:
            return None
        after = self.records.latest(asked.key, old.record.last_seq or self.build.record.first_seq)
        if after is None or not after.resolved:
            return None
        return replace(asked, key=after.resolved, components=after.resolved, by="content")

    def _gone(self, asked: Asked) -> Gone | None:
        """What of the recorded result is not to be had."""
        record = self.records.latest(asked.key, asked.seq)
        if record is None:
            return None
        stone = self.records.let_go(record, asked.seq)
        if asked.reason == EVICTED:
            return _let_go(stone) if stone else None
        names = set(self.records.names(record))
        lost = [item for item in self.build.losses if item.name in names or (item.ref == record.ref and item.name)]
        wanted = [item for item in lost if (item.kind in _AWAY) == (asked.reason == UNREACHABLE)] or lost
        if wanted:
            return Gone(wanted[0].name, wanted[0].provider, error=wanted[0].error)
        here = [str(layer["snapshot"]) for layer in record.layers if layer.get("snapshot")]
        return Gone(here[0]) if len(here) == 1 else None

    def _taint(self, verdict: Verdict, asked: Asked) -> tuple[Taint, ...]:
        """Of a hit: what was lent when its result was made."""
        made: tuple[str, str] | None = (self.build.id, verdict.step.vertex)
        if verdict.outcome == "hit":
            record = self.records.of_hit(asked.key, asked.seq)
            made = self.records.execution(record) if record else None
        elif not verdict.state:
            made = None  # it has not run
        return taint_of(verdict.step, self.records.lent.get(made, []) if made else None)


_ENDED: Mapping[str, str] = {
    "failed": "failed", "cancelled": "was cancelled", "interrupted": "was interrupted", "": "did not run",
}  # fmt: skip


def _let_go(stone: Tombstone) -> Gone:
    return Gone(
        stone.name, providers=stone.providers, time=stone.time, policy=stone.policy, by=stone.by, bytes=stone.bytes
    )


def unreadable(item: Import) -> str:
    """What a person reads of a cache that could not be read."""
    return f"cache {item.source} could not be read: {item.error}"

