"""Who uses what of this root, and what was let go: folded from the log, joined by projections/inventory.py with what
lies on the disk.

Items are named `<kind>/<name>` as storage/usage.py names them: `layer/<diff ID>`, `snapshot/<id>`, `blob/<digest>`,
`cachemount/<digest>/<instance>`. A use of a ref is a use of all its layers, so nothing was used later than what it
stands on. Tags belong to the latest build that completed with them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from projections.fields import PUSHED, build_of, integer, mapping, maybe_text, objects, size, text, texts
from projections.runner import Projection, Views
from storage.digest import canonical_json
from storage.interfaces.log import Event

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What was let go on purpose: by the event `seq` at `time` (UTC ns), which freed `bytes`. `demoted`: a provider
    had it then; `policy`: what asked for it; `by` whom."""

    seq: int
    time: int
    policy: str
    by: str
    bytes: int
    demoted: bool


class Usage:
    """Look-ups in views that hold `PROJECTION`. They see what was folded: `Views.catch_up` first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def tombstone(self, name: str) -> Tombstone | None:
        """The latest letting go of the layer, snapshot or blob `name` (diff ID, snapshot id or digest) that it did not
        come back from since."""
        rows = self._views.query(
            "SELECT seq, time, policy, by, bytes, demoted FROM tombstones WHERE name = ? ORDER BY seq DESC LIMIT 1",
            (name,),
        )
        for seq, time, policy, by, count, demoted in rows:
            return Tombstone(seq, time, policy, by, count, bool(demoted))
        return None

    def came(self, diff_id: str) -> bool:
        """Was layer `diff_id` said to come here, and not to be let go since?"""
        used = self._views.query("SELECT 1 FROM uses WHERE item = ? LIMIT 1", (f"layer/{diff_id}",))
        return bool(used) and self.tombstone(diff_id) is None

    def documents(self) -> dict[str, str]:
        """Stored blobs that the log names, and what they are: record, graph, packed (a layer), context or source."""
        return dict(self._views.query("SELECT digest, role FROM stored"))

    def claims(self, builds: Iterable[str]) -> frozenset[str]:
        """Items that `builds` have named so far, and what holds the same: their leases."""
        listed = (canonical_json(list(builds)).decode(),)
        direct = self._views.query(
            "SELECT DISTINCT item FROM uses WHERE build IN (SELECT value FROM json_each(?))", listed
        )
        layers = self._views.query(
            "SELECT DISTINCT layers.value FROM uses JOIN used_refs ON used_refs.ref = substr(uses.item, 5),"
            " json_each(used_refs.layers) AS layers"
            " WHERE substr(uses.item, 1, 4) = 'ref/' AND uses.build IN (SELECT value FROM json_each(?))",
            listed,
        )
        claimed = {item for (item,) in [*direct, *layers] if not item.startswith("ref/")}
        names = (canonical_json(sorted(claimed)).decode(),)
        copies = self._views.query(
            "SELECT digest, diff_id FROM copies WHERE item IN (SELECT value FROM json_each(?))", names
        )
        for digest, diff_id in copies:
            claimed |= {f"blob/{digest}", f"layer/{diff_id}"}
        return frozenset(claimed)

    def last_use(self, item: str) -> int:
        """The `seq` of the latest use of `item` or of a ref that it is a layer of, 0 for none."""
        name = item.partition("/")[2]
        rows = self._views.query(
            "WITH same(item) AS (SELECT ?1 UNION SELECT item FROM copies WHERE digest = ?2"
            " UNION SELECT item FROM copies WHERE diff_id = ?2),"
            " named(item) AS (SELECT item FROM same UNION SELECT 'ref/' || ref FROM layers_of WHERE item IN same)"
            " SELECT max(seq) FROM uses WHERE item IN named",
            (item, name),
        )
        return rows[0][0] or 0


# ---------------------------------------------------------------- folding


def _use(cursor: sqlite3.Cursor, event: Event, items: Iterable[str]) -> None:
    cursor.executemany(
        "INSERT OR REPLACE INTO uses VALUES (?, ?, ?, ?)",
        [(item, build_of(event), event.seq, event.time) for item in items],
    )


def _use_refs(cursor: sqlite3.Cursor, event: Event, refs: Iterable[str | None]) -> None:
    _use(cursor, event, [f"ref/{ref}" for ref in refs if ref])


def layer_item(layer: Json) -> str:
    """The item of a layer as events have it; "" for one that has no name."""
    if snapshot := maybe_text(layer, "snapshot"):
        return f"snapshot/{snapshot}"
    diff_id = maybe_text(layer, "diff_id")
    return f"layer/{diff_id}" if diff_id else ""


def _ref(cursor: sqlite3.Cursor, event: Event, layers: list[Json]) -> None:
    ref = text(event.data, "ref")
    items = [item for layer in layers if (item := layer_item(layer))]
    known = cursor.execute("SELECT 1 FROM used_refs WHERE ref = ?", (ref,)).fetchone()
    if known is None:
        cursor.execute("INSERT INTO used_refs VALUES (?, ?, '')", (ref, canonical_json(items).decode()))
        cursor.executemany("INSERT OR IGNORE INTO layers_of VALUES (?, ?)", [(item, ref) for item in items])
    for layer in layers:
        if (item := layer_item(layer)) and maybe_text(layer, "digest"):
            _copy(cursor, item, layer, maybe_text(layer, "diff_id") or "", size(layer, "size"))
    _use_refs(cursor, event, [ref])


def _copy(
    cursor: sqlite3.Cursor, item: str, blob: Json, diff_id: str, count: int, *, converted: bool = False
) -> None:
    media_type = maybe_text(blob, "mediaType") or maybe_text(blob, "media_type") or ""
    row = (item, text(blob, "digest"), diff_id, media_type, count, converted)
    cursor.execute("INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?, ?)", row)


def _remote_created(cursor: sqlite3.Cursor, event: Event) -> None:
    _ref(cursor, event, objects(event.data, "layers"))


def _local_created(cursor: sqlite3.Cursor, event: Event) -> None:
    layers = objects(event.data, "layers")
    _ref(cursor, event, layers)
    if layers and maybe_text(layers[-1], "snapshot") == text(event.data, "ref"):  # else it only points
        _returned(cursor, layer_item(layers[-1]))


def _cache_recorded(cursor: sqlite3.Cursor, event: Event) -> None:
    _ref(cursor, event, objects(event.data, "layers"))
    _document(cursor, maybe_text(event.data, "components"))


def _blob_created(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    if source := text(data, "source", ""):
        _converted(cursor, event, source)
        return
    snapshot = text(data, "snapshot", "") or text(data, "ref")
    digest = text(data, "digest")
    _copy(cursor, f"snapshot/{snapshot}", data, text(data, "diff_id"), size(data, "bytes"))
    cursor.execute("INSERT OR REPLACE INTO stored VALUES (?, 'packed')", (digest,))
    _use(cursor, event, [f"blob/{digest}", f"snapshot/{snapshot}"])
    _returned(cursor, f"blob/{digest}")


def _converted(cursor: sqlite3.Cursor, event: Event, source: str) -> None:
    """Another blob of the layers that have blob `source`; of none, where that was found to be what it should become."""
    data = event.data
    if (digest := text(data, "digest")) == source:
        return
    for (item,) in cursor.execute("SELECT item FROM copies WHERE digest = ?", (source,)).fetchall():
        _copy(cursor, item, data, text(data, "diff_id"), size(data, "bytes"), converted=True)
    cursor.execute("INSERT OR REPLACE INTO stored VALUES (?, 'packed')", (digest,))
    _use(cursor, event, [f"blob/{digest}"])
    _returned(cursor, f"blob/{digest}")


def _layer_stored(cursor: sqlite3.Cursor, event: Event) -> None:
    layer = mapping(event.data, "layer")
    digest = text(layer, "digest")
    _ref(cursor, event, [layer])
    cursor.execute("INSERT OR REPLACE INTO stored VALUES (?, 'packed')", (digest,))
    _use(cursor, event, [f"blob/{digest}"])
    _returned(cursor, f"blob/{digest}")


def _pull_started(cursor: sqlite3.Cursor, event: Event) -> None:
    _use(cursor, event, [f"partial/{text(event.data, 'digest')}"])


def _layer_pulled(cursor: sqlite3.Cursor, event: Event) -> None:
    if diff_id := maybe_text(event.data, "diff_id"):
        _use(cursor, event, [f"layer/{diff_id}"])
        _returned(cursor, f"layer/{diff_id}")
        same = cursor.execute("SELECT item FROM copies WHERE diff_id = ? AND NOT converted", (diff_id,))
        for (item,) in same.fetchall():
            _returned(cursor, item)


def _returned(cursor: sqlite3.Cursor, item: str) -> None:
    kind, _, name = item.partition("/")
    cursor.execute("DELETE FROM tombstones WHERE kind = ? AND name = ?", (kind, name))


def _queried(cursor: sqlite3.Cursor, event: Event) -> None:
    _use_refs(cursor, event, [maybe_text(event.data, "ref")])
    _document(cursor, maybe_text(event.data, "components"))


def _wanted(cursor: sqlite3.Cursor, event: Event) -> None:
    _use_refs(cursor, event, [text(event.data, "ref")])


def _vertex_started(cursor: sqlite3.Cursor, event: Event) -> None:
    _use_refs(cursor, event, texts(event.data, "inputs"))


def _vertex_done(cursor: sqlite3.Cursor, event: Event) -> None:
    outputs = texts(event.data, "outputs")
    _use_refs(cursor, event, outputs)
    name = text(event.data, "name", "")
    cursor.executemany("UPDATE used_refs SET name = ? WHERE ref = ? AND name = ''", [(name, ref) for ref in outputs])


def _context_kept(cursor: sqlite3.Cursor, event: Event) -> None:
    packs = texts(event.data, "packs")
    cursor.executemany("INSERT OR REPLACE INTO stored VALUES (?, 'context')", [(pack,) for pack in packs])
    _use(cursor, event, [f"blob/{pack}" for pack in packs])
    _use_refs(cursor, event, [text(event.data, "ref")])
    _document(cursor, maybe_text(event.data, "listing"))


def _export_started(cursor: sqlite3.Cursor, event: Event) -> None:
    _use(cursor, event, [f"blob/{digest}" for digest in texts(event.data, "layers")])


def _exported(cursor: sqlite3.Cursor, event: Event) -> None:
    if maybe_text(event.data, "kind") == "index":
        _document(cursor, maybe_text(event.data, "digest"))
    if maybe_text(event.data, "kind") in PUSHED:
        _tagged(cursor, event, [text(event.data, "target", "")])


def _cachemount_used(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    item = f"cachemount/{text(data, 'cache', '').partition(':')[2]}/{integer(data, 'instance', 0)}"
    _use(cursor, event, [item])
    cursor.execute("INSERT OR REPLACE INTO labels VALUES (?, ?)", (item, text(data, "id", "")))


def _document(cursor: sqlite3.Cursor, *digests: str | None) -> None:
    """Small blobs that the record of a build consists of. What is a layer or a context's content besides, stays one."""
    rows = [(digest,) for digest in digests if digest]
    cursor.executemany("INSERT OR IGNORE INTO stored VALUES (?, 'record')", rows)


