"""`refledger browse`: a root or a bundle in the terminal, to walk through. Only reads (I13)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from projections.mentions import Mentions
from projections.runner import Views
from projections.standard import STANDARD
from storage.bundle.reading import Bundle, read_bundle
from storage.digest import Digest
from storage.errors import InputError
from tools import roots
from tools.cli.browse.nodes import Source, tree
from tools.layer_files import BundledFiles, RootFiles
from tools.text import clean


@click.command(short_help="Walk through builds in the terminal.")
@click.argument("place", metavar="[ROOT|FILE]", required=False, type=click.Path(path_type=Path))
def browse(place: Path | None) -> None:
    """Walk through the builds of a root, or the one in a bundle: steps, why they ran, refs, layers, files, events.

    Arrow keys move, enter goes in, escape goes back, typing filters; ctrl+c leaves.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError("browse needs a terminal", hint="refledger history, show and why print to anywhere")
    with open_source(place) as source:
        from tools.cli.browse.browser import Browser

        Browser(tree(source)).run()


@contextmanager
def open_source(place: Path | None) -> Iterator[Source]:
    """The root at `place` (None: the current one) or the bundle there, for reading. Raises InputError, LogError, and
    VerificationError of a damaged one when that was looked at."""
    if place is not None and not place.is_dir():
        with _open_bundle(place) as source:
            yield source
        return
    root = place or roots.root_directory()
    with roots.read_root(root) as (log, views):
        yield Source(str(root), log, views, roots.read_blobs(root), RootFiles(root), mentions=Mentions(views))


@contextmanager
def _open_bundle(path: Path) -> Iterator[Source]:
    if not path.exists():
        raise InputError("no such root or bundle", where=clean(str(path)), hint="name a directory or a file")
    found = read_bundle(path)
    views = Views(None, STANDARD)
    try:
        views.catch_up(found.log)
        yield Source(path.name, found.log, views, _Small(found), BundledFiles(found), only=found.index.build)
    finally:
        views.close()
    if found.damage is not None:
        raise found.damage


@dataclass(frozen=True, slots=True)
class _Small:
    """The blobs of a bundle that were checked when it was read."""

    bundle: Bundle

    def get(self, digest: Digest) -> bytes:
        """See Blobs."""
        try:
            return self.bundle.small[digest]
        except KeyError:
            raise FileNotFoundError(str(digest)) from None


