"""`refledger output`: what steps printed, from the log (I13)."""

from __future__ import annotations

from datetime import datetime

import click

from projections.history import History
from projections.output import output_lines
from storage.errors import InputError
from tools import roots
from tools.cli.fields import pattern as regex
from tools.cli.moment import find_step, whole_view
from tools.cli.writing import as_json_option, print_json, print_line
from tools.text import clean


@click.command(short_help="Print what the steps of a build printed.")
@click.argument("build_id", metavar="BUILD")
@click.argument("step", required=False)
@click.option("--grep", "pattern", metavar="REGEX", help="Only lines that match; exit 1 when there is none.")
@click.option("--timestamps", is_flag=True, help="With the time at which each line came.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only the N-th attempt.  [default: all]")
@as_json_option
def output(
    build_id: str, step: str | None, pattern: str | None, timestamps: bool, attempt: int | None, as_json: bool
) -> None:
    """Print what BUILD's steps printed, or only STEP's (its number, or a part of its name)."""
    wanted = regex("--grep", pattern or "")
    shown = 0
    with roots.read_root(roots.root_directory()) as (log, views):
        record = History(views).get(build_id)
        view = whole_view(log, record)
        names = {item.vertex: item.name for item in view.steps}
        chosen = None if step is None else find_step(view.steps, record.id, step)
        last = (chosen.attempt if chosen else max((item.attempt for item in view.steps), default=1)) or 1
        if attempt is not None and attempt > last:
            raise InputError(f"there was no attempt {attempt}", hint=f"the last one was attempt {last}")
        before: dict[str, int] = {}
        vertex = chosen.vertex if chosen else None
        told = output_lines(log, record.id, vertex, after=record.first_seq - 1, until=record.last_seq)
        for where, line in told:
            if attempt not in (None, line.attempt) or not wanted.search(line.text):
                continue
            shown += 1
            name = names.get(where, "")
            if as_json:
                print_json({
                    "vertex": where, "step": name, "attempt": line.attempt, "time": line.time, "fd": line.fd,
                    "text": line.text,
                })  # fmt: skip
                continue
            if line.attempt != before.get(where, 1) and attempt is None:
                print_line(f"------ attempt {line.attempt}: {clean(name)}")
            before[where] = line.attempt
            print_line((f"{_time(line.time)}  " if timestamps else "") + clean(line.text))
    if pattern is not None and not shown:
        raise click.exceptions.Exit(1)


def _time(ns: int) -> str:
    moment = datetime.fromtimestamp(ns // 10**9).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns // 10**6 % 1000:03d}"
