"""BuildKit's cache config: which layers there are, and which records name them. Pure.

Source: moby/buildkit cache/remotecache/v1 (spec.go, parse.go, utils.go), media type
application/vnd.buildkit.cacheconfig.v0. A record says: what has this digest, and inputs that match these links, has
this result. A result is a chain of layers, given by its top one (`layers` of the record) or one by one (`chains`).

What is read comes from a registry, so from anybody: counts are bounded, indexes are checked, and neither layers nor
records may go in circles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.errors import InputError, VerificationError
from engine.record import Record
from storage.digest import Digest, canonical_json, parse_json

Json = dict[str, Any]
MEDIA_TYPE = "application/vnd.buildkit.cacheconfig.v0"
LAYERS, RECORDS, LINKS = 50_000, 100_000, 1_000_000
"""As many as a cache may have."""
DEPTH = 500
"""Layers of a result at most: the kernel's overlay takes no more."""
_TEXT = 4096
"""Characters of a digest or selector at most."""
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)


class ConfigLayer(Record):
    """`parent`: the index of the layer below, -1 for none. The rest is known where the config itself says it (caches
    without a manifest do); `created` in UTC ns."""

    blob: Digest
    parent: int = -1
    media_type: str = ""
    diff_id: Digest | None = None
    size: int = 0
    created: int = 0


class ConfigResult(Record):
    """`layers`: indexes, bottom first when `listed`; else only the top one, whose parents are below it. `created`: UTC
    ns, 0 where nobody knows."""

    layers: tuple[int, ...]
    created: int = 0
    listed: bool = False


class Link(Record):
    """`record`: an index; `selector`: what was taken of its result, "" for all."""

    record: int
    selector: str = ""


class ConfigRecord(Record):
    """`digest` as BuildKit has it, which need not be one of ours; `inputs`: the links that each input may match."""

    digest: str
    results: tuple[ConfigResult, ...] = ()
    inputs: tuple[tuple[Link, ...], ...] = ()


class CacheConfig(Record):
    """A cache, as its config has it."""

    layers: tuple[ConfigLayer, ...] = ()
    records: tuple[ConfigRecord, ...] = ()

    def chain(self, result: ConfigResult) -> tuple[int, ...]:
        """The indexes of all layers of `result`, bottom first; empty when there are more than `DEPTH`."""
        if result.listed:
            return result.layers if len(result.layers) <= DEPTH else ()
        found: list[int] = []
        index = result.layers[0]
        while index >= 0:
            if len(found) == DEPTH:
                return ()
            found.append(index)
            index = self.layers[index].parent
        return tuple(reversed(found))


# ---------------------------------------------------------------- writing


def write(config: CacheConfig) -> bytes:
    """The bytes of `config`, the same for the same config."""
    return canonical_json({"layers": list(map(_layer_json, config.layers)), "records": records_json(config.records)})


def records_json(records: Sequence[ConfigRecord]) -> list[Json]:
    """The records alone: all that an image's inline cache has."""
    return [_record_json(record) for record in records]


def _layer_json(layer: ConfigLayer) -> Json:
    out: Json = {"blob": str(layer.blob), "parent": layer.parent}
    said: Json = {"mediaType": layer.media_type, "diffID": layer.diff_id and str(layer.diff_id), "size": layer.size}
    if layer.created:
        said["createdAt"] = time_text(layer.created)
    if said := {key: value for key, value in said.items() if value}:
        out["annotations"] = said
    return out


def _record_json(record: ConfigRecord) -> Json:
    out: Json = {"digest": record.digest}
    if plain := [_created({"layer": one.layers[0]}, one) for one in record.results if not one.listed]:
        out["layers"] = plain
    if listed := [_created({"layers": list(one.layers)}, one) for one in record.results if one.listed]:
        out["chains"] = listed
    if record.inputs:
        out["inputs"] = [[_link_json(link) for link in links] for links in record.inputs]
    return out


def _created(out: Json, result: ConfigResult) -> Json:
    return {**out, "createdAt": time_text(result.created)} if result.created else out


def _link_json(link: Link) -> Json:
    return {"selector": link.selector, "link": link.record} if link.selector else {"link": link.record}


def time_text(time: int) -> str:
    """RFC 3339 of UTC ns, as Go writes it."""
    whole, ns = divmod(time, 1_000_000_000)
    fraction = f".{ns:09d}".rstrip("0") if ns else ""
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


# ---------------------------------------------------------------- reading


def read(data: bytes, where: str) -> CacheConfig:
    """The config that `data` holds. Raises VerificationError."""
    with_layers = _decoded(data, where)
    if not isinstance(with_layers, dict):
        raise _bad("it is not a JSON object", where)
    try:
        layers = tuple(map(_layer, _items(with_layers, "layers", LAYERS)))
    except (InputError, ValueError) as error:
        raise _bad(str(error), where) from error
    return _checked(CacheConfig(layers, _records(with_layers.get("records"), where)), where)


