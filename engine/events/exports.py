"""What was given out, and what was said of it."""

from __future__ import annotations

from typing import ClassVar

from engine.events.fact import Fact, Json, Stream


class ExportStarted(Fact):
    """`kind`: image, index, copy, oci, docker, local, tar or cache; `target`: name or path, of a cache as written;
    `layers`: digests that may have to be read; `compression`: what was asked for (see
    Compression.written), "" where there is none."""

    kind: str
    target: str
    digest: str
    layers: tuple[str, ...] = ()
    compression: str = ""


class ExportProgressed(Fact):
    """`bytes` of `total` of blob `digest` went to `target` by `transport`. At most 4 a second a layer."""

    target: str
    digest: str
    bytes: int
    total: int
    transport: str


class ExportDelayed(Fact):
    """An export of this build waits for somebody else, who has `file` locked that it writes to."""

    file: str


class Exported(Fact):
    """`digest` of the manifest or index, of a tar its own; `layers`: each `digest`, `transport` (mounted, streamed,
    uploaded, present, written), `bytes` moved, `source`; `provider`: where the blobs can be read from now on, for a
    registry; `compression` as in ExportStarted."""

    kind: str
    target: str
    digest: str
    layers: tuple[Json, ...]
    provider: Json | None = None
    compression: str = ""


class LayerScanned(Fact):
    """Layer `diff_id` was looked through: `scan` is the digest of what it tells of packages and hides, stored;
    `databases` of packages in it, and the `packages` they have; `problems`: reasons why that may not be all."""

    STREAM: ClassVar[Stream] = "cache"
    diff_id: str
    scan: str
    databases: int
    packages: int
    problems: int = 0


class Attested(Fact):
    """Something is said of the manifest `image` for `platform`, before that is exported: `statement` is the digest of
    the stored in-toto statement, of `predicate_type`; `envelope`: of the DSSE envelope that `key` signed, "" for none;
    `referrer`: of the manifest that attaches it."""

    image: str
    platform: str
    predicate_type: str
    statement: str
    envelope: str = ""
    referrer: str = ""
    key: str = ""
