"""One build as a person follows it: steps, their output, and the bytes they wait for. Folded in memory.

The fold takes the events of *all* builds from `BuildStarted` on, because a step may wait for a layer that another
build, maybe in another process, fetches (I4): whoever pulls it, the bar stands under every step that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from projections.fields import BAD_EVENT, integer, malformed, mapping, maybe_text, objects, size, text, texts
from projections.steps import Line, Source, Step, Transfer, provider_name
from storage.interfaces.log import Event, EventLog, redacted

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Request:
    """A MaterializationRequested that waits for its end."""

    step: Step
    layers: list[str]
    vertex: str | None
    ref: str


class ProgressView:
    """The view of build `build`. `tail`: lines of output kept a step (None: all). Times in UTC ns, sizes in bytes.

    `status`: unknown (no BuildStarted seen), running, completed, failed, cancelled or interrupted. A build that was
    killed stays "running" until some later build notices.
    """

    def __init__(self, build: str, *, tail: int | None = 50) -> None:
        self.build = build
        self.name = ""
        self.status = "unknown"
        self.started = 0
        self.ended: int | None = None
        self.seen = 0
        """Time of the last event that was applied: "now" for somebody who reads an old log."""
        self.error = ""
        self.failed_vertex: str | None = None
        self.exit_code: int | None = None
        self.results: list[Json] = []
        self.sources: list[Source] = []
        self.missing: list[Json] = []
        """What an offline build lacked: as in FoundMissing.items."""
        self._tail = tail
        self._steps: dict[str, Step] = {}
        self._pulls: dict[str, Transfer] = {}
        """Pulls under way now, of any build."""
        self._requests: dict[int, _Request] = {}
        """What waits for which blobs, by the request's seq: a step may have several requests."""

    @property
    def steps(self) -> list[Step]:
        """In plan order; then those that no plan names, as they appeared; exports last."""
        return sorted(self._steps.values(), key=lambda step: (step.kind == "export", step.number))

    @property
    def finished(self) -> bool:
        """Has the log an end of this build?"""
        return self.status not in ("unknown", "running")

    def to_json(self) -> Json:
        """The view as plain data; `steps` as Step.to_json gives them."""
        return {
            "build": self.build, "name": self.name, "status": self.status, "started": self.started,
            "ended": self.ended, "error": self.error, "failed_vertex": self.failed_vertex,
            "exit_code": self.exit_code, "results": self.results,
            "sources": [source.to_json() for source in self.sources], "missing": self.missing,
            "steps": [step.to_json() for step in self.steps],
        }  # fmt: skip

    # ------------------------------------------------------------ folding

    def apply(self, event: Event) -> list[Step]:
        """Fold `event` in; returns the steps it changed. Events of no concern and of unknown types change nothing.
        Raises LogError for a malformed one."""
        own = event.build == self.build
        handler = self._SHARED.get(event.type) or (self._OWN.get(event.type) if own else None)
        if handler is None:
            return []
        self.seen = max(self.seen, event.time)
        try:
            return handler(self, event)
        except BAD_EVENT as error:
            raise malformed(event, error) from error

    def _step(self, event: Event) -> Step:
        """The step an event is about; made now when no plan announced it."""
        return self._named(event.vertex or event.type, maybe_text(event.data, "name") or "")

    def _named(self, vertex: str, name: str, kind: str = "step") -> Step:
        step = self._steps.get(vertex)
        if step is None:
            number = len(self._steps) + 1
            step = self._steps[vertex] = Step(vertex, name, number=number, kind=kind, tail=self._tail)
        elif name and not step.name:
            step.name = name
        return step

    def _build_started(self, event: Event) -> list[Step]:
        self.name = text(event.data, "name", "")
        self.status = "running"
        self.started = event.time
        return []

    def _graph_defined(self, event: Event) -> list[Step]:
        for number, entry in enumerate(objects(event.data, "plan"), 1):
            step = self._named(text(entry, "vertex"), text(entry, "name", ""))
            step.number, step.planned = number, True
            step.lines = _lines(entry.get("lines"))
        return []

    def _source_resolved(self, event: Event) -> list[Step]:
        data = event.data
        recalled, by = data.get("recalled") is True, mapping(data, "resolved_by")
        self.sources.append(
            Source(
                text(data, "reference"), text(data, "digest"), text(data, "platform", ""), event.vertex, recalled,
                provider_name(by) if by.get("mirror_of") else "",
            )
        )  # fmt: skip
        return [self._steps[event.vertex]] if event.vertex in self._steps else []

    def _found_missing(self, event: Event) -> list[Step]:
        self.missing = objects(event.data, "items")
        return []

    def _vertex_started(self, event: Event) -> list[Step]:
        step = self._step(event)
        step.state, step.ended, step.error, step.exit_code = "running", None, "", None
        step.started = event.time
        step.attempt = integer(event.data, "attempt", 1) or 1
        return [step]

    def _vertex_cached(self, event: Event) -> list[Step]:
        step = self._step(event)
        step.origin_build = maybe_text(event.data, "origin_build")
        return self._close(step, "cached", event)

    def _vertex_completed(self, event: Event) -> list[Step]:
        step = self._step(event)
        step.exit_code = integer(event.data, "exit_code")
        return self._close(step, "done", event)

    def _vertex_failed(self, event: Event) -> list[Step]:
        step = self._step(event)
        step.error = text(event.data, "error", "")
        step.exit_code = integer(event.data, "exit_code")
        return self._close(step, "failed", event)

    def _vertex_cancelled(self, event: Event) -> list[Step]:
        step = self._step(event)
        if not text(event.data, "reason", ""):
            return self._close(step, "cancelled", event)
        step.state = "pending"  # what it waits for is made again
        step.transfers.clear()
        return [step]

    def _hit_revoked(self, event: Event) -> list[Step]:
        """One calm line at the step that makes the lost layer anew."""
        if not event.vertex:
            return []
        step = self._named(event.vertex, "")
        step.state, step.origin_build = "pending", None
        digest, where = text(event.data, "digest"), provider_name(mapping(event.data, "provider"))
        gone = f"layer {digest.removeprefix('sha256:')[:12]} is gone" + (f" from {where}" if where else "")
        step.remark(event.time, f"{gone}: it is made again")
        return [step]

    def _close(self, step: Step, state: str, event: Event) -> list[Step]:
        step.close(state, event.time)
        return [step]

    def _vertex_output(self, event: Event) -> list[Step]:
        step = self._step(event)
        _print(step, event)
        return [step]

    # ------------------------------------------------------------ bytes

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
            step = self._named(event.vertex, "")
            if step.state == "pending":
                step.state, step.started = "running", event.time
            return step
        for step in self._steps.values():
            if reason == "export" and step.kind == "export" and step.state == "running":
                return step
        step = self._named(f"fetch {reason}", f"fetching layers for {reason or 'use'}", "fetch")
        if step.state == "pending":
            step.state, step.started = "running", event.time
        return step

    def _waiters(self, digest: str) -> Iterator[tuple[Step, Transfer]]:
        for step in self._steps.values():
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
            if pull.state == "done" and (event.build != self.build or event.vertex not in (None, step.vertex)):
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
        """What a step waited for is here: bars that saw no end of their own end now."""
        request = self._answered(event)
        if request is None:
            return []
        step = request.step
        step.avoided += size(event.data, "avoided")
        for transfer in (step.transfers[digest] for digest in request.layers):
            if transfer.open:
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

    # ------------------------------------------------------------ exports and the end

    def _export(self, event: Event) -> Step:
        kind, target = text(event.data, "kind", ""), text(event.data, "target", "")
        told = {"cache": "exporting cache to", "copy": "copying to", "index": "exporting index to"}
        name = f"{told.get(kind, f'exporting to {kind}')} {target}"
        step = self._named(f"export {kind} {target}", name, "export")
        if step.state == "pending":
            step.state, step.started = "running", event.time
        return step

    def _export_started(self, event: Event) -> list[Step]:
        return [self._export(event)]

    def _export_progressed(self, event: Event) -> list[Step]:
        digest, target = text(event.data, "digest"), text(event.data, "target", "")
        for step in self._steps.values():
            if step.kind == "export" and step.open and step.vertex.endswith(f" {target}"):
                transfer = step.transfers.setdefault(digest, Transfer(digest, requested=event.time))
                transfer.transport = text(event.data, "transport", "")
                transfer.advance(event.time, size(event.data, "bytes"), size(event.data, "total"))
                if transfer.done == transfer.total:
                    transfer.finish(event.time, transfer.done)
                return [step]
        return []

    def _exported(self, event: Event) -> list[Step]:
        step = self._export(event)
        step.result = text(event.data, "digest", "")
        for layer in objects(event.data, "layers"):
            digest = text(layer, "digest")
            transfer = step.transfers.setdefault(digest, Transfer(digest, requested=event.time))
            transfer.transport, transfer.provider = text(layer, "transport", ""), text(layer, "source", "")
            transfer.finish(event.time, size(layer, "bytes"))
        for transfer in step.transfers.values():
            if transfer.open:  # a config on its way: it is no layer, so nothing else tells its end
                transfer.finish(event.time, transfer.done)
        return self._close(step, "done", event)

    def _cache_exported(self, event: Event) -> list[Step]:
        """CacheExported and CacheExportFailed: the end of an export of kind cache, or all that is told of one."""
        target = text(event.data, "target")
        step = self._named(f"export cache {target}", f"exporting cache to {target}", "export")
        step.result = text(event.data, "digest", "")
        for layer in objects(event.data, "layers"):
            digest = text(layer, "digest")
            transfer = step.transfers.setdefault(digest, Transfer(digest, requested=event.time))
            transfer.transport, transfer.provider = text(layer, "transport", ""), text(layer, "source", "")
            transfer.finish(event.time, size(layer, "bytes"))
        step.error = text(event.data, "error", "")
        return self._close(step, "failed" if step.error else "done", event)

    def _cache_imported(self, event: Event) -> list[Step]:
        """CacheImported and CacheImportFailed. That nothing is there yet is how a cache begins, and no failure."""
        source = text(event.data, "source")
        step = self._named(f"import cache {source}", f"importing cache from {source}", "cache")
        step.number = 0
        if event.type == "CacheImported":
            step.name += f": {integer(event.data, 'records', 0)} records"
            return self._close(step, "done", event)
        if maybe_text(event.data, "class") == "missing":
            step.name += ": nothing there yet"
            return self._close(step, "done", event)
        step.error = text(event.data, "error", "")
        return self._close(step, "failed", event)

    def _build_ended(self, event: Event) -> list[Step]:
        self.status = event.type.removeprefix("Build").lower()
        self.ended = event.time
        self.error = text(event.data, "error", "")
        self.failed_vertex = maybe_text(event.data, "vertex")
        self.exit_code = integer(event.data, "exit_code", {"completed": 0, "cancelled": 130}.get(self.status))
        self.results = objects(event.data, "results")
        left = "interrupted" if self.status == "interrupted" else "cancelled"
        touched = []
        for step in self._steps.values():
            if step.state == "running":
                at_fault = self.status == "failed" and self.failed_vertex == (
                    None if step.kind == "export" else step.vertex
                )
                step.close("failed" if at_fault else left, event.time)
                step.error = step.error or (self.error if at_fault else "")
                touched.append(step)
        return touched

    _OWN: ClassVar[dict[str, Callable[[ProgressView, Event], list[Step]]]] = {
        "BuildStarted": _build_started,
        "GraphDefined": _graph_defined,
        "SourceResolved": _source_resolved,
        "FoundMissing": _found_missing,
        "VertexStarted": _vertex_started,
        "VertexCached": _vertex_cached,
        "VertexCompleted": _vertex_completed,
        "VertexFailed": _vertex_failed,
        "VertexCancelled": _vertex_cancelled,
        "VertexOutput": _vertex_output,
        "HitRevoked": _hit_revoked,
        "MaterializationRequested": _requested,
        "LayerTocRead": _part_came,
        "FilesFetched": _part_came,
        "Materialized": _materialized,
        "MaterializationFailed": _materialization_failed,
        "ExportStarted": _export_started,
        "ExportProgressed": _export_progressed,
        "Exported": _exported,
        "CacheExported": _cache_exported,
        "CacheExportFailed": _cache_exported,
        "CacheImported": _cache_imported,
        "CacheImportFailed": _cache_imported,
        "BuildCompleted": _build_ended,
        "BuildFailed": _build_ended,
        "BuildCancelled": _build_ended,
        "BuildInterrupted": _build_ended,
    }
    _SHARED: ClassVar[dict[str, Callable[[ProgressView, Event], list[Step]]]] = {
        "PullStarted": _pulled,
        "PullProgressed": _pulled,
        "PullFailed": _pulled,
        "LayerPulled": _pulled,
    }

    TYPES: ClassVar[frozenset[str]] = frozenset(_OWN) | frozenset(_SHARED)
    """All that the view needs: for `EventLog.read`."""


