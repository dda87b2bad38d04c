"""Progress as lines, in the form `docker buildx build --progress=plain` made familiar.

Times come from the events, so the same log gives the same lines.
"""

from __future__ import annotations

from projections.progress import ProgressView
from projections.steps import Line, Step, Transfer
from storage.interfaces.log import Event
from tools.cli.frame import label
from tools.cli.stream import Out
from tools.format import human_bytes
from tools.text import clean, segments

_EVERY = 1_000_000_000
"""Nanoseconds between two lines about the same layer."""


class PlainRenderer:
    """Writes a line for what is new; never takes one back."""

    def __init__(self, build_id: str, out: Out) -> None:
        self._view = ProgressView(build_id, tail=None)
        self._out = out
        self._numbers: dict[str, int] = {}
        self._states: dict[str, tuple[str, int]] = {}
        self._current: str | None = None
        self._shown: dict[tuple[str, str], tuple[str, int]] = {}
        """(vertex, digest) → state and time of the last line about a layer."""
        self._sources = 0
        self._resolved: set[str] = set()

    def event(self, event: Event) -> None:
        """Fold it in and print what it changed."""
        for step in self._view.apply(event):
            if step.state == "pending" and not step.output:
                continue
            self._step(step, event.time)
        for source in self._view.sources[self._sources :]:
            self._sources += 1
            text = f"{source.how} {clean(source.reference)} -> {clean(source.became)}"
            if text not in self._resolved:  # each platform of a build resolves the same name
                self._resolved.add(text)
                self._out.line(text)

    def tick(self) -> None:
        """Nothing changes by itself."""

    def say(self, text: str) -> None:
        """One more line."""
        self._out.line(text)

    def close(self) -> None:
        """Every line is out already."""

    def _step(self, step: Step, now: int) -> None:
        before, state = self._states.get(step.vertex), (step.state, step.attempt)
        if before is None:
            self._announce(step)
        elif before[0] == "failed" and step.state == "running":
            self._say(step, f"attempt {step.attempt}")
        for transfer in step.transfers.values():
            self._transfer(step, transfer, now)
        for line in step.output:
            self._output(step, line)
        step.output.clear()
        self._states[step.vertex] = state
        if state != before and not step.open:
            self._close(step)

    def _announce(self, step: Step) -> None:
        number = self._numbers[step.vertex] = len(self._numbers) + 1
        if self._current is not None:
            self._out.line("")
        self._out.line(f"#{number} {label(step, sum(other.planned for other in self._view.steps))}")
        self._current = step.vertex

    def _say(self, step: Step, text: str) -> None:
        number = self._numbers[step.vertex]
        if self._current != step.vertex:
            if self._current is not None:
                self._out.line("")
            self._out.line(f"#{number} ...")
            self._current = step.vertex
        self._out.line(f"#{number} {text}")

    def _output(self, step: Step, line: Line) -> None:
        offset = max(line.time - (step.started or line.time), 0) / 1e9
        for segment in segments(line.text):
            self._say(step, f"{offset:.3f} {segment}")

    def _transfer(self, step: Step, transfer: Transfer, now: int) -> None:
        key = (step.vertex, transfer.digest)
        state, shown = self._shown.get(key, ("waiting", 0))
        if transfer.state == "failed" and step.open:
            return  # another provider may follow; what nobody can give is told at the end of the step
        if transfer.state == "waiting" or (state == transfer.state and (state != "pulling" or now - shown < _EVERY)):
            return
        self._shown[key] = (transfer.state, now)
        self._say(step, f"{clean(transfer.digest)[:19]} {_figures(transfer)}")

    def _close(self, step: Step) -> None:
        took = max((step.ended or 0) - (step.started or 0), 0) / 1e9
        match step.state:
            case "cached":
                said = "CACHED"
            case "done":
                said = f"DONE {took:.1f}s"
            case "failed" if step.kind == "cache":
                said = f"WARNING: {clean(step.error)}; the build goes on without this cache"
            case "failed":
                said = f"ERROR: {clean(step.error)}"
            case _:
                said = step.state.upper()
        if step.kind == "export" and step.result:
            self._say(step, f"digest {clean(step.result)}")
        if step.avoided:
            self._say(step, f"{human_bytes(step.avoided)} of layers avoided: nothing in them was asked for")
        self._say(step, said)
        self._current = None
        self._out.line("")


def _figures(transfer: Transfer) -> str:
    match transfer.state:
        case "failed":
            return f"failed: {clean(transfer.error)}"
        case "done" if transfer.transport:
            moved = f"{human_bytes(transfer.total)} " if transfer.total else ""
            return f"{moved}{clean(transfer.transport)}"
        case "waited":
            return f"{human_bytes(transfer.total)} fetched by another"
        case "done":
            seconds = ((transfer.ended or 0) - (transfer.started or transfer.requested)) / 1e9
            return f"{human_bytes(transfer.total)} {max(seconds, 0):.1f}s done"
        case _:
            return f"{human_bytes(transfer.done)} / {human_bytes(transfer.total)}"
