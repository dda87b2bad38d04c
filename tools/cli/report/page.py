"""One build as one HTML page that needs nothing else: no network, no script, no file beside it.

A pure function of what the log says. Names, output and errors are of whoever wrote them: all text goes through `safe`,
and a Content-Security-Policy lets the page load nothing, should a browser see markup all the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from projections.asked import Step as Vertex
from projections.audit.statements import BuildReport
from projections.history import BuildRecord
from projections.progress import ProgressView
from projections.steps import Step
from projections.verdict import Verdict, Why
from tools.auditing.report_text import build_sections
from tools.cli.explained import one_step
from tools.cli.failure import LAST_LINES, excerpt
from tools.cli.missing import missing_lines
from tools.cli.report.drawing import Axis, bars, duration, graph, safe, scale, span_of
from tools.cli.report.style import STYLE
from tools.format import human_bytes, human_duration, short_id
from tools.text import last_segment

WIDTH = 100
"""Columns of the prose about hits and misses; the page wraps it where it is narrower."""


@dataclass(frozen=True, slots=True)
class Printed:
    """What a step printed: its last `lines`, cleaned, and how many before them were `left_out`."""

    lines: Sequence[str] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a page is made of. `printed` by vertex; `definition`: the Dockerfile, None when it is not here; `audit`:
    what the log proves, None to leave that out."""

    record: BuildRecord
    view: ProgressView
    why: Why
    definition: str | None = None
    printed: Mapping[str, Printed] = field(default_factory=dict)
    audit: BuildReport | None = None


def page(facts: Facts) -> str:
    """The HTML, the same for the same facts (and time zone)."""
    view = facts.view
    anchors = {step.vertex: f"step-{number}" for number, step in enumerate(view.steps, 1)}
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = [*_header(facts), *_fault(facts), *_timeline(facts, anchors), *_graph(facts, anchors)]
    body += ["<h2>Steps</h2>"] if view.steps else []
    verdicts = {verdict.step.vertex: verdict for verdict in reversed(facts.why.verdicts)}
    for step in view.steps:
        body += _step(facts, step, anchors[step.vertex], verdicts.get(step.vertex))
    body += _audit(facts)
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="referrer" content="no-referrer">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{safe(_name(facts.record))}: {safe(view.status)}</title>", f"<style>{STYLE}</style>",
        "</head>", "<body>", *body,
        f"<footer>Times are those of UTC{_zone(facts.record.started)}. Build {safe(view.build)}.</footer>",
        "</body>", "</html>", "",
    ])  # fmt: skip


# ---------------------------------------------------------------- the build


def _name(record: BuildRecord) -> str:
    return record.name or f"build {record.id}"


def _header(facts: Facts) -> Iterator[str]:
    record, view = facts.record, facts.view
    yield f'<h1>{safe(_name(record))} <span class="chip {safe(view.status)}">{safe(view.status)}</span></h1>'
    ended = view.seen if view.ended is None else view.ended
    until = "last event" if view.ended is None else "ended"
    rows = [
        ("build", record.id), ("definition", record.filename), ("started", _time(view.started)),
        (until, f"{_time(ended)}, after {human_duration(ended - view.started)}"),
        ("steps", f"{record.vertices}: {record.cached} cached, {record.executed} executed"),
        ("pulled", human_bytes(record.bytes_pulled)), ("avoided", human_bytes(record.bytes_avoided)),
        *(("tag", tag) for tag in record.tags),
        *(("digest", digest) for digest in dict.fromkeys(str(item.get("digest") or "") for item in view.results)),
        *(("source", f"{item.reference} {item.how} as {item.digest}") for item in view.sources),
    ]  # fmt: skip
    yield '<dl class="facts">'
    yield from (f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in rows if value)
    yield "</dl>"


