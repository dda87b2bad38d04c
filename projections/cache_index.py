"""What earlier builds left to reuse: cache keys → refs, packed layers of snapshots, and who provides which blob."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from projections.fields import PUSHED, integer, mapping, maybe_text, objects, size, strings, text, texts
from projections.runner import Projection, Row, Views
from projections.usage import Usage
from projections.viewfile import kept_json
from storage.digest import canonical_json
from storage.interfaces.images import Provider
from storage.interfaces.log import Event

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The latest record of a cache key. `layers` as in CacheRecorded, bottom first; `components`: digest of the
    plaintext key; `seq`: the event that recorded it; `resolved`: the key by content, "" when that is `key`; `importer`:
    the cache elsewhere that knew it, "" for a result of this root."""

    key: str
    ref: str
    layers: tuple[Json, ...]
    components: str
    origin_build: str | None
    seq: int
    resolved: str = ""
    importer: str = ""


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer as a blob: `diff_id` of the tar, `digest` and `bytes` of the blob, `annotations` of its descriptor."""

    diff_id: str
    digest: str
    media_type: str
    bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the files of a context stay: as in ContextKept."""

    ref: str
    layer: str
    packs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What a URL gave last: as in HttpResolved."""

    digest: str
    bytes: int
    mtime: int
    etag: str
    last_modified: str


class CacheIndex:
    """Look-ups in views that hold `PROJECTION`, and usage's. They see what was folded: `Views.catch_up` first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def lookup(self, key: str) -> CacheEntry | None:
        """The latest record of `key`. Raises what Views.query raises."""
        columns = "ref, layers, components, build, seq, resolved, importer"
        rows = self._views.query(f"SELECT {columns} FROM cache WHERE key = ?", (key,))  # noqa: S608  # a constant
        for ref, layers, *rest in rows:
            return CacheEntry(key, ref, tuple(kept_json(layers)), *rest)
        return None

    def blob_of(self, snapshot: str) -> PackedLayer | None:
        """The blob that holds `snapshot` as it was, or else with clamped times, or else with the files that an eStargz
        adds; the latest such."""
        rows = self._views.query(
            f"SELECT {_PACKED} FROM packed WHERE name = ? AND NOT converted"  # noqa: S608  # a constant
            " ORDER BY substr(compression, 1, 7) = 'estargz', epoch IS NOT NULL, seq DESC LIMIT 1",
            (snapshot,),
        )
        return _packed(rows[0]) if rows else None

    def let_go(self, name: str) -> bool:
        """Were the bytes of `name` (a diff ID, or the id of a snapshot) removed here on purpose, and not made since?"""
        return Usage(self._views).tombstone(name) is not None

    def came(self, diff_id: str) -> bool:
        """Is there an event that says how the layer came here, since it was last let go?"""
        return Usage(self._views).came(diff_id)

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedLayer | None:
        """The blob that `name` (a snapshot, or the digest of a blob that was converted) was packed into last, with
        times clamped to `epoch` (None: not clamped) and as `compression` (Compression.written)."""
        rows = self._views.query(
            f"SELECT {_PACKED} FROM packed WHERE name = ? AND epoch IS ? AND compression = ?",  # noqa: S608  # a constant
            (name, epoch, compression),
        )
        return _packed(rows[0]) if rows else None

    def providers_of(self, digest: str) -> list[Provider]:
        """Everyone known to hold blob `digest`: last seen first, those that said they lost it at the end."""
        rows = self._views.query(
            "SELECT registry, repository, scope, mirrors FROM providers WHERE digest = ?"
            " ORDER BY lost, seq DESC, registry, repository",
            (digest,),
        )
        return [Provider(registry, repo, scope, tuple(kept_json(mirrors))) for registry, repo, scope, mirrors in rows]

    def page_of(self, url: str) -> Page | None:
        """The latest answer for `url`."""
        rows = self._views.query("SELECT digest, bytes, mtime, etag, last_modified FROM pages WHERE url = ?", (url,))
        return Page(*rows[0]) if rows else None

    def kept_of(self, listing: str) -> Kept | None:
        """Where the contents of `listing` stay."""
        rows = self._views.query("SELECT ref, layer, packs FROM kept WHERE listing = ?", (listing,))
        return Kept(rows[0][0], rows[0][1], tuple(kept_json(rows[0][2]))) if rows else None

    def packs(self, limit: int = 8) -> list[str]:
        """Packs of contents of contexts, the newest first, at most `limit`."""
        rows = self._views.query("SELECT pack FROM packs ORDER BY seq DESC LIMIT ?", (limit,))
        return [pack for (pack,) in rows]


_PACKED = "diff_id, digest, media_type, bytes, annotations"


def _packed(row: Row) -> PackedLayer:
    diff_id, digest, media_type, count, annotations = row
    return PackedLayer(diff_id, digest, media_type, count, kept_json(annotations))


