"""The cache: what was asked, recorded, imported and exported."""

from __future__ import annotations

from typing import ClassVar

from engine.events.fact import Fact, Json, Stream


class CacheQueried(Fact):
    """`outcome`: hit or miss; `reason` of a miss: never-built, no-cache, bytes-lost, evicted, provider-unreachable;
    `components`: digest of the stored plaintext key, "" in older logs. `by`: `definition` when the key says what the
    step is made of, `content` when it says what it takes of results that were made before it ran; the second may follow
    the first. `importer`: the `--cache-from` that knew a hit, "" for a record of this root."""

    key: str
    outcome: str
    ref: str | None = None
    origin_build: str | None = None
    reason: str | None = None
    components: str = ""
    by: str = "definition"
    importer: str = ""


class CacheRecorded(Fact):
    """`components`: digest of the stored plaintext key; `layers` of the ref it names, bottom first; `resolved`: the key
    by content of the same result, "" when it is `key` itself. A hit that `importer` knew is recorded here with
    the build that made it, `origin_build`, "" for this event's own."""

    STREAM: ClassVar[Stream] = "cache"
    key: str
    components: str
    ref: str
    layers: tuple[Json, ...]
    resolved: str = ""
    importer: str = ""
    origin_build: str = ""


class CacheImported(Fact):
    """What is known of a cache elsewhere: `source` as written (`type=registry,ref=…`), `digest` of its manifest,
    `metadata`: digests of the stored documents that were read (cache config, our facts), `records` they have; `bytes`
    over the wire, none of them a layer's."""

    STREAM: ClassVar[Stream] = "cache"
    source: str
    digest: str
    records: int
    bytes: int
    metadata: tuple[str, ...] = ()
    provider: Json | None = None


class CacheImportFailed(Fact):
    """`source` could not be read: `kind` (`class` in the log) missing, auth, transport, corrupt or disk. The build goes
    on without it."""

    STREAM: ClassVar[Stream] = "cache"
    source: str
    kind: str
    error: str


class CacheExported(Fact):
    """`target` as written; `mode` min or max; `digest` of the manifest written, "" for inline; `layers` and `provider`
    as in Exported; `bytes` moved, layers and metadata."""

    STREAM: ClassVar[Stream] = "cache"
    target: str
    mode: str
    digest: str
    records: int
    bytes: int
    layers: tuple[Json, ...] = ()
    provider: Json | None = None


class CacheExportFailed(Fact):
    """`target` could not be written, which the user asked to ignore."""

    STREAM: ClassVar[Stream] = "cache"
    target: str
    error: str