def read_records(data: bytes, layers: Sequence[ConfigLayer], where: str) -> CacheConfig:
    """The config of an image with `layers` whose inline cache has the records `data`. Raises VerificationError."""
    return _checked(CacheConfig(tuple(layers), _records(_decoded(data, where), where)), where)


def _decoded(data: bytes, where: str) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise _bad("it is not JSON", where) from error


def _records(items: Any, where: str) -> tuple[ConfigRecord, ...]:
    try:
        return tuple(map(_record, _items({"records": items}, "records", RECORDS)))
    except ValueError as error:
        raise _bad(str(error), where) from error


def _items(data: Mapping[str, Any], key: str, limit: int) -> list[Any]:
    items = data.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise ValueError(f"its {key} are not a list")
    if len(items) > limit:
        raise ValueError(f"{len(items)} {key} are more than {limit}")
    return items


def _object(item: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"a {what} is not an object")
    return item


def _index(item: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = item.get(key, default)
    if type(value) is not int:
        raise ValueError(f"a {key} is not a number")
    return value


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key, "")
    if not isinstance(value, str) or len(value) > _TEXT:
        raise ValueError(f"a {key} is not a short text")
    return value


def _layer(item: Any) -> ConfigLayer:
    data = _object(item, "layer")
    said = data.get("annotations") or {}
    said = _object(said, "layer's annotations")
    diff_id = _text(said, "diffID")
    # reason for 0: Go leaves a zero out
    return ConfigLayer(
        Digest(_text(data, "blob")), _index(data, "parent", 0), _text(said, "mediaType"),
        Digest(diff_id) if diff_id else None, _index(said, "size", 0), time_of(said.get("createdAt")),
    )  # fmt: skip


def _record(item: Any) -> ConfigRecord:
    data = _object(item, "record")
    digest = _text(data, "digest")
    if not digest:
        raise ValueError("a record has no digest")
    results = []
    for one in _items(data, "layers", LAYERS):
        result = _object(one, "result")
        results.append(ConfigResult((_index(result, "layer"),), time_of(result.get("createdAt"))))
    for one in _items(data, "chains", LAYERS):
        result = _object(one, "chain")
        indexes = _items(result, "layers", LAYERS)
        if not all(type(index) is int for index in indexes):
            raise ValueError("a chain's layers are not numbers")
        results.append(ConfigResult(tuple(indexes), time_of(result.get("createdAt")), listed=True))
    inputs = []
    for links in _items(data, "inputs", LINKS):
        if not isinstance(links, list) or not links:
            raise ValueError("an input of a record has no links")
        inputs.append(tuple(Link(_index(_object(one, "link"), "link"), _text(one, "selector")) for one in links))
    return ConfigRecord(digest, tuple(results), tuple(inputs))


def time_of(value: Any) -> int:
    """UTC ns of an RFC 3339 text; 0 for none, for what is none, for times before 1970 (Go's zero is one) or too far."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return 0
    try:
        moment = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00"))
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        return 0
    time = seconds * 1_000_000_000 + int((found[2] or "0").ljust(9, "0"))
    return time if 0 <= time < 1 << 63 else 0  # what an event can hold


def _checked(config: CacheConfig, where: str) -> CacheConfig:
    """`config`, all of whose indexes lead somewhere and none in a circle. Raises VerificationError."""
    layers, records = config.layers, config.records
    if not all(-1 <= layer.parent < len(layers) for layer in layers):
        raise _bad("a layer's parent is not one of its layers", where)
    for record in records:
        if not all(0 <= index < len(layers) for result in record.results for index in result.layers):
            raise _bad("a result is not one of its layers", where)
        if not all(0 <= link.record < len(records) for links in record.inputs for link in links):
            raise _bad("a link does not lead to one of its records", where)
    if sum(len(links) for record in records for links in record.inputs) > LINKS:
        raise _bad(f"it has more than {LINKS} links", where)
    if _circular([[layer.parent] * (layer.parent >= 0) for layer in layers]):
        raise _bad("its layers go in a circle", where)
    if _circular([[link.record for links in record.inputs for link in links] for record in records]):
        raise _bad("its records go in a circle", where)
    return config


def _circular(edges: Sequence[Sequence[int]]) -> bool:
    """Do `edges`, by node, lead anywhere in a circle? Without recursion: depth is the registry's to choose."""
    unseen, entered, left = 0, 1, 2
    state = bytearray(len(edges))
    for start in range(len(edges)):
        if state[start] != unseen:
            continue
        state[start] = entered
        path = [(start, iter(edges[start]))]
        while path:
            node, rest = path[-1]
            following = next(rest, None)
            if following is None:
                state[node] = left
                path.pop()
            elif state[following] == entered:
                return True
            elif state[following] == unseen:
                state[following] = entered
                path.append((following, iter(edges[following])))
    return False


def _bad(why: str, where: str) -> VerificationError:
    return VerificationError(f"the cache cannot be used: {why}", where=where)