def _started(cursor: sqlite3.Cursor, event: Event) -> None:
    _document(cursor, maybe_text(event.data, "definition"), maybe_text(event.data, "context"))
    _document(cursor, *(maybe_text(one, "digest") for one in objects(mapping(event.data, "options"), "policies")))
    _tagged(cursor, event, texts(event.data, "tags"))


def _tagged(cursor: sqlite3.Cursor, event: Event, names: Iterable[str]) -> None:
    cursor.executemany("INSERT OR IGNORE INTO tagged VALUES (?, ?)", [(build_of(event), name) for name in names])


def _defined(cursor: sqlite3.Cursor, event: Event) -> None:
    """A graph is a document that also names archives which a build got as its context: large, and not to be kept."""
    if graph := maybe_text(event.data, "graph"):
        cursor.execute("INSERT OR IGNORE INTO stored VALUES (?, 'graph')", (graph,))
    _document(cursor, maybe_text(event.data, "definition"))


def _scanned(cursor: sqlite3.Cursor, event: Event) -> None:
    _document(cursor, maybe_text(event.data, "listing"))


def _attested(cursor: sqlite3.Cursor, event: Event) -> None:
    """What was found in a layer, so that nobody fetches it to look once more; and what was said of an image."""
    _document(cursor, *(maybe_text(event.data, key) for key in ("scan", "statement", "envelope", "referrer")))


