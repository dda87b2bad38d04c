"""The commands that read: they open the root read-only and use no network (I13). `rebuild` makes projections anew."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict

import click

from projections.history import BuildRecord, History
from projections.progress import ProgressView, fold
from projections.progress import output as output_lines
from projections.refs import Refs, life
from projections.runner import Views
from storage.errors import InputError, VerificationError
from storage.interfaces import Event, EventLog
from tools import bootstrap
from tools.cli.failure import excerpt, last_output
from tools.cli.format import human_bytes, human_duration
from tools.cli.missing import missing_lines
from tools.cli.render import draw, speaks_unicode
from tools.cli.text import clean
from tools.cli.writing import as_json_option, columns, local_time, print_cut, print_json, print_line, table


def _short_ref(ref: str) -> str:
    """An id as a person types it: twelve characters behind the algorithm are enough for `Refs.get`."""
    algorithm, colon, rest = ref.partition(":")
    return f"{algorithm}:{rest[:12]}" if colon else ref


@click.command()
@click.option("-n", "--limit", type=click.IntRange(1), default=50, help="Builds to list.  [default: 50]")
@click.option("--status", type=click.Choice(["running", "completed", "failed", "cancelled", "interrupted"]))
@as_json_option
def history(limit: int, status: str | None, as_json: bool) -> None:
    """List builds, the newest first."""
    with bootstrap.read_root(bootstrap.root_directory()) as (_, views):
        records = History(views).list(limit=limit, status=status)
    if as_json:
        for record in records:
            print_json(record.to_json())
        return
    if not records:
        print_line("no builds")
        return
    rows = [("BUILD", "STARTED", "STATUS", "TIME", "STEPS", "CACHED", "PULLED", "NAME")]
    rows += [
        (
            record.id,
            local_time(record.started),
            "checked" if record.checked and record.status == "completed" else record.status,
            human_duration(record.ended - record.started) if record.ended else "-",
            str(record.executed + record.cached),
            str(record.cached),
            human_bytes(record.bytes_pulled),
            clean(", ".join(record.tags) or record.name),
        )
        for record in records
    ]
    table(rows, ("STEPS", "CACHED", "PULLED", "STARTED", "TIME"), columns(10_000))


@click.command()
@click.argument("build_id", metavar="BUILD")
@click.option("--at", type=click.IntRange(1), metavar="SEQ", help="As it was after this event.")
@as_json_option
def show(build_id: str, at: int | None, as_json: bool) -> None:
    """Draw the progress view of BUILD (an id or the beginning of one) from the log alone."""
    with bootstrap.read_root(bootstrap.root_directory()) as (log, views):
        record = History(views).get(build_id)
        view = fold(log, record.id, after=record.first_seq - 1, until=at)
        if as_json:
            print_json(view.to_json())
            return
        width = shutil.get_terminal_size((100, 24)).columns
        color = sys.stdout.isatty()
        sys.stdout.write(draw(view, width, color, unicode=speaks_unicode(sys.stdout), told=True))
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
            text = bootstrap.stored_text(bootstrap.root_directory(), str(definition))
        except (OSError, VerificationError, InputError):
            return lines + said  # an old definition may be gone; the story is told without it
        lines += excerpt(text, record.filename, (failed.lines[0], failed.lines[1]))
    return lines + said


@click.command()
@click.argument("build_id", metavar="BUILD")
@click.argument("step", required=False)
@as_json_option
def output(build_id: str, step: str | None, as_json: bool) -> None:
    """Print what BUILD's steps printed, or only STEP's (its number, or a part of its name)."""
    with bootstrap.read_root(bootstrap.root_directory()) as (log, views):
        record = History(views).get(build_id)
        until = record.last_seq
        view = fold(log, record.id, after=record.first_seq - 1, until=until, tail=0)
        names = {item.vertex: item.name for item in view.steps}
        vertex = None
        if step is not None:
            found = [s for s in view.steps if str(s.number) == step] or [s for s in view.steps if step in s.name]
            if len(found) != 1:
                which = "several steps match" if found else "no step matches"
                raise InputError(f"{which} {step!r} in build {record.id}", hint="refledger show lists the steps")
            vertex = found[0].vertex
        for where, line in output_lines(log, record.id, vertex, after=record.first_seq - 1, until=until):
            if as_json:
                print_json({"vertex": where, "step": names.get(where, ""), "fd": line.fd, "text": line.text})
            else:
                print_line(clean(line.text))


@click.command()
@click.option("--build", "build_id", metavar="BUILD", help="Only this build's.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only this type; may be given again.")
@click.option("--after", default=0, type=click.IntRange(0), metavar="SEQ", help="Only later ones.")
@click.option("--follow", is_flag=True, help="Go on with what is appended from now on.")
@as_json_option
def events(build_id: str | None, types: tuple[str, ...], after: int, follow: bool, as_json: bool) -> None:
    """Print the log."""
    with bootstrap.read_root(bootstrap.root_directory()) as (log, views):
        build = History(views).get(build_id).id if build_id else None
        wanted = frozenset(types) or None
        source = bootstrap.follow_log(log, after, wanted) if follow else log.read(after=after, types=wanted)
        limit = columns(300)
        for event in source:
            if build is None or event.build == build:
                if as_json:
                    print_json(event.to_json())
                else:
                    print_cut(_event_line(event), limit)
                if follow:
                    sys.stdout.flush()


def _event_line(event: Event) -> str:
    shown = {key: value for key, value in event.data.items() if value not in (None, [], {}, "")}
    text = clean(json.dumps(shown, ensure_ascii=False))
    return f"{event.seq:>6}  {local_time(event.time)[11:]}  {event.build or '-':12}  {event.type:<24} {text}"


@click.command()
@click.argument("ref", required=False)
@as_json_option
def refs(ref: str | None, as_json: bool) -> None:
    """List refs, or tell the life of REF (an id or the beginning of one) from the log."""
    with bootstrap.read_root(bootstrap.root_directory()) as (log, views):
        if ref is None:
            _list_refs(views, as_json)
            return
        record = Refs(views).get(ref)
        story = life(log, record)
        if as_json:
            print_json({**record.to_json(), "life": [asdict(item) for item in story]})
            return
        print_line(f"{record.ref}  {record.kind}, {_layers(len(record.layers))}, {human_bytes(record.bytes)}")
        limit = columns(10_000)
        for item in story:
            print_cut(f"{item.seq:>6}  {local_time(item.time)[11:]}  {item.type:<24} {clean(item.summary)}", limit)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _list_refs(views: Views, as_json: bool) -> None:
    records = Refs(views).list()
    if as_json:
        for record in records:
            print_json(record.to_json())
        return
    if not records:
        print_line("no refs")
        return
    rows = [("REF", "KIND", "HERE", "LAYERS", "SIZE", "BUILD")]
    rows += [
        (
            _short_ref(record.ref),
            record.kind,
            "yes" if record.materialized else "no",
            str(len(record.layers)),
            human_bytes(record.bytes),
            record.build or "-",
        )
        for record in records
    ]
    table(rows, ("LAYERS", "KIND", "SIZE"), columns(10_000))


@click.command()
@click.option("--check", is_flag=True, help="Only compare: exit 4 when a projection differs from a fresh fold.")
def rebuild(check: bool) -> None:
    """Throw the projections away and fold them anew from the log."""
    if check:
        with bootstrap.read_root(bootstrap.root_directory()) as (log, views):
            different = views.check(log)
            position = views.position
        if different:
            raise VerificationError(
                f"differs from a fresh fold: {', '.join(different)}", where="views.db", hint="run refledger rebuild"
            )
        print_line(f"the projections equal a fresh fold of {position} events")
        return
    with bootstrap.open_root(bootstrap.root_directory()) as root:
        print_line(f"rebuilt from {root.views.rebuild(root.log)} events")
