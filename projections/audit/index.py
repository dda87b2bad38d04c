"""What an audit asks of the whole log: what names were over time, and which checkpoints vouch for which events."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from projections.fields import git_name, integer, text, texts
from projections.runner import Projection, Views
from storage.interfaces.log import Event


@dataclass(frozen=True, slots=True)
class Resolution:
    """`name` (`kind` image, http or git, as written; `platform` "" where there is none) was `digest` (of git: the
    commit) each of the `count` times that it was resolved from event seqs[0] to seqs[-1]; times in UTC ns.
    `recalled`: nobody was asked at the first of them."""

    kind: str
    name: str
    platform: str
    digest: str
    count: int
    first: int
    last: int
    recalled: bool
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed tree head that covers the first `size` events; `published`: where one that does was sent first."""

    origin: str
    size: int
    root: str
    seqs: tuple[int, ...]
    published: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Redaction:
    """`count` values of events of a build were erased at `time` (UTC ns), for good, by whom and why."""

    by: str
    reason: str
    count: int
    time: int
    seq: int


class AuditIndex:
    """Look-ups in views that hold `PROJECTION`. They see what was folded: `Views.catch_up` first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def resolutions(self, kind: str, name: str, platform: str) -> list[Resolution]:
        """What a name was, in order; one entry for as long as it stayed the same."""
        rows = self._views.query(
            "SELECT digest, count, began, ended, recalled, seq, last_seq FROM resolutions"
            " WHERE kind = ? AND name = ? AND platform = ? ORDER BY seq",
            (kind, name, platform),
        )
        return [
            Resolution(
                kind, name, platform, digest, count, began, ended, bool(recalled), tuple(dict.fromkeys((seq, last)))
            )
            for digest, count, began, ended, recalled, seq, last in rows
        ]  # fmt: skip

    def covering(self, seq: int) -> Checkpoint | None:
        """The first checkpoint that covers event `seq`, and where one that covers it was published."""
        rows = self._views.query(
            "SELECT origin, size, root, seq FROM checkpoints WHERE size >= ? ORDER BY seq LIMIT 1", (seq,)
        )
        if not rows:
            return None
        sent = self._views.query("SELECT target, seq FROM published WHERE size >= ? ORDER BY seq LIMIT 1", (seq,))
        origin, size, root, own = rows[0]
        return Checkpoint(origin, size, root, (own, *(at for _, at in sent)), tuple(target for target, _ in sent))

    def redactions(self, build: str) -> list[Redaction]:
        """What was erased of the events of a build, in order."""
        rows = self._views.query(
            "SELECT \"by\", reason, count, time, seq FROM redactions WHERE build = ? ORDER BY seq", (build,)
        )
        return [Redaction(*row) for row in rows]


# ---------------------------------------------------------------- folding


def _resolved(cursor: sqlite3.Cursor, event: Event, kind: str, name: str, platform: str, digest: str) -> None:
    rows = cursor.execute(
        "SELECT seq, digest FROM resolutions WHERE kind = ? AND name = ? AND platform = ? ORDER BY seq DESC LIMIT 1",
        (kind, name, platform),
    ).fetchall()
    if rows and rows[0][1] == digest:
        cursor.execute(
            "UPDATE resolutions SET count = count + 1, ended = ?, last_seq = ?"
            " WHERE kind = ? AND name = ? AND platform = ? AND seq = ?",
            (event.time, event.seq, kind, name, platform, rows[0][0]),
        )
        return
    recalled = event.data.get("recalled") is True
    cursor.execute(
        "INSERT INTO resolutions VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?)",
        (kind, name, platform, event.seq, digest, event.time, event.time, recalled, event.seq),
    )


def _image(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    _resolved(cursor, event, "image", text(data, "reference"), text(data, "platform", ""), text(data, "digest"))


def _http(cursor: sqlite3.Cursor, event: Event) -> None:
    _resolved(cursor, event, "http", text(event.data, "url"), "", text(event.data, "digest"))


def _git(cursor: sqlite3.Cursor, event: Event) -> None:
    _resolved(cursor, event, "git", git_name(event.data), "", text(event.data, "commit"))


def _signed(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    row = (event.seq, integer(data, "size"), text(data, "origin", ""), text(data, "root", ""))
    cursor.execute("INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?, ?)", row)


def _published(cursor: sqlite3.Cursor, event: Event) -> None:
    row = (event.seq, integer(event.data, "size"), text(event.data, "target", ""))
    cursor.execute("INSERT OR IGNORE INTO published VALUES (?, ?, ?)", row)


def _redacted(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    row = (
        event.seq, text(data, "build", ""), text(data, "by", ""), text(data, "reason", ""),
        len(texts(data, "digests")), event.time,
    )  # fmt: skip
    cursor.execute("INSERT OR IGNORE INTO redactions VALUES (?, ?, ?, ?, ?, ?)", row)


PROJECTION = Projection(
    name="audit",
    version=1,
    tables=("resolutions", "checkpoints", "published", "redactions"),
    schema=(
        ("CREATE TABLE resolutions (kind TEXT, name TEXT, platform TEXT, seq INTEGER, digest TEXT, count INTEGER,"
         " began INTEGER, ended INTEGER, recalled INTEGER, last_seq INTEGER, PRIMARY KEY (kind, name, platform, seq))"
         " WITHOUT ROWID"),
         "CREATE TABLE checkpoints (seq INTEGER PRIMARY KEY, size INTEGER, origin TEXT, root TEXT)",
         "CREATE TABLE published (seq INTEGER PRIMARY KEY, size INTEGER, target TEXT)",
        ('CREATE TABLE redactions (seq INTEGER PRIMARY KEY, build TEXT, "by" TEXT, reason TEXT, count INTEGER,'
        " time INTEGER)"),
        "CREATE INDEX redactions_build ON redactions (build)",
    ),
    handlers={
        "SourceResolved": _image,
        "HttpResolved": _http,
        "GitResolved": _git,
        "CheckpointSigned": _signed,
        "CheckpointPublished": _published,
        "PayloadRedacted": _redacted,
    },
)