def _source_resolved(cursor: sqlite3.Cursor, event: Event) -> None:
    _document(cursor, *(maybe_text(event.data, key) for key in ("digest", "manifest", "config")))


def _cache_imported(cursor: sqlite3.Cursor, event: Event) -> None:
    _document(cursor, maybe_text(event.data, "digest"), *texts(event.data, "metadata"))


def _completed(cursor: sqlite3.Cursor, event: Event) -> None:
    build = build_of(event)
    refs = [ref for result in objects(event.data, "results") if (ref := maybe_text(result, "ref"))]
    _use_refs(cursor, event, refs)
    names = [name for (name,) in cursor.execute("SELECT name FROM tagged WHERE build = ?", (build,)).fetchall()]
    cursor.executemany("DELETE FROM images WHERE name = ?", [(name,) for name in names])
    cursor.executemany("INSERT OR REPLACE INTO images VALUES (?, ?)", [(name, ref) for name in names for ref in refs])
    _ended(cursor, event)


def _ended(cursor: sqlite3.Cursor, event: Event) -> None:
    cursor.execute("DELETE FROM tagged WHERE build = ?", (build_of(event),))


def _let_go(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    cursor.execute(
        "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            text(data, "kind"), text(data, "name"), event.seq, event.time, text(data, "policy", ""),
            text(data, "by", ""), size(data, "bytes"), int(event.type == "Demoted"),
        ),
    )  # fmt: skip


