"""`refledger history`: the builds of a root, and the ones that a person looks for (I13)."""

from __future__ import annotations

import time

import click

from projections.history import BuildRecord, History, Wanted
from storage.errors import InputError
from tools import roots
from tools.cli.moment import instant
from tools.cli.writing import as_json_option, columns, print_json, print_line, table
from tools.format import human_bytes, human_duration, local_time
from tools.text import clean

STATUSES = ["running", "completed", "failed", "cancelled", "interrupted"]
TITLES = ("BUILD", "STARTED", "STATUS", "TIME", "CACHED", "RAN", "PULLED", "AVOIDED", "NAME")
_TIME = "A time (2026-01-31, 2026-01-31T14:05, 14:05:30) or an age (90m, 2d)."


@click.command()
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1_000_000_000), metavar="N", default=50,
    help="Builds to list.  [default: 50]",
)  # fmt: skip
@click.option("--status", type=click.Choice(STATUSES), multiple=True, help="Only so; may be given again.")
@click.option("--since", metavar="TIME", help=f"Only builds that began then or later. {_TIME}")
@click.option("--until", metavar="TIME", help="Only builds that began then or earlier.")
@click.option("--name", metavar="GLOB", help="Only builds with such a name or tag: 'shop*', '*/shop:1.*'.")
@click.option(
    "--digest", metavar="DIGEST", help="Only builds that stood on it, fetched it or made it (or its beginning)."
)
@click.option("--ref", metavar="REF", help="Only builds that made or used this ref (or the beginning of one).")
@as_json_option
def history(
    limit: int, status: tuple[str, ...], since: str | None, until: str | None, name: str | None, digest: str | None,
    ref: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List builds, the newest first."""
    wanted = Wanted(
        statuses=status, since=_time("--since", since), until=_time("--until", until), name=name,
        mentions=tuple(given for given in (digest, ref) if given is not None),
    )  # fmt: skip
    with roots.read_root(roots.root_directory()) as (_, views):
        records = History(views).find(wanted, limit)
        if as_json:
            for record in records:
                print_json(record.to_json())
            return
        if not records:
            print_line("no builds" if wanted == Wanted() else "no such builds")
            return
        table([TITLES, *map(_row, records)], ("AVOIDED", "RAN", "CACHED", "PULLED", "STARTED", "TIME"), columns(10_000))


def _row(record: BuildRecord) -> tuple[str, ...]:
    return (
        record.id,
        local_time(record.started),
        _status(record),
        human_duration(record.ended - record.started) if record.ended else "-",
        str(record.cached),
        str(record.executed),
        human_bytes(record.bytes_pulled),
        human_bytes(record.bytes_avoided),
        clean(", ".join(record.tags) or record.name),
    )


def _status(record: BuildRecord) -> str:
    if record.status == "running":
        return "running?"  # as show has it: it may have been killed
    return "checked" if record.checked and record.status == "completed" else record.status


def _time(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    found = instant(text, time.time_ns())
    if found is None:
        raise InputError(f"{option} {text[:80]!r} is no time", hint="write it as 2026-01-31T14:05, 14:05:30 or 90m")
    return found
