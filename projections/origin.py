"""Where the result of a cache hit came from, as far as this log tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from projections.asked import Asked
from projections.fields import objects
from projections.history import BuildRecord
from projections.records import Records
from projections.steps import provider_name

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a hit: `digest` of its blob or the id of the snapshot; `provider` it came from, or can be read from,
    "" for one made here by `build`; `verified` here when it came: `digest`, `diff_id`; empty when it never did."""

    digest: str
    provider: str
    verified: tuple[str, ...]
    build: str


@dataclass(frozen=True, slots=True)
class Origin:
    """`build` that made the result, "" when nobody says; `name` and `started` (UTC ns) are those of a build in this
    log, "" and 0 otherwise; `importer`: the cache source that knew it, "" for this root; `by`: definition or
    content."""

    build: str
    name: str
    started: int
    layers: tuple[Layer, ...]
    importer: str = ""
    by: str = "definition"

    def to_json(self) -> Json:
        """The fields, by name."""
        return asdict(self)


def origin_of(asked: Asked, records: Records, builds: Mapping[str, BuildRecord]) -> Origin:
    """The origin of hit `asked`; `builds` of this log, by id."""
    record = records.of_hit(asked.key, asked.seq)
    made_by = asked.origin_build or (record.origin_build if record else "")
    build = builds.get(made_by)
    layers = tuple(_layer(item, records) for item in record.layers) if record else ()
    importer = asked.importer or (record.importer if record else "")
    name, started = (build.name, build.started) if build else ("", 0)
    return Origin(made_by, name, started, layers, importer, asked.by)


def _layer(layer: Json, records: Records) -> Layer:
    snapshot = str(layer.get("snapshot") or "")
    if snapshot:
        return Layer(snapshot, "", (), snapshot.partition("-")[0])
    digest = str(layer.get("digest") or layer.get("diff_id") or "")
    known = next((provider_name(item) for item in objects(layer, "providers")), "")
    provider, verified = records.pulled.get(digest, (known, ()))
    return Layer(digest, provider, verified, "")