def _context_kept(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    cursor.execute(
        "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)",
        (text(data, "listing"), text(data, "ref"), text(data, "layer"), canonical_json(texts(data, "packs")).decode()),
    )
    cursor.executemany(
        "INSERT OR REPLACE INTO packs VALUES (?, ?)", [(pack, event.seq) for pack in texts(data, "packs")]
    )


def _http_resolved(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    cursor.execute(
        "INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?)",
        (
            text(data, "url"), text(data, "digest"), size(data, "bytes"), integer(data, "mtime", 0),
            text(data, "etag", ""), text(data, "last_modified", ""),
        ),
    )  # fmt: skip


def _cache_recorded(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    cursor.execute(
        "INSERT OR REPLACE INTO cache VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            text(data, "key"), text(data, "ref"), canonical_json(objects(data, "layers")).decode(),
            text(data, "components", ""), text(data, "origin_build", "") or event.build, event.seq,
            text(data, "resolved", ""), text(data, "importer", ""),
        ),
    )  # fmt: skip


def _blob_created(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    source = text(data, "source", "")
    name = text(data, "snapshot", "") or source or text(data, "ref")
    key = name, integer(data, "epoch"), text(data, "compression", "gzip")
    cursor.execute("DELETE FROM packed WHERE name = ? AND epoch IS ? AND compression = ?", key)
    cursor.execute(
        "INSERT INTO packed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *key, text(data, "diff_id"), text(data, "digest"), text(data, "media_type", ""), size(data, "bytes"),
            canonical_json(strings(data, "annotations")).decode(), bool(source), event.seq,
        ),
    )  # fmt: skip


def _provided(cursor: sqlite3.Cursor, event: Event, digests: list[str], provider: Json) -> None:
    registry, repository = text(provider, "registry"), text(provider, "repository")
    scope = text(provider, "scope", f"repository:{repository}:pull")
    mirrors = canonical_json(texts(provider, "mirrors")).decode()
    cursor.executemany(
        "INSERT OR REPLACE INTO providers VALUES (?, ?, ?, ?, ?, 0, ?)",
        [(digest, registry, repository, scope, mirrors, event.seq) for digest in digests],
    )


def _remote_created(cursor: sqlite3.Cursor, event: Event) -> None:
    providers = objects(event.data, "providers")
    for layer in objects(event.data, "layers"):
        for provider in objects(layer, "providers") or providers:
            _provided(cursor, event, [text(layer, "digest")], provider)


def _layer_pulled(cursor: sqlite3.Cursor, event: Event) -> None:
    """A mirror is not remembered: whether it is asked is for registries.toml to say."""
    provider = mapping(event.data, "provider")
    if provider and not text(provider, "mirror_of", ""):
        _provided(cursor, event, [text(event.data, "digest")], provider)


def _pull_failed(cursor: sqlite3.Cursor, event: Event) -> None:
    if maybe_text(event.data, "class") == "missing":
        _provider_lost(cursor, event)


def _provider_lost(cursor: sqlite3.Cursor, event: Event) -> None:
    """A provider without the blob is asked last from now on: it may only have hidden it from those credentials."""
    if provider := mapping(event.data, "provider"):
        cursor.execute(
            "UPDATE providers SET lost = 1 WHERE digest = ? AND registry = ? AND repository = ?",
            (text(event.data, "digest"), text(provider, "registry"), text(provider, "repository")),
        )


def _exported(cursor: sqlite3.Cursor, event: Event) -> None:
    provider = mapping(event.data, "provider")
    if provider and maybe_text(event.data, "kind") in PUSHED:
        _provided(cursor, event, [text(layer, "digest") for layer in objects(event.data, "layers")], provider)


def _cache_exported(cursor: sqlite3.Cursor, event: Event) -> None:
    if provider := mapping(event.data, "provider"):
        _provided(cursor, event, [text(layer, "digest") for layer in objects(event.data, "layers")], provider)


def _pruned(cursor: sqlite3.Cursor, event: Event) -> None:
    """Contents of contexts that went with it are kept anew by the next step that takes them."""
    name = text(event.data, "name")
    cursor.execute(
        "DELETE FROM kept WHERE layer = ?1 OR EXISTS (SELECT 1 FROM json_each(kept.packs) WHERE value = ?1)", (name,)
    )
    cursor.execute("DELETE FROM packs WHERE pack = ?", (name,))


PROJECTION = Projection(
    name="cache_index",
    version=7,
    tables=("cache", "packed", "providers", "pages", "kept", "packs"),
    schema=(
        ("CREATE TABLE cache (key TEXT PRIMARY KEY, ref TEXT, layers TEXT, components TEXT, build TEXT, seq INTEGER,"
         " resolved TEXT, importer TEXT) WITHOUT ROWID"),
        ("CREATE TABLE packed (name TEXT, epoch INTEGER, compression TEXT, diff_id TEXT, digest TEXT, media_type TEXT,"
         " bytes INTEGER, annotations TEXT, converted INTEGER, seq INTEGER)"),
         "CREATE INDEX packed_name ON packed (name)",
        ("CREATE TABLE providers (digest TEXT, registry TEXT, repository TEXT, scope TEXT, mirrors TEXT, lost INTEGER,"
         " seq INTEGER, PRIMARY KEY (digest, registry, repository)) WITHOUT ROWID"),
        ("CREATE TABLE pages (url TEXT PRIMARY KEY, digest TEXT, bytes INTEGER, mtime INTEGER, etag TEXT,"
         " last_modified TEXT) WITHOUT ROWID"),
         "CREATE TABLE kept (listing TEXT PRIMARY KEY, ref TEXT, layer TEXT, packs TEXT) WITHOUT ROWID",
         "CREATE TABLE packs (pack TEXT PRIMARY KEY, seq INTEGER) WITHOUT ROWID",
    ),
    handlers={
        "CacheRecorded": _cache_recorded,
        "BlobCreated": _blob_created,
        "RemoteCreated": _remote_created,
        "LayerPulled": _layer_pulled,
        "PullFailed": _pull_failed,
        "Exported": _exported,
        "CacheExported": _cache_exported,
        "HttpResolved": _http_resolved,
        "ContextKept": _context_kept,
        "ProviderLost": _provider_lost,
        "Pruned": _pruned,
    },
)
