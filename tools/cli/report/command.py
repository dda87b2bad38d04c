"""`refledger report`: one build as one HTML file to look at, send or attach (I13)."""

from __future__ import annotations

import re
from collections import deque

import click

from projections.audit.report import build_report
from projections.history import BuildRecord, History
from projections.mentions import Mentions
from projections.output import output_lines
from projections.progress import fold
from projections.why import explain
from storage.errors import InputError, VerificationError
from storage.interfaces.log import EventLog
from tools import roots
from tools.cli.destinations import writable
from tools.cli.report.page import Facts, Printed, page
from tools.cli.why import hides
from tools.cli.writing import print_line, write_file
from tools.text import clean, last_segment

OUTPUT = 256 * 1024
"""Characters of a step's output that the page has, the last ones."""
_ID = re.compile(r"[0-9A-Za-z]{1,64}")



@click.command(short_help="Write a build as one HTML page.")
@click.argument("build_id", metavar="BUILD")
@click.option(
    "-o", "--output", "dest", callback=writable, metavar="FILE",
    help="Where to write it; - is stdout.  [default: BUILD.html]",
)
def report(build_id: str, dest: str | None) -> None:
    """Write BUILD (an id or the beginning of one) as one HTML page that loads nothing from anywhere."""
    root = roots.root_directory()
    blobs = roots.read_blobs(root)
    with roots.read_root(root) as (log, views):
        history = History(views)
        record = history.get(build_id)
        view = fold(log, record.id, after=record.first_seq - 1, until=record.last_seq)
        found = explain(log, blobs, history, record, None, hides, Mentions(views))
        definition = None
        if found.build.definition:
            try:
                definition = roots.stored_text(root, found.build.definition)
            except (OSError, VerificationError, InputError):
                definition = None  # an old definition may be gone; the story is told without it
        audit = build_report(log, blobs, views, record, hides, found)
        text = page(Facts(record, view, found, definition, _printed(log, record), audit))
        # reason for within: of a damaged log there is a page of what lies before the damage, and then the error
        if not dest and not _ID.fullmatch(record.id):
            # reason: ids come from the log, and that from whomever: this one might lead anywhere
            raise InputError("the id of this build is no name for a file", hint="name one with -o FILE")
        path = dest or f"{record.id}.html"
        write_file(path, text.encode(), "writing the report")
        if path != "-":
            print_line(clean(path))


def _printed(log: EventLog, record: BuildRecord) -> dict[str, Printed]:
    """The last lines of every step, by vertex; memory is bounded however much a step printed."""
    lines: dict[str, deque[str]] = {}
    sizes: dict[str, int] = {}
    left_out: dict[str, int] = {}
    attempts: dict[str, int] = {}
    for vertex, line in output_lines(log, record.id, after=record.first_seq - 1, until=record.last_seq):
        kept = lines.setdefault(vertex, deque())
        new = [last_segment(line.text)]
        if attempts.get(vertex, 1) != line.attempt:
            new.insert(0, f"------ attempt {line.attempt}")
        attempts[vertex] = line.attempt
        kept.extend(new)
        sizes[vertex] = sizes.get(vertex, 0) + sum(len(text) + 1 for text in new)
        while sizes[vertex] > OUTPUT and len(kept) > 1:
            sizes[vertex] -= len(kept.popleft()) + 1
            left_out[vertex] = left_out.get(vertex, 0) + 1
    return {vertex: Printed(tuple(kept), left_out.get(vertex, 0)) for vertex, kept in lines.items()}
