"""`refledger events`, `refs` and `rebuild`: the log, what it says of refs, and the projections of it.

Those that read open the root read-only and use no network (I13).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import click

from engine.events import TYPES
from projections.history import History
from projections.mentions import Mentions
from projections.moments import event_at
from projections.refs import Refs, life
from projections.runner import Views
from projections.served import Served, served
from projections.steps import provider_name
from storage.errors import InputError, VerificationError
from storage.interfaces.log import Event, EventLog
from tools import roots
from tools.cli.moment import log_moment
from tools.cli.writing import as_json_option, columns, print_cut, print_json, print_line, table
from tools.format import human_bytes, local_time, short_id
from tools.text import clean


def _short_ref(ref: str) -> str:
    """An id as a person types it: twelve characters behind the algorithm are enough for `Refs.get`."""
    algorithm, colon, rest = ref.partition(":")
    return f"{algorithm}:{rest[:12]}" if colon else ref


_MOST = (1 << 63) - 1
"""The largest number that an event can have."""


@click.command()
@click.option("--build", "build_id", metavar="BUILD", help="Only this build's.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only this type; may be given again.")
@click.option("--after", default=0, type=click.IntRange(0, _MOST), metavar="SEQ", help="Only later ones.")
@click.option("--follow", is_flag=True, help="Go on with what is appended from now on.")
@as_json_option
def events(build_id: str | None, types: tuple[str, ...], after: int, follow: bool, as_json: bool) -> None:
    """Print the log."""
    with roots.read_root(roots.root_directory()) as (log, views):
        _check_types(log, types)
        build = History(views).get(build_id).id if build_id else None
        wanted = frozenset(types) or None
        source = roots.follow_log(log, after, wanted) if follow else log.read(after=after, types=wanted)
        limit = columns(300)
        for event in source:
            if build is None or event.build == build:
                if as_json:
                    print_json(event.to_json())
                else:
                    print_cut(_event_line(event), limit)
                if follow:
                    sys.stdout.flush()


def _check_types(log: EventLog, types: Sequence[str]) -> None:
    """Raises InputError for a type that this Refledger does not know, unless the log has it: a newer one may have
    written that."""
    for name in types:
        if name not in TYPES and next(log.read(types=frozenset({name})), None) is None:
            from engine.frontend.instructions import did_you_mean

            raise InputError(f"no event has the type {name[:60]!r}", hint=did_you_mean(name[:60], TYPES))


def _event_line(event: Event) -> str:
    """One line, in which a provider is no more than its name."""
    shown = {key: _named(value) for key, value in event.data.items() if value not in (None, [], {}, "")}
    text = clean(json.dumps(shown, ensure_ascii=False))
    return f"{event.seq:>6}  {local_time(event.time)[11:]}  {event.build or '-':12}  {event.type:<24} {text}"


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(item) for item in value]
    if isinstance(value, dict) and value.keys() <= {"registry", "repository", "scope", "mirrors", "mirror_of"}:
        return provider_name(value)
    return value


@click.command(short_help="List refs, or tell the life of one.")
@click.argument("ref", required=False)
@click.option("--at", "moment", metavar="SEQ|TIME", help="As it was after event SEQ, or at TIME (or 90m ago: 90m).")
@as_json_option
def refs(ref: str | None, moment: str | None, as_json: bool) -> None:
    """List refs, or tell the life of REF (an id, or the digest of a layer's blob, or the beginning of one) from the
    log: also which registry served each layer."""
    path = roots.root_directory()
    with roots.read_root(path) as (log, head), ExitStack() as stack:
        at = None if moment is None else log_moment(log, moment, time.time_ns())
        views = head if at is None else stack.enter_context(roots.past(path).views(log, at))
        if at is not None and not as_json:
            print_line(f"as of event {at}, {local_time(event_at(log, at).time)}")
        if ref is None:
            _list_refs(views, as_json)
            return
        record = Refs(views).get(ref)
        story = life(log, record, until=at, mentions=Mentions(head))
        digests = [layer["digest"] for layer in record.layers if isinstance(layer.get("digest"), str)]
        givers = served(log, Mentions(head), digests, until=at)
        if as_json:
            given = [item.to_json() for item in givers]
            print_json({**record.to_json(), "life": [asdict(item) for item in story], "served": given})
            return
        print_line(f"{record.ref}  {record.kind}, {_layers(len(record.layers))}, {human_bytes(record.bytes)}")
        limit = columns(10_000)
        for digest in dict.fromkeys(digests):
            print_cut(f"  layer {short_id(digest)}  {_last_served(givers, digest)}", limit)
        for item in story:
            print_cut(f"{item.seq:>6}  {local_time(item.time)[11:]}  {item.type:<24} {clean(item.summary)}", limit)


def _last_served(givers: Sequence[Served], digest: str) -> str:
    """Who served a blob last, in words."""
    last = next((item for item in reversed(givers) if item.digest == digest), None)
    if last is None:
        return "never served to this root"
    return f"{last.how} from {clean(last.whom)}, {human_bytes(last.bytes)}, for build {last.build or '-'}"


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


@click.command(short_help="Fold the projections anew from the log.")
@click.option("--check", is_flag=True, help="Only compare: exit 4 when a projection differs from a fresh fold.")
def rebuild(check: bool) -> None:
    """Throw the projections away and fold them anew from the log."""
    if check:
        with roots.read_root(roots.root_directory()) as (log, views):
            different = views.check(log)
            position = views.position
        if different:
            raise VerificationError(
                f"differs from a fresh fold: {', '.join(different)}", where="views.db", hint="run refledger rebuild"
            )
        print_line(f"the projections equal a fresh fold of {position} events")
        return
    with roots.open_root(roots.root_directory(), folded=False) as root:
        roots.past(root.path).discard()
        root.views.rebuild(root.log)
        print_line(f"rebuilt from {root.views.position} events")
