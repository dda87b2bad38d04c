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
from projections.history import BuildRecord
from projections.progress import ProgressView
from projections.steps import Step
from projections.verdict import Verdict, Why
from tools.cli.explained import one_step
from tools.cli.failure import LAST_LINES, excerpt
from tools.cli.format import human_bytes, human_duration, short_id
from tools.cli.missing import missing_lines
from tools.cli.text import last_segment
from tools.report_drawing import Axis, bars, duration, graph, safe, scale, span_of

WIDTH = 100
"""Columns of the prose about hits and misses; the page wraps it where it is narrower."""


@dataclass(frozen=True, slots=True)
class Printed:
    """What a step printed: its last `lines`, cleaned, and how many before them were `left_out`."""

    lines: Sequence[str] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a page is made of. `printed` by vertex; `definition`: the Dockerfile, None when it is not here."""

    record: BuildRecord
    view: ProgressView
    why: Why
    definition: str | None = None
    printed: Mapping[str, Printed] = field(default_factory=dict)


def page(facts: Facts) -> str:
    """The HTML, the same for the same facts (and time zone)."""
    view = facts.view
    anchors = {step.vertex: f"step-{number}" for number, step in enumerate(view.steps, 1)}
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = [*_header(facts), *_fault(facts), *_timeline(facts, anchors), *_graph(facts, anchors)]
    body += ["<h2>Steps</h2>", *(part for step in view.steps for part in _step(facts, step, anchors[step.vertex]))]
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
        lines = [*lines, view.error]
    if lines:
        yield f'<section class="fault"><h2>Error</h2>{_pre(lines)}</section>'


def _axis(view: ProgressView) -> Axis:
    times = [time for step in view.steps for time in (step.started, step.ended) if time is not None]
    return Axis(min([view.started, *times]), max([view.ended or view.seen, *times]))


def _timeline(facts: Facts, anchors: Mapping[str, str]) -> Iterator[str]:
    view = facts.view
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


# ---------------------------------------------------------------- steps


def _title(step: Step) -> str:
    return f"#{step.number} {step.name}" if step.kind == "step" else step.name


def _step(facts: Facts, step: Step, anchor: str) -> Iterator[str]:
    is_open = " open" if step.state == "failed" else ""
    took = "" if step.started is None else duration(step.started, step.ended or facts.view.seen)
    yield f'<details class="step" id="{anchor}"{is_open}><summary>'
    yield f'<span class="chip {safe(step.state)}">{safe(step.state)}</span> <b>{safe(_title(step))}</b>'
    facets = [took, f"attempt {step.attempt}" if step.attempt > 1 else "", _moved(step)]
    yield f'<span class="dim">{safe(", ".join(filter(None, facets)))}</span></summary>'
    if step.error:
        yield f'<div class="fault">{_pre([step.error])}</div>'
    if step.state == "failed" and facts.definition is not None and len(step.lines) == 2 and step.lines[0]:
        yield _pre(excerpt(facts.definition, facts.record.filename, (step.lines[0], step.lines[1])), "code")
    yield from _reason(facts.why, step)
    if step.result:
        yield f'<p class="wrap">wrote {safe(step.result)}</p>'
    yield from _transfers(step, facts.view.seen)
    yield from _output(facts.printed.get(step.vertex, Printed()), facts.view.build, step)
    yield "</details>"


def _moved(step: Step) -> str:
    moved = sum(item.done for item in step.transfers.values() if item.state in {"done", "pulling", "failed"})
    return " ".join(filter(None, (
        f"{human_bytes(moved)} {'moved' if step.kind in {'export', 'cache'} else 'pulled'}" if moved else "",
        f"({human_bytes(step.avoided)} avoided)" if step.avoided else "",
    )))  # fmt: skip


def _reason(why: Why, step: Step) -> Iterator[str]:
    vertex = why.build.steps.get(step.vertex)
    if vertex is None:
        return
    verdict: Verdict | None = next((item for item in why.verdicts if item.step.vertex == step.vertex), None)
    _heading, *lines = one_step(why, vertex, verdict, WIDTH)
    title = "Cache" if verdict is None else "Why it was cached" if verdict.outcome == "hit" else "Why it was not cached"
    if lines:
        yield f"<h3>{title}</h3>{_pre([line.removeprefix('  ') for line in lines], 'prose')}"


def _transfers(step: Step, now: int) -> Iterator[str]:
    if not step.transfers:
        return
    yield '<div class="scroll"><table><thead><tr><th>layer</th><th>state</th><th class="n">bytes</th>'
    yield '<th class="n">took</th><th>provider</th></tr></thead><tbody>'
    for item in step.transfers.values():
        begun, ended = span_of(item, step.ended or now)
        state = f"{item.state} {item.transport}".rstrip() + (f" (build {item.puller})" if item.puller else "")
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


STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --dim: #626d7a; --line: #dde2e8; --soft: #f4f6f8; --paper: #fff;
  --done: #2f6fde; --cached: #2e9e5b; --failed: #d0342c; --cancelled: #98a1ab; --pull: #e39a1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --dim: #98a3b0; --line: #38414b; --soft: #20262d;
  --paper: #15191e; --done: #5b93f5; --cached: #45bb77; --failed: #f06a62; --cancelled: #6d7783; --pull: #eeb04a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
h3 { font-size: .9rem; margin: .75rem 0 .25rem; }
a { color: inherit; text-decoration: none; }
a:hover { text-decoration: underline; }
.dim, footer, dt, .took, th { color: var(--dim); }
footer { margin-top: 2rem; font-size: .85rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dd { margin: 0; }
dd, .wrap { overflow-wrap: anywhere; }
.chip { display: inline-block; padding: 0 .5em; border-radius: .6em; font: 600 .8rem/1.6 system-ui, sans-serif;
  color: var(--paper); background: var(--cancelled); vertical-align: middle; }
.chip.done, .chip.completed, .chip.running { background: var(--done); }
.chip.cached { background: var(--cached); }
.chip.failed { background: var(--failed); }
.chip.completed { background: var(--cached); }
pre { margin: .25rem 0; font: 12.5px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.code { padding: .5rem .75rem; background: var(--soft); border-radius: 4px; }
.fault { border-left: 3px solid var(--failed); padding-left: .75rem; }
.fault h2 { margin-top: 1rem; color: var(--failed); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0 0 .5rem; font-size: .85rem; color: var(--dim); }
.legend i { display: inline-block; width: .9em; height: .7em; margin-right: .35em; border-radius: 2px; }
.legend .done { background: var(--done); }
.legend .cached { background: var(--cached); }
.legend .failed { background: var(--failed); }
.legend .cancelled { background: var(--cancelled); }
.legend .pull { background: var(--pull); }
.row { display: grid; grid-template-columns: minmax(8rem, 32%) minmax(0, 1fr) 4.5rem; gap: .75rem; padding: .15rem 0;
  border-top: 1px solid var(--line); }
.row:first-child { border: 0; }
.row > a, .nodes li { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: .85rem; }
.row > a { line-height: 16px; }
.took { font-size: .8rem; line-height: 16px; text-align: right; }
.bars, .scale { display: block; width: 100%; overflow: visible; }
.scale text { font: 11px system-ui, sans-serif; fill: var(--dim); }
.bars line { stroke: var(--line); }
rect, circle { fill: var(--cancelled); stroke: var(--cancelled); }
rect { stroke-width: 1px; }
.done, .running { fill: var(--done); stroke: var(--done); }
.cached { fill: var(--cached); stroke: var(--cached); }
.failed { fill: var(--failed); stroke: var(--failed); }
rect.pull { fill: var(--pull); stroke: var(--pull); }
rect.pull.failed { fill: var(--failed); stroke: var(--failed); }
.nodes { display: flex; gap: .5rem; overflow-x: auto; }
.nodes ol { list-style: none; margin: 0; padding: 0; min-width: 10rem; flex: 1; }
.nodes li { height: 24px; line-height: 24px; }
.graph { flex: none; }
.graph path { fill: none; stroke: var(--dim); stroke-width: 1.5; }
.graph circle { stroke: var(--paper); stroke-width: 1.5; }
details.step { border-top: 1px solid var(--line); padding: .35rem 0; }
details.step:target > summary { background: var(--soft); }
summary { cursor: pointer; overflow-wrap: anywhere; }
.step > :not(summary) { margin-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .85rem; }
th, td { padding: .1rem 1.25rem .1rem 0; text-align: left; font-variant-numeric: tabular-nums; }
th { font-weight: 400; }
.n { text-align: right; white-space: nowrap; }
@media (max-width: 40rem) {
  .row { grid-template-columns: minmax(0, 1fr) max-content; gap: .1rem .5rem; }
  .row > svg { grid-column: 1 / -1; grid-row: 2; }
  .step > :not(summary) { margin-left: 0; }
  .nodes .dim { display: none; }
}
"""
