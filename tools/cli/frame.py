"""The progress view as rows of styled text: what a live terminal and `refledger show` draw alike. Pure.

A row is at most `Look.width` columns wide. Everything in it has been cleaned (tools/text.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from projections.progress import ProgressView
from projections.steps import Step, Transfer
from tools.format import human_bytes, human_duration, short_id
from tools.text import cells, clean, fit, last_segment, shortened

Span = tuple[str, str]
"""Text and its style: "", dim, bold, red, green, yellow or cyan."""
Row = list[Span]

_BAR = 24
_INDENT = "   "


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What marks a state, and what bars are made of."""

    pending: str = "·"
    running: str = "▸"
    cached: str = "≡"
    done: str = "✓"
    failed: str = "✗"
    cancelled: str = "∅"
    interrupted: str = "?"
    full: str = "█"
    empty: str = "░"
    ellipsis: str = "…"
    arrow: str = "→"


UNICODE = Glyphs()
ASCII = Glyphs(".", ">", "=", "+", "x", "-", "?", "#", "-", "...", "->")

_STYLES = {
    "pending": "dim", "running": "bold", "cached": "cyan", "done": "green", "failed": "red",
    "cancelled": "yellow", "interrupted": "yellow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """`width` in columns; `height` in rows (None: as many as it takes); `now`: UTC ns; `tail`: output lines under a
    running step; `detail`: layers and sources also under finished steps, and more output under a failed one; `told`:
    leave what a failed step printed and the error to the caller, who says them in full; `past`: a moment on the way,
    where a build that has not ended is nothing to wonder about."""

    width: int
    now: int
    height: int | None = None
    glyphs: Glyphs = UNICODE
    tail: int = 6
    bars: int = 8
    detail: bool = False
    told: bool = False
    past: bool = False


def frame(view: ProgressView, look: Look) -> list[Row]:
    """The rows that show `view`; when they are too many, output goes first, then finished steps, then bars."""
    rows = _rows(view, look, fold=False)
    if look.height is None or len(rows) <= look.height:
        return rows
    for smaller in (replace(look, tail=2), replace(look, tail=0), replace(look, tail=0, bars=1)):
        rows = _rows(view, smaller, fold=True)
        if len(rows) <= look.height:
            return rows
    return rows[: look.height]


def _rows(view: ProgressView, look: Look, *, fold: bool) -> list[Row]:
    steps = view.steps
    rows = [_header(view, steps, look), *_sources(view, look)]
    if look.detail and not look.past and view.status == "running":
        rows.insert(1, _dim(look, " the log has no end of it: it still runs, or it was killed"))
    planned = sum(step.planned for step in steps)
    finished = [step for step in steps if not step.open and step.state != "failed"]
    pending = [step for step in steps if step.state == "pending"]
    if fold and finished:
        rows.append(_line(look, look.glyphs.done, f"{len(finished)} steps finished", "", "green"))
    for step in steps:
        if fold and (step.state == "pending" or step in finished):
            continue
        rows += _step(step, planned, view, look)
    if fold and pending:
        rows.append(_line(look, look.glyphs.pending, f"{len(pending)} steps to come", "", "dim"))
    if look.detail and not look.told and view.error and not any(step.error for step in steps):
        rows.append([(fit(f"error: {clean(view.error)}", look.width, look.glyphs.ellipsis), "red")])
    return rows


def _header(view: ProgressView, steps: Sequence[Step], look: Look) -> Row:
    status = "running?" if look.detail and not look.past and view.status == "running" else view.status
    closed = sum(step.state in ("done", "cached") for step in steps)
    count = f"  {closed}/{len(steps)} steps" if steps else ""
    took = human_duration((view.ended or look.now) - view.started) if view.started else ""
    name = clean(view.name)
    left = f"build {clean(short_id(view.build))}{' ' if name else ''}{name}  {status}{count}"
    style = "red" if status == "failed" else "bold"
    return _justified(look, (left, style), (took, "dim"))


def _sources(view: ProgressView, look: Look) -> list[Row]:
    known = {step.vertex for step in view.steps}
    said = dict.fromkeys(  # reason: each platform of a build resolves the same name
        f" {source.how} {clean(source.reference)} {look.glyphs.arrow} {clean(source.became)}"
        for source in view.sources
        if source.vertex not in known
    )
    return [_dim(look, text) for text in said]


def label(step: Step, planned: int) -> str:
    """The step's name, cleaned, with its place in the plan unless the name has one."""
    name = clean(step.name) or short_id(clean(step.vertex))
    if step.planned and not name.startswith("["):
        return f"[{step.number}/{planned}] {name}"
    return name


def _step(step: Step, planned: int, view: ProgressView, look: Look) -> list[Row]:
    glyph: str = getattr(look.glyphs, step.state)
    again = f" (attempt {step.attempt})" if step.attempt > 1 else ""
    right = _right(step, look)
    name = shortened(label(step, planned) + again, look.width - cells(right) - 5, look.glyphs.ellipsis)
    rows = [_line(look, glyph, name, right, _STYLES[step.state])]
    arrow = look.glyphs.arrow
    if look.detail:
        rows += [
            _dim(look, f"{_INDENT}{source.how} {clean(source.reference)} {arrow} {clean(source.became)}")
            for source in view.sources
            if source.vertex == step.vertex
        ]
    if step.state == "running" or look.detail or step.state == "failed":
        rows += _transfers(list(step.transfers.values()), step, look)
        if step.avoided:
            rows.append(_dim(look, f"{_INDENT}{human_bytes(step.avoided)} of layers avoided"))
    if step.state == "failed" and not look.told:
        rows += _output(step, look, 20 if look.detail else look.tail)
        rows.append([(fit(f"{_INDENT}{clean(step.error)}", look.width, look.glyphs.ellipsis), "red")])
    elif step.state in ("running", "interrupted"):
        rows += _output(step, look, look.tail)
    return rows


def _right(step: Step, look: Look) -> str:
    if step.state == "pending" or step.started is None:
        return ""
    if step.state == "cached":
        return "CACHED"
    took = human_duration((step.ended or look.now) - step.started)
    if step.state == "failed" and step.exit_code is not None:
        return f"exit {step.exit_code}  {took}"
    return took if step.state in ("running", "done") else f"{step.state}  {took}"


def _output(step: Step, look: Look, tail: int) -> list[Row]:
    lines = [*step.output, *step.rest]
    return [_dim(look, _INDENT + last_segment(line.text)) for line in lines[max(len(lines) - tail, 0) :]]


# ---------------------------------------------------------------- bytes


def _transfers(transfers: list[Transfer], step: Step, look: Look) -> list[Row]:
    """Bars of what moves, one line for the rest; with detail a line each."""
    if look.detail and step.state != "running":
        shown = transfers[:12]
        rows = [_transfer(transfer, look) for transfer in shown]
        if more := len(transfers) - len(shown):
            rows.append(_dim(look, f"{_INDENT}and {more} more layers"))
        return rows
    moving = [transfer for transfer in transfers if transfer.state in ("pulling", "failed")]
    rows = [_transfer(transfer, look) for transfer in moving[: look.bars]]
    counts = {
        "more": len(moving) - len(moving[: look.bars]),
        "waiting": sum(transfer.state == "waiting" for transfer in transfers),
        "here": sum(transfer.state in ("done", "waited") for transfer in transfers),
    }
    if said := ", ".join(f"{count} {word}" for word, count in counts.items() if count):
        size = human_bytes(sum(transfer.done for transfer in transfers))
        so_far = " so far" if moving or counts["waiting"] else ""
        rows.append(_dim(look, f"{_INDENT}layers: {said}, {size}{so_far}"))
    return rows


def _transfer(transfer: Transfer, look: Look) -> Row:
    name = f"{_INDENT}{short_id(clean(transfer.digest)):12} "
    if transfer.state == "failed":
        return [(fit(f"{name}failed: {clean(transfer.error)}", look.width, look.glyphs.ellipsis), "red")]
    if transfer.state == "pulling":
        return _bar(transfer, name, look)
    word = clean(transfer.transport) or {"done": "pulled", "waited": "waited for"}.get(transfer.state, transfer.state)
    said = f"{name}{word}"
    if transfer.total:
        said += f" {human_bytes(transfer.total)}"
    if transfer.started is not None and transfer.ended is not None and transfer.state == "done":
        said += f" {human_duration(transfer.ended - transfer.started)}"
    if transfer.provider and transfer.state != "waiting":
        said += f" from {clean(transfer.provider)}"
    return _dim(look, said)


def _bar(transfer: Transfer, name: str, look: Look) -> Row:
    figures = f"{human_bytes(transfer.done)}/{human_bytes(transfer.total)}"
    rate = f"{human_bytes(transfer.rate)}/s" if transfer.rate else ""
    tail = f" {figures:>15} {rate:>9}"
    room = min(look.width - cells(name) - len(tail), _BAR)
    if room < 4:
        return [(fit(f"{name}{figures}", look.width, look.glyphs.ellipsis), "")]
    part = min(transfer.done / transfer.total, 1.0) if transfer.total else 0.0
    full = int(part * room)
    return [(name, ""), (look.glyphs.full * full, "green"), (look.glyphs.empty * (room - full), "dim"), (tail, "")]


# ---------------------------------------------------------------- rows


def _dim(look: Look, text: str) -> Row:
    return [(fit(text, look.width, look.glyphs.ellipsis), "dim")]


def _line(look: Look, glyph: str, text: str, right: str, style: str) -> Row:
    return _justified(look, (f" {glyph} {text}", style), (right, "dim"))


def _justified(look: Look, left: Span, right: Span) -> Row:
    """`left` cut where needed, `right` at the right edge; `right` goes first when there is no room for both."""
    if cells(right[0]) + 12 > look.width or not right[0]:
        return [(fit(left[0], look.width, look.glyphs.ellipsis), left[1])]
    text = fit(left[0], look.width - cells(right[0]) - 2, look.glyphs.ellipsis)
    return [(text, left[1]), (" " * (look.width - cells(text) - cells(right[0])), ""), right]
