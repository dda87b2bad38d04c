"""The drawings of the report page, as inline SVG that takes its colours from the page's style sheet.

Coordinates along the time axis are per cent, so that a drawing is as wide as its window without a script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from projections.asked import Step as Vertex
from projections.steps import Step, Transfer
from tools.format import human_bytes, human_duration, short_id
from tools.text import clean

TICKS = 5
"""At most so many marks on the time axis beside 0: as many as fit a telephone."""
BARS = 40
"""Pulls drawn under one step; its table has all of them."""
ROW, LANE = 24, 16
"""Pixels of a row and of a column of the graph."""


def safe(text: str) -> str:
    """Text of whomever, as text of the page: one line, no control characters, no markup."""
    return escape(clean(text))


@dataclass(frozen=True, slots=True)
class Axis:
    """The time from `start` to `end`, UTC ns."""

    start: int
    end: int

    @property
    def span(self) -> int:
        """Nanoseconds, at least 1."""
        return max(self.end - self.start, 1)

    def at(self, time: int) -> float:
        """Per cent of the way; clocks may step back."""
        return min(max((time - self.start) * 100 / self.span, 0), 100)

    def ticks(self) -> list[int]:
        """Round times since the start, ns."""
        unit = 1_000_000
        while True:
            for factor in (1, 2, 5):
                if self.span // (unit * factor) <= TICKS:
                    return list(range(0, self.span + 1, unit * factor))
            unit *= 10


def scale(axis: Axis) -> str:
    """The marks of the axis with their times."""
    marks = "".join(
        f'<text x="{_number(axis.at(axis.start + tick))}%" y="11">{_tick(tick)}</text>'
        for tick in axis.ticks()
        if axis.at(axis.start + tick) <= 92  # a later one would stand out of the drawing
    )
    return f'<svg class="scale" height="16" aria-hidden="true">{marks}</svg>'


def bars(step: Step, axis: Axis) -> str:
    """A step on the axis, and what it waited for below it."""
    if step.started is None:
        return '<svg class="bars" height="16" role="img" aria-label="did not start"></svg>'
    end = axis.end if step.ended is None else step.ended
    pulls = list(step.transfers.values())[:BARS]
    parts = [
        f'<line x1="{_number(axis.at(axis.start + tick))}%" x2="{_number(axis.at(axis.start + tick))}%" y2="100%"/>'
        for tick in axis.ticks()
    ]
    parts.append(_bar(axis, step.started, end, 2, 12, step.state, f"{step.state}, {duration(step.started, end)}"))
    for number, pull in enumerate(pulls):
        begun, ended = span_of(pull, end)
        told = f"{short_id(pull.digest)}: {human_bytes(pull.done)} in {duration(begun, ended)}, {pull.state}"
        told += f", {pull.provider}" if pull.provider else ""
        parts.append(_bar(axis, begun, ended, 17 + 7 * number, 5, f"pull {pull.state}", told))
    after = human_duration(step.started - axis.start)
    label = f"{step.state}, begun after {after}, took {duration(step.started, end)}"
    height = 16 + 7 * len(pulls)
    return f'<svg class="bars" height="{height}" role="img" aria-label="{safe(label)}">{"".join(parts)}</svg>'


def span_of(pull: Transfer, end: int) -> tuple[int, int]:
    """When it began and ended, UTC ns; `end` of the step where it has no end."""
    begun = pull.requested if pull.started is None else pull.started
    return begun, max(begun, end if pull.ended is None else pull.ended)


def duration(start: int, end: int) -> str:
    """Milliseconds below a second, else as human_duration."""
    span = max(end - start, 0)
    return f"{round(span / 1e6)}ms" if span < 950_000_000 else human_duration(span)


def _bar(axis: Axis, start: int, end: int, y: int, height: int, kind: str, title: str) -> str:
    x = axis.at(start)
    place = f'x="{_number(x)}%" y="{y}" width="{_number(max(axis.at(end) - x, 0.1))}%" height="{height}"'
    return f'<rect class="{safe(kind)}" {place} rx="1.5"><title>{safe(title)}</title></rect>'


def _tick(ns: int) -> str:
    seconds = ns / 1e9
    return human_duration(ns) if seconds >= 60 else f"{seconds:g}s"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------- the graph


def lanes(steps: Sequence[Vertex]) -> dict[str, int]:
    """A column for each vertex of a graph in its order: free again once the last step that takes it has come, so that
    no line crosses a step it does not belong to."""
    last: dict[str, str] = {}
    for step in steps:
        last.update(dict.fromkeys(step.inputs, step.vertex))
    found: dict[str, int] = {}
    held: dict[int, str] = {}
    for step in steps:
        ending = [item for item in dict.fromkeys(step.inputs) if last[item] == step.vertex and item in found]
        for item in ending:
            held.pop(found[item], None)
        lane = found[ending[0]] if ending else next(n for n in range(len(held) + 1) if n not in held)
        found[step.vertex] = lane
        if step.vertex in last:
            held[lane] = step.vertex
    return found


def graph(steps: Sequence[Vertex], states: Mapping[str, str]) -> str:
    """The graph with a step a row, as wide as it has columns; `states` by vertex colour the steps."""
    columns, rows = lanes(steps), {step.vertex: number for number, step in enumerate(steps)}
    lines, dots = [], []
    for step in steps:
        x, y = _place(columns, rows, step.vertex)
        for item in dict.fromkeys(step.inputs):
            if rows.get(item, len(rows)) < rows[step.vertex]:
                before, above = _place(columns, rows, item)
                bend = f"V{y - ROW}C{before} {y - ROW // 2} {x} {y - ROW // 2} {x} {y}" if before != x else f"V{y}"
                lines.append(f'<path d="M{before} {above}{bend}"/>')
        dots.append(f'<circle class="{safe(states.get(step.vertex, "pending"))}" cx="{x}" cy="{y}" r="5"/>')
    width = LANE * (max(columns.values(), default=0) + 1)
    size = f'width="{width}" height="{ROW * len(rows)}"'
    return f'<svg class="graph" {size} aria-hidden="true">{"".join(lines)}{"".join(dots)}</svg>'


def _place(columns: Mapping[str, int], rows: Mapping[str, int], vertex: str) -> tuple[int, int]:
    return columns[vertex] * LANE + LANE // 2, rows[vertex] * ROW + ROW // 2
