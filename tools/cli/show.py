"""`refledger show`: the progress view of a build at its end, at any moment, or played back (I13)."""

from __future__ import annotations

import shutil
import sys
import time

import click

from projections.history import BuildRecord, History
from projections.moments import event_at
from projections.progress import ProgressView, fold
from storage.errors import InputError, VerificationError
from storage.interfaces.log import EventLog
from tools import roots
from tools.cli.failure import excerpt, last_output
from tools.cli.missing import missing_lines
from tools.cli.moment import build_moment
from tools.cli.render import draw, make_renderer
from tools.cli.stream import speaks_color, speaks_unicode
from tools.cli.writing import as_json_option, print_json, print_line
from tools.format import local_time
from tools.text import clean

FRAME = 0.05
"""Seconds between two looks at the clock while a build is played back."""


@click.command(short_help="Draw the progress view of a build.")
@click.argument("build_id", metavar="BUILD")
@click.option(
    "--at", "moment", metavar="SEQ|TIME|STEP",
    help="As it was after event SEQ, at TIME (14:05:30, or +45s after the start), or when STEP ended (step:3, or a"
    " part of its name).",
)  # fmt: skip
@click.option("--play", is_flag=True, help="Play it back as it happened; in a pipe, the lines at once.")
@click.option(
    "--speed", type=click.FloatRange(0.01, 10_000), metavar="N", default=1.0,
    help="With --play: so many times as fast.",
)  # fmt: skip
@as_json_option
def show(build_id: str, moment: str | None, play: bool, speed: float, as_json: bool) -> None:
    """Draw the progress view of BUILD (an id or the beginning of one) from the log alone."""
    with roots.read_root(roots.root_directory()) as (log, views):
        record = History(views).get(build_id)
        at = None if moment is None else build_moment(log, record, moment, time.time_ns())
        if play:
            _play(log, record, at, speed, as_json=as_json)
            return
        view = fold(log, record.id, after=record.first_seq - 1, until=at)
        if as_json:
            print_json({**view.to_json(), "at": at, "time": view.seen})
            return
        width = shutil.get_terminal_size((100, 24)).columns
        if at is not None:
            view.seen = event_at(log, at).time
            print_line(f"as of event {at}, {local_time(view.seen)}")
        color, unicode = speaks_color(sys.stdout), speaks_unicode(sys.stdout)
        text = draw(view, width, color, unicode=unicode, told=True, past=at is not None)
        sys.stdout.write(text)
        for line in _failure(log, record, view):
            print_line(line)


def _play(log: EventLog, record: BuildRecord, at: int | None, speed: float, *, as_json: bool) -> None:
    """Give the events to the renderer of a running build, at their times where somebody looks on."""
    now = record.started
    mode = "json" if as_json else "auto"
    renderer = make_renderer(mode, record.id, sys.stdout, lambda: now)
    live = not as_json and sys.stdout.isatty()
    begun = time.monotonic()
    view = ProgressView(record.id, tail=15)
    try:
        for event in log.read(after=record.first_seq - 1, until=at or record.last_seq, types=ProgressView.TYPES):
            while live and now < event.time:
                passed = int((time.monotonic() - begun) * 1e9 * speed)
                now = min(record.started + passed, event.time)
                renderer.tick()
                if now < event.time:
                    time.sleep(min(FRAME, (event.time - now) / 1e9 / speed))
            view.apply(event)
            renderer.event(event)
            if view.finished:
                break
    finally:
        now = max(now, view.seen)
        renderer.close()
    if live:
        for line in _failure(log, record, view):
            print_line(line)


def _failure(log: EventLog, record: BuildRecord, view: ProgressView) -> list[str]:
    """What a step that failed printed, the excerpt of the stored Dockerfile, and the error, whole."""
    failed = next((step for step in view.steps if step.state == "failed"), None)
    error = clean(view.error or (failed.error if failed else "") or "")
    said = [*missing_lines(view.missing), *([f"error: {error}"] if error else [])]
    if failed is None:
        return said
    lines = last_output(view, failed.vertex)
    if len(failed.lines) == 2 and failed.lines[0]:
        known = frozenset({"BuildStarted", "DefinitionRead"})  # the latter when it lay in a context to be fetched
        told = log.read(after=record.first_seq - 1, until=record.last_seq, types=known)
        definition = [event.data.get("definition") for event in told if event.build == record.id][-1]
        try:
            text = roots.stored_text(roots.root_directory(), str(definition))
        except (OSError, VerificationError, InputError):
            return lines + said  # an old definition may be gone; the story is told without it
        lines += excerpt(text, record.filename, (failed.lines[0], failed.lines[1]))
    return lines + said
