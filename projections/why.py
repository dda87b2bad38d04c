"""Why each step of a build ran or did not: where a hit came from, and what a miss differs in from an earlier build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from projections.asked import Asked, Blobs, Build, Import, Loss, Step, read_build
from projections.changes import Change, Hides, is_content, pair_steps, step_changes
from projections.history import BuildRecord, History
from projections.mentions import Mentions
from projections.nearest import nearest
from projections.origin import origin_of
from projections.records import Record, Records, Tombstone, read_records, records_of
from projections.taint import Taint, taint_of
from projections.verdict import (
    CHANGED,
    EVICTED,
    IMPORTER,
    LOST,
    NEVER_BUILT,
    NO_CACHE,
    SCHEMA,
    UNREACHABLE,
    Gone,
    Verdict,
    Why,
)
from storage.errors import InputError
from storage.interfaces.log import EventLog

_AWAY = frozenset({"auth", "transport"})
"""Kinds of a loss after which nobody knows whether the bytes are still there."""


def explain(
    log: EventLog, blobs: Blobs, history: History, record: BuildRecord, against: str | None, hides: Hides,
    mentions: Mentions | None = None,
) -> Why:  # fmt: skip
    """Explain `record`, compared with build `against` or the nearest earlier one of the same definition; without
    `mentions` the whole log is read for it. Raises InputError (no such build), LogError, VerificationError."""
    build = read_build(log, blobs, record)
    if against is None:
        old = nearest(log, blobs, history, build)
    else:
        old = read_build(log, blobs, history.get(against))
        if old.id == record.id:
            raise InputError(f"build {record.id} cannot be compared with itself", hint="give --against another build")
    builds = {item.id: item for item in history.list()}
    if mentions is None:
        records = read_records(log, record.last_seq)
    else:
        records = records_of(log, mentions, _keys(build, old), record.last_seq)
    explainer = _Explainer(blobs, build, old, hides, records, builds)
    return Why(build, old, tuple(explainer.verdicts()), records)


def _keys(*builds: Build | None) -> set[str]:
    known = [build for build in builds if build is not None]
    return {asked.key for build in known for found in (build.asked, build.by_content) for asked in found.values()}


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
    told: dict[tuple[str, str | None, str | None], int] = field(default_factory=dict)
    """Changes that steps before are explained with: the number of the first such."""
    held: set[str] | None = None

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
        own = [(item.component, item.old, item.new) for item in verdict.changes if item.component != "input"]
        if own and all(item in self.told for item in own):
            follows = verdict.follows or self._stands_on_miss(step)
            verdict = replace(verdict, follows=follows, same_as=self.told[own[0]])
        for item in own:
            self.told.setdefault(item, step.number)
        return verdict

    def _stands_on_miss(self, step: Step) -> bool:
        return bool(self.missed.intersection(step.inputs))

    def _revoked(self, step: Step, state: str, loss: Loss) -> Verdict:
        told = [item for item in self.build.losses if item.name == loss.name and item.seq < loss.seq]
        last = told[-1] if told else loss
        reason = UNREACHABLE if told and all(item.kind in _AWAY for item in told) else LOST
        provider, error = loss.provider or last.provider, last.error or loss.error
        gone = Gone(loss.name, provider, last.kind or "missing", error=error, revoked=True)
        return Verdict(step, "miss", state, reason, gone=gone, follows=self._stands_on_miss(step))

    def _miss(self, step: Step, asked: Asked, other: str | None) -> Verdict:
        """Why a needed step was not in the cache."""
        stands_on_miss = self._stands_on_miss(step)
        miss = Verdict(step, "miss", "", asked.reason, follows=stands_on_miss)
        if asked.reason == NO_CACHE:
            return replace(miss, detail="the build was told not to ask", follows=bool(self.missed))
        for answer in (asked, self.build.asked.get(step.vertex, asked)):  # an older record has no key by content
            if answer.reason in {EVICTED, LOST, UNREACHABLE}:
                return replace(miss, reason=answer.reason, gone=self._gone(answer))
        old = self.old
        if old is None:
            first = replace(miss, follows=bool(self.missed))
            return self._unexplained(first, "no earlier build of this definition")
        if other is None:
            detail = f"a new step: build {old.id} has none in its place"
            return replace(miss, reason=NEVER_BUILT, detail=detail, follows=False)
        changes = step_changes(self.blobs, old, other, self.build, step.vertex, self.hides, self.records)
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
        if lost:
            return Gone(lost[0].name, lost[0].provider, lost[0].kind or "missing", error=lost[0].error)
        return self._not_had(record, asked.reason)

    def _not_had(self, record: Record, reason: str) -> Gone | None:
        """The lowest layer of `record` that no result which could be had holds: for want of a fact that names it."""
        for layer in record.layers:
            names = self.records.names_of(layer)
            if self._had().intersection(names):
                continue
            if reason == LOST:
                return Gone(names[0], kind="vanished") if names else None
            known = [name for name in names if name in self.records.providers]
            if known:
                return Gone(known[-1], self.records.providers[known[-1]])
        return None

    def _had(self) -> set[str]:
        """Names of layers that this build's images list, or that a hit has."""
        if self.held is None:
            images = (item for step in self.build.steps.values() for item in step.op.get("layers") or ())
            self.held = {str(layer.get("digest")) for layer in images}
            for vertex in self.build.asked:
                answer = self.build.answer(vertex)
                if answer is not None and answer.outcome == "hit" and vertex not in self.build.revoked:
                    record = self.records.of_hit(answer.key, answer.seq)
                    self.held.update(self.records.names(record) if record else ())
        return self.held

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

