"""What steps printed, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from projections.fields import BAD_EVENT, integer, malformed, size, text
from projections.steps import Line, Step
from storage.interfaces.log import Event, EventLog, redacted


@dataclass(frozen=True, slots=True)
class Printed:
    """A line of output: of which `attempt`, when its end came (UTC ns), from which stream (as in Line)."""

    attempt: int
    time: int
    fd: int
    text: str


def output_lines(
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
                lines = _printed(step, take_output(step, event))
        except BAD_EVENT as error:
            raise malformed(event, error) from error
        yield from lines
    for step in steps.values():
        yield from _printed(step, step.flush())


def take_output(step: Step, event: Event) -> list[Line]:
    """Take a VertexOutput into its step; returns the lines that it ends. Raises one of BAD_EVENT."""
    data = event.data
    if words := redacted(data.get("text")):
        return step.redact(event.time, words)
    return step.print(event.time, integer(data, "fd", 1) or 1, text(data, "text"), size(data, "dropped"))


def _printed(step: Step, lines: list[Line]) -> list[tuple[str, Printed]]:
    return [(step.vertex, Printed(step.attempt, line.time, line.fd, line.text)) for line in lines]
