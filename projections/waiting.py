"""The bytes that steps wait for, whoever fetches them: the part of the progress view that follows pulls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from projections.fields import mapping, size, text, texts
from projections.steps import Step, Steps, Transfer, provider_name
from storage.interfaces.log import Event


@dataclass(frozen=True, slots=True)
class _Request:
    """A MaterializationRequested that waits for its end."""

    step: Step
    layers: list[str]
    vertex: str | None
    ref: str


class Waiting:
    """Folds requests and pulls into the `steps` of `build`."""

    def __init__(self, build: str, steps: Steps) -> None:
        self._build = build
        self._steps = steps
        self._pulls: dict[str, Transfer] = {}
        """Pulls under way now, of any build."""
        self._requests: dict[int, _Request] = {}
        """What waits for which blobs, by the request's seq: a step may have several requests."""

    def concerns(self, event: Event) -> bool:
        """Is it one that is folded here? What the build asked for, and pulls of any build."""
        return event.type in self._SHARED or (event.type in self._OWN and event.build == self._build)

    def apply(self, event: Event) -> list[Step]:
        """Fold one of those in; returns the steps that it changed. Raises one of BAD_EVENT."""
        return (self._SHARED.get(event.type) or self._OWN[event.type])(self, event)

    def _requested(self, event: Event) -> list[Step]:
        reason = text(event.data, "reason", "")
        step = self._waiting_step(event, reason)
        layers = texts(event.data, "layers")
        self._requests[event.seq] = _Request(step, layers, event.vertex, text(event.data, "ref"))
        for digest in layers:
            transfer = step.transfers[digest] = Transfer(digest, requested=event.time)
            pull = self._pulls.get(digest)
            if pull is not None and pull.state == "pulling":
                transfer.follow(pull)
        return [step]

    def _waiting_step(self, event: Event, reason: str) -> Step:
        """The step whose bytes these are; an export that is under way, or a step of its own, when no vertex asks."""
        if event.vertex:
            step = self._steps.named(event.vertex)
            if step.state == "pending":
                step.state, step.started = "running", event.time
            return step
        for step in self._steps:
            if reason == "export" and step.kind == "export" and step.state == "running":
                return step
        step = self._steps.named(f"fetch {reason}", f"fetching layers for {reason or 'use'}", "fetch")
        if step.state == "pending":
            step.state, step.started = "running", event.time
        return step

    def _waiters(self, digest: str) -> Iterator[tuple[Step, Transfer]]:
        for step in self._steps:
            transfer = step.transfers.get(digest)
            if transfer is not None and transfer.open and step.open:
                yield step, transfer

    def _pulled(self, event: Event) -> list[Step]:
        """PullStarted, PullProgressed, PullFailed and LayerPulled, of any build."""
        digest = text(event.data, "digest")
        pull = self._pulls.setdefault(digest, Transfer(digest, requested=event.time))
        if event.type == "PullStarted":
            pull.begin(event.time, size(event.data, "total"), provider_name(mapping(event.data, "provider")))
        elif event.type == "PullProgressed":
            pull.advance(event.time, size(event.data, "bytes"), size(event.data, "total"))
        elif event.type == "PullFailed":
            pull.fail(event.time, text(event.data, "error", ""))
        else:
            if who := mapping(event.data, "provider"):
                pull.provider = provider_name(who)
            pull.finish(event.time, size(event.data, "bytes"))
        if not pull.open:
            del self._pulls[digest]
        touched = []
        for step, transfer in self._waiters(digest):
            transfer.follow(pull)
            if pull.state == "done" and (event.build != self._build or event.vertex not in (None, step.vertex)):
                transfer.state, transfer.puller = "waited", event.build or ""
            touched.append(step)
        return touched

    def _part_came(self, event: Event) -> list[Step]:
        """A layer's table of contents, or the asked files of it."""
        request = self._requests.get(event.cause or 0)
        transfer = request.step.transfers.get(text(event.data, "digest")) if request is not None else None
        if request is None or transfer is None:
            return []
        transfer.transport = "contents listed" if event.type == "LayerTocRead" else "of it asked for"
        transfer.provider = provider_name(mapping(event.data, "provider"))
        transfer.total = 0  # of a part only what came is known
        transfer.finish(event.time, size(event.data, "bytes"))
        return [request.step]

    def _answered(self, event: Event) -> _Request | None:
        """The request that `event` ends: its cause, or the last one like it."""
        ref = text(event.data, "ref")
        alike = [seq for seq, one in self._requests.items() if (one.vertex, one.ref) == (event.vertex, ref)]
        seq = event.cause if event.cause in self._requests else max(alike, default=None)
        return None if seq is None else self._requests.pop(seq)

    def _materialized(self, event: Event) -> list[Step]:
        """What a step waited for is here; bars that saw no end of their own end now."""
        request = self._answered(event)
        if request is None:
            return []
        step = request.step
        step.avoided += size(event.data, "avoided")
        for transfer in map(step.transfers.get, request.layers):
            if transfer is not None and transfer.open:
                transfer.state, transfer.ended = "waited", event.time
                transfer.done = max(transfer.done, transfer.total)
        if step.kind == "fetch":
            step.close("done", event.time)
        return [step]

    def _materialization_failed(self, event: Event) -> list[Step]:
        request = self._answered(event)
        if request is None:
            return []
        step = request.step
        error = text(event.data, "error", "")
        transfer = step.transfers.get(text(event.data, "digest", ""))
        if transfer is not None:
            transfer.state, transfer.ended, transfer.error = "failed", event.time, error
        if step.kind == "fetch":
            step.error = error
            step.close("failed", event.time)
        return [step]

    _OWN: ClassVar[dict[str, Callable[[Waiting, Event], list[Step]]]] = {
        "MaterializationRequested": _requested,
        "LayerTocRead": _part_came,
        "FilesFetched": _part_came,
        "Materialized": _materialized,
        "MaterializationFailed": _materialization_failed,
    }
    _SHARED: ClassVar[dict[str, Callable[[Waiting, Event], list[Step]]]] = {
        "PullStarted": _pulled,
        "PullProgressed": _pulled,
        "PullFailed": _pulled,
        "LayerPulled": _pulled,
    }

    TYPES: ClassVar[frozenset[str]] = frozenset(_OWN) | frozenset(_SHARED)
    """All that is folded here."""
