"""What the terminal shows of a failure: the last output, the lines of the Dockerfile, and where to look further."""

from __future__ import annotations

from engine.errors import Cancelled, DockerfileError
from engine.offline.missing import NotHere
from projections.progress import ProgressView, fold
from storage.errors import RefledgerError
from storage.interfaces.log import EventLog
from tools.text import cells, clean, fit, shortened

LAST_LINES = 15
AROUND = 2
"""Lines of the Dockerfile shown before and after the ones at fault."""
_TITLE = 100
"""Columns of a step's name above its output: the excerpt below has all of it."""


def explain(log: EventLog, after: int, build: str, error: RefledgerError, dockerfile: str, filename: str) -> str:
    """Text for people, ending in a newline; the error itself is printed by the caller."""
    parts = []
    vertex = getattr(error, "vertex", None)
    lines = (0, 0)
    mark = None
    if isinstance(error, DockerfileError):
        lines, mark = (error.line, error.end), error.mark
    elif vertex is not None:
        lines = vertex.lines
        parts += last_output(fold(log, build, after=after, tail=LAST_LINES), str(vertex.digest))
    if lines[0]:
        parts += excerpt(dockerfile, filename, lines, mark)
    if isinstance(error, NotHere):
        from tools.cli.missing import missing_lines

        parts += missing_lines([item.to_json() for item in error.missing])
    text = "\n".join(parts) + "\n" if parts else ""
    if not any(event.build == build for event in log.read(after=after)):
        return text  # what was wrong kept it from beginning: there is no story
    ended = "was cancelled" if isinstance(error, Cancelled) else "failed"
    printed = any(event.build == build for event in log.read(after=after, types=frozenset({"VertexOutput"})))
    further = f", refledger output {build} prints all output" if printed else ""
    return text + f"build {build} {ended}: refledger show {build} tells the story{further}\n"


def last_output(view: ProgressView, vertex: str) -> list[str]:
    """The last lines a step printed, between rules, headed by its name."""
    step = next((step for step in view.steps if step.vertex == vertex), None)
    if step is None or not step.output:
        return []
    lines = [clean(line.text) for line in (*step.output, *step.rest)]
    name = fit(shortened(clean(step.name), _TITLE, "..."), _TITLE, "...")
    return ["------", f" > {name}:", *lines[-LAST_LINES:], "------"]


def excerpt(
    dockerfile: str, filename: str, lines: tuple[int, int], mark: tuple[int, int, int] | None = None
) -> list[str]:
    """The lines `lines` (first, last; from 1) marked with >>>, and a few around them; `mark` (line, column from 0,
    length) gets a line of ^ below it."""
    source = dockerfile.removeprefix("\ufeff").split("\n")
    if source[-1:] == [""]:
        source.pop()
    first, last = lines
    rows = []
    for number in range(max(1, first - AROUND), min(len(source), last + AROUND) + 1):
        line = source[number - 1].rstrip("\r")
        rows.append(f"{number:4d} | {'>>>' if first <= number <= last else '   '} {clean(line)}".rstrip())
        if mark and mark[0] == number:
            before, word = line[: mark[1]], line[mark[1] : mark[1] + mark[2]]
            # reason: tabs stay tabs, so that the mark stands below its word however wide they are
            blank = "".join("\t" if char == "\t" else " " * cells(clean(char)) for char in before)
            rows.append(f"     |     {blank}{'^' * max(1, cells(clean(word)))}")
    return [f"{clean(filename)}:{first}", "-" * 20, *rows, "-" * 20]