def _fault(facts: Facts) -> Iterator[str]:
    """Why the build failed, and where the step that did is written."""
    view = facts.view
    lines = missing_lines(view.missing)
    if view.error:
        lines = [*lines, *view.error.splitlines()]
    if lines:
        yield f'<section class="fault"><h2>Error</h2>{_pre(lines)}</section>'


def _axis(view: ProgressView) -> Axis:
    times = [time for step in view.steps for time in (step.started, step.ended) if time is not None]
    return Axis(min([view.started, *times]), max([view.ended or view.seen, *times]))


def _timeline(facts: Facts, anchors: Mapping[str, str]) -> Iterator[str]:
    view = facts.view
    if not view.steps:
        return
    axis = _axis(view)
    yield "<h2>Timeline</h2>"
    yield '<p class="legend">' + "".join(
        f'<span><i class="{kind}"></i>{name}</span>'
        for kind, name in (
            ("done", "ran"), ("cached", "cached"), ("failed", "failed"), ("cancelled", "cancelled"),
            ("pull", "bytes a step waited for"),
        )
    ) + "</p>"  # fmt: skip
    yield f'<div class="timeline"><div class="row"><span></span>{scale(axis)}<span></span></div>'
    for step in view.steps:
        took = "" if step.started is None else duration(step.started, step.ended or axis.end)
        told = "cached" if step.state == "cached" else took or "-"
        name = f'<a href="#{anchors[step.vertex]}">{safe(_title(step))}</a>'
        yield f'<div class="row">{name}{bars(step, axis)}<span class="took">{told}</span></div>'
    yield "</div>"


def _graph(facts: Facts, anchors: Mapping[str, str]) -> Iterator[str]:
    steps = list(facts.why.build.steps.values())
    if not steps:
        return
    states = {step.vertex: step.state for step in facts.view.steps}
    shown = {step.vertex: step for step in facts.view.steps}
    yield "<h2>Graph</h2>"
    yield '<div class="nodes">' + graph(steps, states) + "<ol>"
    for item in steps:
        inputs = ", ".join(_input(facts.why.build.steps[name]) for name in item.inputs if name in facts.why.build.steps)
        after = f' <span class="dim">takes {safe(inputs)}</span>' if inputs else ""
        if item.vertex in shown:
            label = f'<a href="#{anchors[item.vertex]}">{safe(_title(shown[item.vertex]))}</a>'
        else:
            label = safe(item.name or str(item.op.get("op", "")))
        yield f"<li>{label}{after}</li>"
    yield "</ol></div>"


def _input(step: Vertex) -> str:
    return f"#{step.number}" if step.number else step.name or str(step.op.get("op", ""))


def _audit(facts: Facts) -> Iterator[str]:
    """What the log proves, each statement with the numbers of its events."""
    if facts.audit is None:
        return
    yield '<section id="audit"><h2>Audit</h2>'
    yield '<p class="dim">Behind each statement stand the numbers of the events that say so (refledger events).</p>'
    for title, lines in build_sections(facts.audit, WIDTH):
        yield f"<details><summary>{safe(title)}</summary>{_pre([line.removeprefix('  ') for line in lines], 'prose')}"
        yield "</details>"
    yield "</section>"


# ---------------------------------------------------------------- steps


def _title(step: Step) -> str:
    return f"#{step.number} {step.name}" if step.kind == "step" else step.name