def _http_resolved(cursor: sqlite3.Cursor, event: Event) -> None:
    digest = maybe_text(event.data, "digest")
    if digest:
        cursor.execute("INSERT OR IGNORE INTO stored VALUES (?, 'source')", (digest,))
        _use(cursor, event, [f"blob/{digest}"])


PROJECTION = Projection(
    name="usage",
    version=4,
    tables=("uses", "used_refs", "layers_of", "copies", "stored", "labels", "tagged", "images", "tombstones"),
    schema=(
        "CREATE TABLE uses (item TEXT, build TEXT, seq INTEGER, time INTEGER, PRIMARY KEY (item, build)) WITHOUT ROWID",
        "CREATE INDEX uses_build ON uses (build)",
        "CREATE TABLE used_refs (ref TEXT PRIMARY KEY, layers TEXT, name TEXT) WITHOUT ROWID",
        "CREATE TABLE layers_of (item TEXT, ref TEXT, PRIMARY KEY (item, ref)) WITHOUT ROWID",
        ("CREATE TABLE copies (item TEXT, digest TEXT, diff_id TEXT, media_type TEXT, bytes INTEGER,"
         " converted INTEGER, PRIMARY KEY (item, digest)) WITHOUT ROWID"),
         "CREATE INDEX copies_digest ON copies (digest)",
         "CREATE INDEX copies_diff_id ON copies (diff_id)",
         "CREATE TABLE stored (digest TEXT PRIMARY KEY, role TEXT) WITHOUT ROWID",
         "CREATE TABLE labels (item TEXT PRIMARY KEY, label TEXT) WITHOUT ROWID",
         "CREATE TABLE tagged (build TEXT, name TEXT, PRIMARY KEY (build, name)) WITHOUT ROWID",
         "CREATE TABLE images (name TEXT, ref TEXT, PRIMARY KEY (name, ref)) WITHOUT ROWID",
        ("CREATE TABLE tombstones (kind TEXT, name TEXT, seq INTEGER, time INTEGER, policy TEXT, by TEXT, "
         "bytes INTEGER, demoted INTEGER, PRIMARY KEY (name, kind)) WITHOUT ROWID"),
    ),
    handlers={
        "BuildStarted": _started,
        "DefinitionRead": _defined,
        "GraphDefined": _defined,
        "SourceResolved": _source_resolved,
        "HttpResolved": _http_resolved,
        "ContextScanned": _scanned,
        "ContextKept": _context_kept,
        "RemoteCreated": _remote_created,
        "LocalCreated": _local_created,
        "LayerStored": _layer_stored,
        "LayerScanned": _attested,
        "Attested": _attested,
        "CacheQueried": _queried,
        "CacheRecorded": _cache_recorded,
        "CacheImported": _cache_imported,
        "VertexStarted": _vertex_started,
        "VertexCached": _vertex_done,
        "VertexCompleted": _vertex_done,
        "MaterializationRequested": _wanted,
        "PullStarted": _pull_started,
        "LayerPulled": _layer_pulled,
        "LayerLaidOut": _layer_pulled,
        "BlobCreated": _blob_created,
        "ExportStarted": _export_started,
        "Exported": _exported,
        "CacheMountUsed": _cachemount_used,
        "BuildCompleted": _completed,
        "BuildFailed": _ended,
        "BuildCancelled": _ended,
        "BuildInterrupted": _ended,
        "Demoted": _let_go,
        "Pruned": _let_go,
    },
)
