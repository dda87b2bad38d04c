"""`refledger why` and `refledger diff`: what the log says about hits and misses, for people and as JSON (I13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from projections.asked import read_build, step_keys
from projections.difference import difference
from projections.history import History
from projections.mentions import Mentions
from projections.records import read_records
from projections.why import explain
from storage.errors import InputError
from tools import roots
from tools.cli.differing import whole_difference
from tools.cli.explained import all_steps, key_lines, one_step
from tools.cli.moment import find_step
from tools.cli.writing import as_json_option, columns, print_cut, print_json

WIDE = 10_000
"""Columns where the text does not go to a terminal: nothing is cut."""


@click.command(short_help="Tell why steps ran or were cached.")
@click.argument("build_id", metavar="BUILD")
@click.argument("step", required=False)
@click.option("--against", metavar="BUILD", help="Compare with this build, not the one before of this definition.")
@click.option("--key", "with_key", is_flag=True, help="With STEP: also all that its cache key is made of.")
@as_json_option
def why(build_id: str, step: str | None, against: str | None, with_key: bool, as_json: bool) -> None:
    """Tell why BUILD's steps ran or were cached, or only STEP (its number, or a part of its name)."""
    if with_key and step is None:
        raise InputError("--key is about one step", hint="name it behind the build")
    path = roots.root_directory()
    blobs = roots.read_blobs(path)
    with roots.read_root(path) as (log, views):
        history = History(views)
        found = explain(log, blobs, history, history.get(build_id), against, hides, Mentions(views))
        known = {record.id: record for record in history.list()}
        if step is None:
            if as_json:
                print_json(found.to_json())
            else:
                _write(all_steps(found, known, columns(WIDE)))
            return
        shown = [item for item in found.build.steps.values() if item.number]
        chosen = find_step(shown, found.build.id, step)
        verdict = next((item for item in found.verdicts if item.step.vertex == chosen.vertex), None)
        if as_json:
            told = verdict.to_json() if verdict else {"number": chosen.number, "name": chosen.name, "outcome": "source"}
            ids = {"build": found.build.id, "against": found.against.id if found.against else None}
            keys = [asdict(key) for key in step_keys(blobs, found.build, chosen.vertex)]
            print_json({"origin": None, **ids, **told, "keys": keys})
        else:
            _write(one_step(found, chosen, verdict, columns(WIDE)))
            if with_key:
                _write(key_lines(step_keys(blobs, found.build, chosen.vertex)))


@click.command(short_help="Tell what differs between two builds.")
@click.argument("old", metavar="BUILD")
@click.argument("new", metavar="BUILD")
@as_json_option
def diff(old: str, new: str, as_json: bool) -> None:
    """Tell what differs between two builds: options, sources, definition, steps and results."""
    path = roots.root_directory()
    with roots.read_root(path) as (log, views):
        history, blobs = History(views), roots.read_blobs(path)
        one, two = (read_build(log, blobs, history.get(name)) for name in (old, new))
        found = difference(blobs, one, two, hides, read_records(log, None))
        if as_json:
            print_json(found.to_json())
        else:
            _write(whole_difference(found))


def _write(lines: Iterator[str]) -> None:
    limit = columns(WIDE)
    for line in lines:
        print_cut(line, limit)


def hides(patterns: Sequence[str], path: str) -> bool:
    """Do `patterns` of a .dockerignore hide `path`?"""
    from engine.frontend.dockerignore import IgnoreMatcher  # only for builds whose patterns differ

    return IgnoreMatcher(patterns).excluded(path)
