"""What names were when somebody last asked: image tags, and refs of git repositories. (URLs: see cache_index.)"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from projections.fields import PUSHED, maybe_text, text
from projections.runner import Projection, Views
from storage.errors import InputError
from storage.interfaces.log import Event
from storage.reference import parse_reference


@dataclass(frozen=True, slots=True)
class Commit:
    """What a ref of a repository was: as in GitResolved."""

    commit: str
    name: str
    tag: str


class Names:
    """Look-ups in views that hold `PROJECTION`. They see what was folded: `Views.catch_up` first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def image(self, name: str, platform: str) -> str | None:
        """The digest that `name` (a complete one) had when it was last resolved for `platform`, or pushed; where it
        never was for that one, when it was for another."""
        rows = self._views.query(
            "SELECT digest FROM resolved WHERE name = ?1 ORDER BY platform IN (?2, '') DESC, seq DESC LIMIT 1",
            (name, platform),
        )
        return rows[0][0] if rows else None

    def commit(self, remote: str, ref: str) -> Commit | None:
        """What `ref` of the repository at `remote` was last."""
        rows = self._views.query("SELECT id, name, tag FROM commits WHERE remote = ? AND ref = ?", (remote, ref))
        return Commit(*rows[0]) if rows else None


def complete(reference: str) -> str:
    """`reference` with all that docker adds to it; as it is when no image could be called so."""
    try:
        return str(parse_reference(reference))
    except InputError:
        return reference


def _source_resolved(cursor: sqlite3.Cursor, event: Event) -> None:
    if event.data.get("recalled") is not True:
        _named(cursor, event, text(event.data, "reference"), text(event.data, "platform", ""))


def _exported(cursor: sqlite3.Cursor, event: Event) -> None:
    if maybe_text(event.data, "kind") in PUSHED:
        _named(cursor, event, text(event.data, "target"), "")


def _named(cursor: sqlite3.Cursor, event: Event, reference: str, platform: str) -> None:
    cursor.execute(
        "INSERT OR REPLACE INTO resolved VALUES (?, ?, ?, ?)",
        (complete(reference), platform, text(event.data, "digest"), event.seq),
    )


def _git_resolved(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    cursor.execute(
        "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?, ?)",
        (text(data, "remote"), text(data, "ref", ""), text(data, "commit"), text(data, "name", ""),
         text(data, "tag", "")),
    )  # fmt: skip


PROJECTION = Projection(
    name="names",
    version=1,
    tables=("resolved", "commits"),
    schema=(
        ("CREATE TABLE resolved (name TEXT, platform TEXT, digest TEXT, seq INTEGER, PRIMARY KEY (name, platform))"
         " WITHOUT ROWID"),
        ("CREATE TABLE commits (remote TEXT, ref TEXT, id TEXT, name TEXT, tag TEXT, PRIMARY KEY (remote, ref))"
         " WITHOUT ROWID"),
    ),
    handlers={"SourceResolved": _source_resolved, "Exported": _exported, "GitResolved": _git_resolved},
)
