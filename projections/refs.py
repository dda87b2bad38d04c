"""Refs: where their layers can be read, whether they are here, and the life of each from the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from projections.fields import BAD_EVENT, malformed, mapping, maybe_text, objects, size, text, texts
from projections.mentions import Mentions, events_at
from projections.runner import Projection, Row, Views
from projections.viewfile import kept_json
from storage.digest import canonical_json
from storage.errors import InputError
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RefRecord:
    """One ref. `kind`: how it came to be, remote (an image) or local (a step's result), or blob; `layers` bottom first
    and `providers` as in the events; `build` and `seq` of its creation; `materialized`: mountable here, as far as the
    log says; `bytes`: of a remote's blobs, of a local's own diff."""

    ref: str
    kind: str
    layers: tuple[Json, ...]
    providers: tuple[Json, ...]
    parent: str | None
    build: str | None
    seq: int
    materialized: bool
    bytes: int

    def to_json(self) -> Json:
        """The fields, by name."""
        return {**asdict(self), "layers": list(self.layers), "providers": list(self.providers)}


@dataclass(frozen=True, slots=True)
class LifeEvent:
    """One event of a ref's life; `time` in UTC ns, `summary` one line for people (not yet escaped)."""

    seq: int
    time: int
    type: str
    build: str | None
    summary: str


_COLUMNS = "ref, kind, layers, providers, parent, build, seq, materialized, bytes"


class Refs:
    """Look-ups in views that hold `PROJECTION`, and usage's. They see what was folded: `Views.catch_up` first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def list(self, limit: int | None = None) -> list[RefRecord]:
        """Refs, the newest first; at most `limit`."""
        sql = f"SELECT {_COLUMNS} FROM refs ORDER BY seq DESC, ref LIMIT ?"  # noqa: S608  # a constant
        return [self._record(row) for row in self._views.query(sql, (-1 if limit is None else limit,))]

    def get(self, ref: str) -> RefRecord:
        """The ref whose id is, or alone begins with, `ref`; `sha256:` may be left out. Or the blob of a layer, as a
        record of kind `blob`, with that layer alone. Raises InputError."""
        rows = self._views.query(
            f"SELECT {_COLUMNS} FROM refs"  # noqa: S608  # a constant
            " WHERE substr(ref, 1, length(?1)) = ?1 OR substr(ref, 1, length(?1) + 7) = 'sha256:' || ?1"
            " ORDER BY ref <> ?1, seq DESC LIMIT 4",
            (ref,),
        )
        if not ref or not rows:
            if ref and (blob := self._blob(ref)) is not None:
                return blob
            raise InputError(f"no ref {ref[:80]!r}", hint="`refledger refs` lists the refs of this root")
        if len(rows) > 1 and rows[0][0] != ref:
            raise InputError(f"several refs begin with {ref!r}: {', '.join(row[0] for row in rows)}")
        return self._record(rows[0])

    def _blob(self, digest: str) -> RefRecord | None:
        """The one blob whose digest is, or begins with, `digest`, as the refs that hold it tell. Raises InputError."""
        rows = self._views.query(
            "SELECT layer.value, refs.providers, refs.seq FROM refs, json_each(refs.layers) AS layer"
            " WHERE substr(json_extract(layer.value, '$.digest'), 1, length(?1)) = ?1"
            " OR substr(json_extract(layer.value, '$.digest'), 1, length(?1) + 7) = 'sha256:' || ?1 ORDER BY refs.seq",
            (digest,),
        )
        layers = [kept_json(row[0]) for row in rows]
        if len({layer["digest"] for layer in layers}) > 1:
            raise InputError(f"several blobs begin with {digest!r}", hint="write more of the digest")
        if not layers:
            return None
        providers = [provider for layer, row in zip(layers, rows, strict=True)
                     for provider in layer.get("providers") or kept_json(row[1])]  # fmt: skip
        unique = {canonical_json(provider): provider for provider in providers}
        name, count = str(layers[0]["digest"]), layers[0].get("size")
        return RefRecord(
            name, "blob", (layers[0],), tuple(unique.values()), None, None, rows[0][2], False,
            count if isinstance(count, int) else 0,
        )  # fmt: skip

    def _record(self, row: Row) -> RefRecord:
        values = list(row)
        values[2], values[3] = tuple(kept_json(row[2])), tuple(kept_json(row[3]))
        names = [layer.get("snapshot") or layer.get("diff_id") for layer in values[2]]
        let_go = self._views.query(
            "SELECT 1 FROM tombstones WHERE kind <> 'blob' AND name IN (SELECT value FROM json_each(?)) LIMIT 1",
            (canonical_json(names).decode(),),
        )
        values[7] = bool(row[7]) and not let_go
        return RefRecord(*values)


# ---------------------------------------------------------------- folding


def _remote_created(cursor: sqlite3.Cursor, event: Event) -> None:
    """An image's ref is its chain ID, so builds create it again and again: the first made it, all add providers."""
    data = event.data
    ref, layers, providers = text(data, "ref"), objects(data, "layers"), objects(data, "providers")
    known = cursor.execute("SELECT providers FROM refs WHERE ref = ?", (ref,)).fetchone()
    if known is not None:
        merged = kept_json(known[0])
        merged += [provider for provider in providers if provider not in merged]
        cursor.execute("UPDATE refs SET providers = ? WHERE ref = ?", (canonical_json(merged).decode(), ref))
        return
    total = sum(size(layer, "size") for layer in layers)
    _insert(cursor, event, ("remote", layers, providers, None, 0, total))


def _local_created(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    parent = maybe_text(data, "parent")
    _insert(cursor, event, ("local", objects(data, "layers"), [], parent, 1, size(data, "bytes")))


def _insert(
    cursor: sqlite3.Cursor, event: Event, facts: tuple[str, list[Json], list[Json], str | None, int, int]
) -> None:
    kind, layers, providers, parent, materialized, total = facts
    cursor.execute(
        "INSERT OR REPLACE INTO refs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            text(event.data, "ref"), kind, canonical_json(layers).decode(), canonical_json(providers).decode(), parent,
            event.build, event.seq, materialized, total,
        ),
    )  # fmt: skip


def _materialized(cursor: sqlite3.Cursor, event: Event) -> None:
    if event.data.get("whole", True) is True:
        cursor.execute("UPDATE refs SET materialized = 1 WHERE ref = ?", (text(event.data, "ref"),))


PROJECTION = Projection(
    name="refs",
    version=1,
    tables=("refs",),
    schema=(
        ("CREATE TABLE refs (ref TEXT PRIMARY KEY, kind TEXT, layers TEXT, providers TEXT, parent TEXT, build TEXT,"
         " seq INTEGER, materialized INTEGER, bytes INTEGER) WITHOUT ROWID"),
         "CREATE INDEX refs_seq ON refs (seq)",
    ),
    handlers={
        "RemoteCreated": _remote_created,
        "LocalCreated": _local_created,
        "Materialized": _materialized,
    },
)


# ---------------------------------------------------------------- lives


def _who(provider: Json) -> str:
    meant = text(provider, "mirror_of", "")
    name = f"{text(provider, 'registry', '?')}/{text(provider, 'repository', '?')}"
    return f"{name} (mirror of {meant})" if meant else name


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _export_summary(data: Json) -> str:
    layers = objects(data, "layers")
    moved = ", ".join(f"{_short(text(x, 'digest', ''))} {text(x, 'transport', '?')}" for x in layers)
    return f"exported to {text(data, 'target', '?')}" + (f": {moved}" if moved else "")


def _blob_summary(data: Json) -> str:
    digest, source = text(data, "digest", ""), text(data, "source", "")
    if source == digest:
        return f"{_short(source)} has no later times: it stays what it is"
    made = f"converted from {_short(source)}" if source else "packed"
    return f"{made} into {_short(digest)} ({text(data, 'compression', 'gzip')}), {size(data, 'bytes')} bytes"


_SUMMARIES: dict[str, Callable[[Json], str]] = {
    "RemoteCreated": lambda d: (
        f"pointer to {len(objects(d, 'layers'))} layers at {', '.join(map(_who, objects(d, 'providers'))) or 'nowhere'}"
    ),
    "LocalCreated": lambda d: f"result of a step, {size(d, 'bytes')} bytes on this disk",
    "LayerStored": lambda d: f"the layer came as file {text(d, 'name', '?')}",
    "CacheQueried": lambda d: f"cache {text(d, 'outcome', '?')} {_short(text(d, 'key', ''))}",
    "CacheRecorded": lambda d: f"recorded under cache key {_short(text(d, 'key', ''))}",
    "VertexCached": lambda d: f"reused as {text(d, 'name', '')}",
    "VertexStarted": lambda d: f"input of {text(d, 'name', '')}",
    "VertexCompleted": lambda d: f"output of {text(d, 'name', '')}",
    "MaterializationRequested": lambda d: (
        f"wanted here for {text(d, 'reason', '?')}: {len(texts(d, 'layers'))} layers, {size(d, 'bytes')} bytes to come"
    ),
    "SourceTried": lambda d: (
        f"{_short(text(d, 'name', ''))}: {text(d, 'verb', '?')} at {_who(mapping(d, 'provider'))}:"
        f" {text(d, 'outcome', '?')}, {d.get('status') or 'no answer'}"
        + (f": {text(d, 'error', '')}" if d.get("error") else "")
    ),
    "PullStarted": lambda d: f"{_short(text(d, 'digest', ''))} asked of {_who(mapping(d, 'provider'))}",
    "PullFailed": lambda d: (
        f"{_short(text(d, 'digest', ''))} not to be had of {_who(mapping(d, 'provider'))}: {text(d, 'error', '')}"
    ),
    "LayerPulled": lambda d: (
        f"{_short(text(d, 'digest', ''))} came from {_who(mapping(d, 'provider'))}, {size(d, 'bytes')} bytes,"
        f" verified {' and '.join(texts(d, 'verified')) or 'not at all'}"
    ),
    "LayerLaidOut": lambda d: (
        f"{_short(text(d, 'digest', '') or text(d, 'diff_id', ''))} "
        + ("unpacked from its blob, which lay here" if text(d, "how", "") == "unpacked" else "found mountable here")
        + f", verified by {' and '.join(texts(d, 'verified')) or 'nothing'}"
    ),
    "LayerTocRead": lambda d: (
        f"{_short(text(d, 'digest', ''))}: table of contents read, {size(d, 'bytes')} bytes"
        f" of {_who(mapping(d, 'provider'))}"
    ),
    "FilesFetched": lambda d: (
        f"{_short(text(d, 'digest', ''))}: {size(d, 'files')} files came from {_who(mapping(d, 'provider'))},"
        f" {size(d, 'bytes')} bytes, {size(d, 'avoided')} avoided"
    ),
    "Materialized": lambda d: (
        f"{'mountable' if d.get('whole', True) else 'what was asked for is'} here, {size(d, 'bytes')} bytes fetched"
        + (f", {size(d, 'avoided')} avoided" if size(d, "avoided") else "")
    ),
    "MaterializationFailed": lambda d: f"not to be had: {text(d, 'error', '')}",
    "BlobCreated": _blob_summary,
    "Exported": _export_summary,
    "Demoted": lambda d: (
        f"{text(d, 'kind', '?')} let go, {size(d, 'bytes')} bytes, as"
        f" {', '.join(map(_who, objects(d, 'providers')))} has it"
        f" ({text(d, 'by', '')}, {text(d, 'policy', '?')})"
    ),
    "Pruned": lambda d: (
        f"{text(d, 'kind', '?')} let go, {size(d, 'bytes')} bytes ({text(d, 'by', '')}, {text(d, 'policy', '?')})"
    ),
}


_LET_GO = frozenset({"Demoted", "Pruned"})


def life(
    log: EventLog, record: RefRecord, *, until: int | None = None, mentions: Mentions | None = None
) -> list[LifeEvent]:
    """What happened to a ref, in order: events up to `until` that name it or one of its blobs; without `mentions` the
    whole log is read for it. Raises LogError."""
    blobs = {layer["digest"] for layer in record.layers if isinstance(layer.get("digest"), str)}
    names = {layer.get("snapshot") or layer.get("diff_id") for layer in record.layers}
    kinds = frozenset(_SUMMARIES)
    if mentions is None:
        events = log.read(after=record.seq - 1, until=until, types=kinds)
    else:
        events = events_at(log, _mentioned(log, record, mentions, until))
    out = []
    for event in events:
        try:
            let_go = event.type in _LET_GO and event.data.get("name") in names
            if not let_go and not _concerns(event, record.ref, blobs):
                continue
            if event.type == "BlobCreated":
                blobs.add(text(event.data, "digest"))
            out.append(LifeEvent(event.seq, event.time, event.type, event.build, _SUMMARIES[event.type](event.data)))
        except BAD_EVENT as error:
            raise malformed(event, error) from error
    return out


def _mentioned(log: EventLog, record: RefRecord, mentions: Mentions, until: int | None) -> set[int]:
    names = {record.ref} | {str(layer[key]) for layer in record.layers for key in ("digest", "diff_id", "snapshot")
                            if layer.get(key)}  # fmt: skip
    packed = events_at(log, mentions.seqs({record.ref}, {"BlobCreated"}, until=until))
    names |= {digest for event in packed if isinstance(digest := event.data.get("digest"), str)}
    return {seq for seq in mentions.seqs(names, _SUMMARIES, until=until) if seq >= record.seq}


def _concerns(event: Event, ref: str, blobs: set[Any]) -> bool:
    data = event.data
    if "ref" in data:
        return bool(data["ref"] == ref or (event.type == "BlobCreated" and data.get("snapshot") == ref))
    if ref in texts(data, "inputs") or ref in texts(data, "outputs"):
        return True
    if event.type == "Exported":
        return any(text(layer, "digest", "") in blobs for layer in objects(data, "layers"))
    if event.type == "SourceTried":
        return data.get("name") in blobs and data.get("outcome") != "ok"
    return data.get("digest") in blobs
