"""One build as a person follows it: steps, their output, and the bytes they wait for. Folded in memory.

The fold takes the events of *all* builds from `BuildStarted` on, because a step may wait for a layer that another
build, maybe in another process, fetches (I4): whoever pulls it, the bar stands under every step that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from projections.fields import BAD_EVENT, integer, malformed, mapping, maybe_text, objects, size, text
from projections.output import take_output
from projections.steps import Source, Step, Steps, Transfer, provider_name
from projections.waiting import Waiting
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]


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
        self._steps = Steps(tail)
        self._waiting = Waiting(build, self._steps)

    @property
    def steps(self) -> list[Step]:
        """In plan order; then those that no plan names, as they appeared; exports last."""
        return sorted(self._steps, key=lambda step: (step.kind == "export", step.number))

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
        handler = self._HANDLERS.get(event.type) if event.build == self.build else None
        if handler is None and not self._waiting.concerns(event):
            return []
        self.seen = max(self.seen, event.time)
        try:
            return handler(self, event) if handler else self._waiting.apply(event)
        except BAD_EVENT as error:
            raise malformed(event, error) from error

    def _step(self, event: Event) -> Step:
        """The step an event is about; made now when no plan announced it."""
        return self._steps.named(event.vertex or event.type, maybe_text(event.data, "name") or "")

    def _build_started(self, event: Event) -> list[Step]:
        self.name = text(event.data, "name", "")
        self.status = "running"
        self.started = event.time
        return []

    def _graph_defined(self, event: Event) -> list[Step]:
        for number, entry in enumerate(objects(event.data, "plan"), 1):
            step = self._steps.named(text(entry, "vertex"), text(entry, "name", ""))
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
        step = self._steps.get(event.vertex)
        return [step] if step else []

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
        step = self._steps.named(event.vertex)
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
        take_output(step, event)
        return [step]

    # ------------------------------------------------------------ exports and the end

    def _export(self, event: Event) -> Step:
        kind, target = text(event.data, "kind", ""), text(event.data, "target", "")
        told = {"cache": "exporting cache to", "copy": "copying to", "index": "exporting index to"}
        name = f"{told.get(kind, f'exporting to {kind}')} {target}"
        step = self._steps.named(f"export {kind} {target}", name, "export")
        if step.state == "pending":
            step.state, step.started = "running", event.time
        return step

    def _export_started(self, event: Event) -> list[Step]:
        return [self._export(event)]

    def _export_progressed(self, event: Event) -> list[Step]:
        digest, target = text(event.data, "digest"), text(event.data, "target", "")
        for step in self._steps:
            if step.kind == "export" and step.open and step.vertex.split(" ", 2)[2] == target:
                transfer = step.transfers.setdefault(digest, Transfer(digest, requested=event.time))
                transfer.transport = text(event.data, "transport", "")
                transfer.advance(event.time, size(event.data, "bytes"), size(event.data, "total"))
                if transfer.done == transfer.total:
                    transfer.finish(event.time, transfer.done)
                return [step]
        return []

    def _export_delayed(self, event: Event) -> list[Step]:
        waiting = [step for step in self._steps if step.kind == "export" and step.open]
        for step in waiting:
            step.remark(event.time, f"waiting for {text(event.data, 'file')}: another process has it locked")
        return waiting

    def _exported(self, event: Event) -> list[Step]:
        step = self._export(event)
        _moved(step, event)
        for transfer in step.transfers.values():
            if transfer.open:  # a config on its way: it is no layer, so nothing else tells its end
                transfer.finish(event.time, transfer.done)
        return self._close(step, "done", event)

    def _cache_exported(self, event: Event) -> list[Step]:
        """CacheExported and CacheExportFailed: the end of an export of kind cache, or all that is told of one."""
        target = text(event.data, "target")
        step = self._steps.named(f"export cache {target}", f"exporting cache to {target}", "export")
        _moved(step, event)
        step.error = text(event.data, "error", "")
        return self._close(step, "failed" if step.error else "done", event)

    def _cache_imported(self, event: Event) -> list[Step]:
        """CacheImported and CacheImportFailed. That nothing is there yet is how a cache begins, and no failure."""
        source = text(event.data, "source")
        step = self._steps.named(f"import cache {source}", f"importing cache from {source}", "cache")
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
        for step in self._steps:
            if step.state == "running":
                at_fault = self.status == "failed" and self.failed_vertex == (
                    None if step.kind == "export" else step.vertex
                )
                step.close("failed" if at_fault else left, event.time)
                step.error = step.error or (self.error if at_fault else "")
                touched.append(step)
        return touched

    _HANDLERS: ClassVar[dict[str, Callable[[ProgressView, Event], list[Step]]]] = {
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
        "ExportStarted": _export_started,
        "ExportProgressed": _export_progressed,
        "ExportDelayed": _export_delayed,
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

    TYPES: ClassVar[frozenset[str]] = frozenset(_HANDLERS) | Waiting.TYPES
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


def _moved(step: Step, event: Event) -> None:
    """What an export gave, and how each layer came there."""
    step.result = text(event.data, "digest", "")
    for layer in objects(event.data, "layers"):
        digest = text(layer, "digest")
        transfer = step.transfers.setdefault(digest, Transfer(digest, requested=event.time))
        transfer.transport, transfer.provider = text(layer, "transport", ""), text(layer, "source", "")
        transfer.finish(event.time, size(layer, "bytes"))


def _lines(value: Any) -> list[int]:
    """The plan's `lines`: [first, last], or every line; anything else is no line."""
    return [n for n in value if isinstance(n, int)] if isinstance(value, list) else []
