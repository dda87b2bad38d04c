"""Why each step of a build ran or did not: where a hit came from, and what a miss differs in from an earlier build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from projections.asked import Asked, Blobs, Build, Step, read_build
from projections.changes import Change, pair_steps, step_changes
from projections.fields import BAD_EVENT, malformed, mapping, objects, text, texts
from projections.history import BuildRecord, History
from projections.steps import provider_name
from storage.errors import InputError
from storage.interfaces import EventLog

Json = dict[str, Any]

NEVER_BUILT, CHANGED, SCHEMA = "never-built", "component-changed", "key-schema-changed"
"""Reasons of a miss; `no-cache` and `bytes-lost` are as the solver gave them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a hit: `digest` of its blob or the id of the snapshot; `provider` it can be read from or came from, ""
    for one made here by `build`; `verified` here when it came: `digest`, `diff_id`; empty when it never did."""

    digest: str
    provider: str
    verified: tuple[str, ...]
    build: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a hit's result came from; `started`: UTC ns, 0 when the build is not in this log."""

    build: str
    name: str
    started: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One step. `outcome`: hit or miss; `state`: how it ended, "" when it was not needed; `reason` of a miss, from the
    closed list, and `detail` for people; `changes`: how its key differs from that of `against`, the first one the
    most telling; `follows`: a miss only because a step before it was one."""

    step: Step
    outcome: str
    state: str
    reason: str = ""
    detail: str = ""
    changes: tuple[Change, ...] = ()
    follows: bool = False
    origin_build: str = ""
    needed: bool = True

    def to_json(self) -> Json:
        """Plain data; the step by its number, name, vertex and lines."""
        step = self.step
        return {
            "number": step.number, "name": step.name, "vertex": step.vertex, "lines": list(step.lines),
            "outcome": self.outcome, "state": self.state, "reason": self.reason or None, "detail": self.detail,
            "follows": self.follows, "needed": self.needed, "origin_build": self.origin_build or None,
            "changes": [change.to_json() for change in self.changes],
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
        return [item for item in self.verdicts if item.follows]

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
            "steps": [item.to_json() for item in self.verdicts],
        }


def explain(log: EventLog, blobs: Blobs, history: History, record: BuildRecord, against: str | None) -> Why:
    """Explain `record`, compared with build `against` or the nearest earlier one of the same definition.
    Raises InputError (no such build), LogError, VerificationError."""
    build = read_build(log, blobs, record)
    if against is None:
        old = _nearest(log, blobs, history, build)
    else:
        old = read_build(log, blobs, history.get(against))
        if old.id == record.id:
            raise InputError(f"build {record.id} cannot be compared with itself", hint="give --against another build")
    pairs = pair_steps(old, build) if old else {}
    verdicts: list[Verdict] = []
    missed: set[str] = set()
    told: set[Change] = set()
    for vertex, step in build.steps.items():
        asked = build.asked.get(vertex)
        if asked is None:
            continue
        state = build.states.get(vertex, "")
        if asked.outcome == "hit":
            verdicts.append(Verdict(step, "hit", state, origin_build=asked.origin_build))
            continue
        if not state and record.status == "completed":
            detail = "not needed: what stands on it was cached"
            verdicts.append(Verdict(step, "miss", state, asked.reason, detail, needed=False))
            continue
        verdict = _miss(blobs, build, step, asked, old, pairs.get(vertex), missed)
        own = {change for change in verdict.changes if change.component != "input"}
        if not verdict.follows and own and own <= told and missed.intersection(step.inputs):
            verdict = replace(verdict, follows=True)
        told |= own
        missed.add(vertex)
        verdicts.append(verdict)
    return Why(build, old, tuple(verdicts))


def _miss(
    blobs: Blobs, build: Build, step: Step, asked: Asked, old: Build | None, other: str | None, missed: set[str]
) -> Verdict:
    state = build.states.get(step.vertex, "")
    stands_on_miss = bool(missed.intersection(step.inputs))
    if asked.reason == "no-cache":
        return Verdict(step, "miss", state, asked.reason, "the build was told not to ask", follows=bool(missed))
    if asked.reason != NEVER_BUILT:
        details = {"bytes-lost": "its result is recorded, but its bytes are gone"}
        return Verdict(step, "miss", state, asked.reason, details.get(asked.reason, ""), follows=stands_on_miss)
    if old is None:
        detail = "no earlier build of this definition"
        return Verdict(step, "miss", state, NEVER_BUILT, detail, follows=bool(missed))
    if other is None:
        return Verdict(step, "miss", state, NEVER_BUILT, f"a new step: build {old.id} has none in its place")
    changes = step_changes(blobs, old, other, build, step.vertex)
    if changes is None:
        why = "did not come to it" if other not in old.asked else "keeps its key no more"
        return Verdict(step, "miss", state, NEVER_BUILT, f"build {old.id} {why}", follows=stands_on_miss)
    if not changes:
        ended = old.states.get(other, "")
        detail = f"build {old.id} asked for the same" + (f", but the step {_ENDED[ended]}" if ended in _ENDED else "")
        return Verdict(step, "miss", state, NEVER_BUILT, detail, follows=stands_on_miss)
    own = any(change.component != "input" for change in changes)
    reason = SCHEMA if any(change.component == "schema" for change in changes) else CHANGED
    follows = stands_on_miss and not own
    return Verdict(step, "miss", state, reason, "", tuple(changes), follows)


_ENDED: Mapping[str, str] = {
    "failed": "failed", "cancelled": "was cancelled", "interrupted": "was interrupted", "": "did not run",
}  # fmt: skip


def _nearest(log: EventLog, blobs: Blobs, history: History, build: Build) -> Build | None:
    """The newest earlier build with the same name and file name that got as far as asking the cache; one with the same
    target and platforms before others."""
    record = build.record
    other: Build | None = None
    for candidate in history.list():
        same = (candidate.name, candidate.filename) == (record.name, record.filename)
        if not same or candidate.first_seq >= record.first_seq:
            continue
        old = read_build(log, blobs, candidate)
        if not old.asked:
            continue
        if all(old.options.get(name) == build.options.get(name) for name in ("target", "platforms")):
            return old
        other = other or old
    return other


# ---------------------------------------------------------------- hits


def origin(log: EventLog, history: History, asked: Asked) -> Origin:
    """Where the result of hit `asked` came from, as far as this log tells. Raises LogError."""
    record = next((item for item in history.list() if item.id == asked.origin_build), None)
    if record is None:
        return Origin(asked.origin_build, "", 0, ())
    layers: list[Json] = []
    for event in log.read(after=record.first_seq - 1, until=asked.seq, types=frozenset({"CacheRecorded"})):
        try:
            if event.build == record.id and text(event.data, "key") == asked.key:
                layers = objects(event.data, "layers")
        except BAD_EVENT as error:
            raise malformed(event, error) from error
    pulled: dict[str, tuple[str, tuple[str, ...]]] = {}
    for event in log.read(types=frozenset({"LayerPulled"})):
        try:
            came = provider_name(mapping(event.data, "provider")), tuple(texts(event.data, "verified"))
            pulled[text(event.data, "digest")] = came
        except BAD_EVENT as error:
            raise malformed(event, error) from error
    return Origin(record.id, record.name, record.started, tuple(_layer(layer, pulled) for layer in layers))


def _layer(layer: Json, pulled: Mapping[str, tuple[str, tuple[str, ...]]]) -> Layer:
    snapshot = str(layer.get("snapshot") or "")
    if snapshot:
        return Layer(snapshot, "", (), snapshot.partition("-")[0])
    digest = str(layer.get("digest") or layer.get("diff_id") or "")
    known = next((provider_name(item) for item in objects(layer, "providers")), "")
    provider, verified = pulled.get(digest, (known, ()))
    return Layer(digest, provider, verified, "")


def origin_json(found: Origin) -> Json:
    """The fields, by name."""
    return asdict(found)