def _step(facts: Facts, step: Step, anchor: str, verdict: Verdict | None) -> Iterator[str]:
    is_open = " open" if step.state == "failed" else ""
    timed = step.started is not None and step.state != "cached"
    took = duration(step.started or 0, step.ended or facts.view.seen) if timed else ""
    yield f'<details class="step" id="{anchor}"{is_open}><summary>'
    yield f'<span class="chip {safe(step.state)}">{safe(step.state)}</span> <b>{safe(_title(step))}</b>'
    facets = [took, f"attempt {step.attempt}" if step.attempt > 1 else "", _moved(step)]
    yield f'<span class="dim">{safe(", ".join(filter(None, facets)))}</span></summary>'
    if step.error:
        yield f'<div class="fault">{_pre(step.error.splitlines())}</div>'
    if step.state == "failed" and facts.definition is not None and len(step.lines) == 2 and step.lines[0]:
        yield _pre(excerpt(facts.definition, facts.record.filename, (step.lines[0], step.lines[1])), "code")
    yield from _reason(facts.why, step, verdict)
    if step.result:
        yield f'<p class="wrap">wrote {safe(step.result)}</p>'
    yield from _transfers(step, facts.view)
    yield from _output(facts.printed.get(step.vertex, Printed()), facts.view.build, step)
    yield "</details>"


def _moved(step: Step) -> str:
    moved = sum(item.done for item in step.transfers.values() if item.state in {"done", "pulling", "failed"})
    return " ".join(filter(None, (
        f"{human_bytes(moved)} {'moved' if step.kind in {'export', 'cache'} else 'pulled'}" if moved else "",
        f"({human_bytes(step.avoided)} avoided)" if step.avoided else "",
    )))  # fmt: skip


def _reason(why: Why, step: Step, verdict: Verdict | None) -> Iterator[str]:
    vertex = why.build.steps.get(step.vertex)
    if vertex is None:
        return
    _heading, *lines = one_step(why, vertex, verdict, WIDTH)
    title = "Cache" if verdict is None else "Why it was cached" if verdict.outcome == "hit" else "Why it was not cached"
    if lines:
        yield f"<h3>{title}</h3>{_pre([line.removeprefix('  ') for line in lines], 'prose')}"


def _transfers(step: Step, view: ProgressView) -> Iterator[str]:
    if not step.transfers:
        return
    yield '<div class="scroll"><table><thead><tr><th>layer</th><th>state</th><th class="n">bytes</th>'
    yield '<th class="n">took</th><th>provider</th></tr></thead><tbody>'
    for item in step.transfers.values():
        begun, ended = span_of(item, step.ended or view.seen)
        state = item.transport if item.transport and item.state == "done" else f"{item.state} {item.transport}".rstrip()
        if item.puller:
            state = "pulled by another step" if item.puller == view.build else f"pulled by build {item.puller}"
        cells = (f"{human_bytes(item.done)}", duration(begun, ended))
        numbers = "".join(f'<td class="n">{safe(cell)}</td>' for cell in cells)
        who = item.provider + (f": {item.error}" if item.error else "")
        yield f'<tr><td title="{safe(item.digest)}">{safe(short_id(item.digest))}</td><td>{safe(state)}</td>'
        yield f"{numbers}<td>{safe(who)}</td></tr>"
    yield "</tbody></table></div>"


def _output(printed: Printed, build: str, step: Step) -> Iterator[str]:
    """The last lines at once, those before them behind a click, and a word about those that are not on the page."""
    lines = printed.lines
    if not lines:
        return
    yield "<h3>Output</h3>"
    if printed.left_out:
        asking = f"refledger output {build} {step.number}"
        yield f'<p class="dim">{printed.left_out} lines before these are not on this page: {safe(asking)}</p>'
    before, last = lines[:-LAST_LINES], lines[-LAST_LINES:]
    if before:
        told = "1 line" if len(before) == 1 else f"{len(before)} lines"
        yield f"<details><summary>{told} before</summary>{_pre(before, 'code')}</details>"
    yield _pre(last, "code")


def _pre(lines: Sequence[str], kind: str = "") -> str:
    # reason: the parser drops a newline right after <pre>, so an empty first line needs one more
    text = "\n".join(safe(last_segment(line)) for line in lines)
    return (f'<pre class="{kind}">' if kind else "<pre>") + f"\n{text}</pre>"


def _time(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9).astimezone():%Y-%m-%d %H:%M:%S}"


def _zone(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9).astimezone():%z}"