def fold(
    log: EventLog, build: str, *, after: int = 0, until: int | None = None, tail: int | None = 50
) -> ProgressView:
    """The view of `build` as of `until` (None: now). `after`: a seq before its BuildStarted, to read less.
    Raises LogError."""
    view = ProgressView(build, tail=tail)
    for event in log.read(after=after, until=until, types=ProgressView.TYPES):
        view.apply(event)
        if view.finished:
            break
    return view


@dataclass(frozen=True, slots=True)
class Printed:
    """A line of output: of which `attempt`, when its end came (UTC ns), from which stream (as in Line)."""

    attempt: int
    time: int
    fd: int
    text: str


def output(
    log: EventLog, build: str, vertex: str | None = None, *, after: int = 0, until: int | None = None
) -> Iterator[tuple[str, Printed]]:
    """Every line that a build, or one step of it, printed, with its vertex, as lines were completed; a line that an
    attempt left without an end is its own. Memory does not grow with the output. Raises LogError."""
    steps: dict[str, Step] = {}
    for event in log.read(after=after, until=until, types=frozenset({"VertexOutput", "VertexStarted"})):
        if event.build != build or event.vertex is None or vertex not in (None, event.vertex):
            continue
        step = steps.setdefault(event.vertex, Step(event.vertex, "", number=0, tail=0, attempt=1))
        try:
            if event.type == "VertexStarted":
                lines = _printed(step, step.flush())
                step.attempt = integer(event.data, "attempt", 1) or 1
            else:
                lines = _printed(step, _print(step, event))
        except BAD_EVENT as error:
            raise malformed(event, error) from error
        yield from lines
    for step in steps.values():
        yield from _printed(step, step.flush())


def _print(step: Step, event: Event) -> list[Line]:
    data = event.data
    if words := redacted(data.get("text")):
        return step.redact(event.time, words)
    return step.print(event.time, integer(data, "fd", 1) or 1, text(data, "text"), size(data, "dropped"))


def _printed(step: Step, lines: list[Line]) -> list[tuple[str, Printed]]:
    return [(step.vertex, Printed(step.attempt, line.time, line.fd, line.text)) for line in lines]


def _lines(value: Any) -> list[int]:
    """The plan's `lines`: [first, last], or every line; anything else is no line."""
    return [n for n in value if isinstance(n, int)] if isinstance(value, list) else []
