"""`refledger audit report`: what the log alone proves of a build or a digest (I13)."""

from __future__ import annotations

import sys

import click

from projections.audit.report import report as audit_report
from tools import roots
from tools.auditing.report_text import sections
from tools.cli.why import hides
from tools.cli.writing import as_json_option, columns, print_cut, print_json

WIDE = 120
"""Columns of the text where it does not go to a terminal; longer words stay whole there."""
CUT = 10_000


@click.command(short_help="Tell what the log proves of a build.")
@click.argument("name", metavar="BUILD|DIGEST")
@click.option("--reverse", is_flag=True, help="Also every build that stands on it, at once or through others.")
@as_json_option
def report(name: str, reverse: bool, as_json: bool) -> None:
    """Tell what the log proves of BUILD (an id), or of the build that made DIGEST (of an image, layer, config, ref,
    context or commit), each statement with the numbers of the events that say so."""
    path = roots.root_directory()
    with roots.read_root(path) as (log, views):
        told = audit_report(log, roots.read_blobs(path), views, name, hides, reverse=reverse)
        if as_json:
            print_json(told.to_json())
            return
        width = columns(WIDE)
        for number, (title, lines) in enumerate(sections(told, width)):
            for line in (*([""] if number else []), title, *lines):
                print_cut(line, width if sys.stdout.isatty() else CUT)
