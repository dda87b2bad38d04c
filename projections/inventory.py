"""What is in a root, with what the log knows of it: the join of a measured disk and the usage view. Plain data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from projections.cache_index import CacheIndex
from projections.runner import Views
from projections.usage import Usage
from projections.viewfile import kept_json
from storage.interfaces.images import Provider

Json = dict[str, Any]

COLLECTABLE = ("layer", "snapshot", "source", "blob", "context", "unnamed", "cachemount", "partial")
"""Kinds that can be let go. Of the rest, `record` is what the builds' own story is made of."""

UNSPOKEN = frozenset({"source", "context", "unnamed"})
"""Kinds that a build may rely on before it says so: they stay while any build runs."""
_ROLES = {"packed": "blob", "context": "context", "record": "record", "graph": "record", "source": "source"}


@dataclass(frozen=True, slots=True)
class Copy:
    """A blob with the same content as an item, of `bytes`, and who is known to have it."""

    digest: str
    media_type: str
    bytes: int
    providers: tuple[Provider, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing on this disk, of `bytes`. `kind`: one of COLLECTABLE, or record, log, views, locks, tmp, run, other;
    `label`: what people know it by; `seq` and `time` (UTC ns) of the latest use, by `build` (0 and "": none known);
    `builds` that used it; `images`: names whose latest build stands on it; `results`: how many results that nothing
    else stands on contain it; `depth`: layers below it; `in_use`: a build that runs needs it."""

    key: str
    kind: str
    name: str
    bytes: int
    label: str = ""
    seq: int = 0
    time: int = 0
    build: str = ""
    builds: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    results: int = 0
    depth: int = 0
    in_use: bool = False
    copies: tuple[Copy, ...] = ()

    @property
    def collectable(self) -> bool:
        """Can it be let go at all?"""
        return self.kind in COLLECTABLE

    @property
    def elsewhere(self) -> tuple[Provider, ...]:
        """Who is known to have the same content."""
        return tuple(dict.fromkeys(provider for copy in self.copies for provider in copy.providers))


@dataclass(frozen=True)
class Inventory:
    """`items` on this disk; `refs`: id → its layers' names (as Usage has them), bottom first; `forms`: layer's name →
    items of which each is enough to have it here; `blobs`: layer's name → items that are a blob of it, also with other
    times; `remote_only`: bytes of blobs of known refs that are not here in any form; `directories`: bytes that
    directories themselves have; `position`: the event up to which the log was known."""

    items: tuple[Item, ...]
    refs: Mapping[str, tuple[str, ...]]
    forms: Mapping[str, tuple[str, ...]]
    blobs: Mapping[str, tuple[str, ...]]
    remote_only: int
    directories: int = 0
    position: int = 0

    @cached_property
    def by_key(self) -> dict[str, Item]:
        """Items by key."""
        return {item.key: item for item in self.items}

    @cached_property
    def refs_of(self) -> dict[str, tuple[str, ...]]:
        """Refs that each layer is part of."""
        found: dict[str, list[str]] = defaultdict(list)
        for ref, layers in self.refs.items():
            for layer in dict.fromkeys(layers):
                found[layer].append(ref)
        return {layer: tuple(refs) for layer, refs in found.items()}

    @cached_property
    def layers_of(self) -> dict[str, tuple[str, ...]]:
        """The layers that each item is a form or a blob of."""
        found: dict[str, list[str]] = defaultdict(list)
        for held in (self.forms, self.blobs):
            for layer, keys in held.items():
                for key in keys:
                    found[key].append(layer)
        return {key: tuple(dict.fromkeys(layers)) for key, layers in found.items()}

    @cached_property
    def cached_bytes(self) -> int:
        """Bytes of all that can be let go, in use or not."""
        return sum(item.bytes for item in self.items if item.collectable)


@dataclass(slots=True)
class _Told:
    """What the log says of the items, gathered."""

    seq: dict[str, int] = field(default_factory=dict)
    time: dict[str, int] = field(default_factory=dict)
    build: dict[str, str] = field(default_factory=dict)
    builds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    images: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    labels: dict[str, str] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    depth: dict[str, int] = field(default_factory=dict)

    def used(self, items: Iterable[str], build: str, seq: int, time: int) -> None:
        for item in items:
            self.builds[item].add(build)
            if seq > self.seq.get(item, 0):
                self.seq[item], self.time[item], self.build[item] = seq, time, build


def take_inventory(
    views: Views,
    measured: Mapping[str, int],
    directories: int,
    running: Collection[str],
    mentioned: Mapping[str, str] | None = None,
    busy: Collection[str] = (),
) -> Inventory:
    """Join. `measured`: `<kind>/<name>` → bytes, as storage/usage.py measures them; `running`: ids of builds that are
    alive now; `mentioned`: digest → what a blob is that only stored documents name, as in Usage.documents; `busy`:
    items that somebody holds the lock of. Raises what Views.query raises."""
    position = views.position
    copies = _copies(views)
    refs = {ref: tuple(kept_json(layers)) for ref, layers in views.query("SELECT ref, layers FROM used_refs")}
    names = {layer for layers in refs.values() for layer in layers}
    same: dict[str, set[str]] = defaultdict(set)
    blobs: dict[str, set[str]] = defaultdict(set)
    for layer in names:
        same[layer].add(layer)
        for number, (diff_id, copy) in enumerate(copies.get(layer, ())):
            blobs[layer].add(f"blob/{copy.digest}")
            if number == 0:
                same[layer] |= {f"blob/{copy.digest}", f"layer/{diff_id}" if diff_id else layer}
    told = _tell(views, refs, same, blobs)
    claimed = Usage(views).claims(running) if running else frozenset()
    roles = {**(mentioned or {}), **Usage(views).documents()}
    by_item: dict[str, list[Copy]] = defaultdict(list)
    for layer, found in copies.items():
        diff_id, copy = found[0]
        for key in {layer, f"layer/{diff_id}" if diff_id else layer}:
            by_item[key].append(copy)
        for _, other in found:
            by_item[f"blob/{other.digest}"].append(other)
    items = []
    for key, count in measured.items():
        kind = _kind(key, roles, told)
        in_use = key in claimed or key in busy or _may_be_needed(key, kind, running)
        items.append(_item(key, kind, count, told, tuple(dict.fromkeys(by_item.get(key, ()))), in_use=in_use))
    here = measured.keys()
    forms = {n: tuple(sorted(key for key in same[n] if key in here)) for n in names}
    kept = {n: tuple(sorted(key for key in blobs[n] if key in here)) for n in names}
    away = {
        copy.digest: copy.bytes
        for n in names
        if not forms[n]
        for _, copy in copies.get(n, ())[:1]
        if copy.providers
    }
    return Inventory(tuple(items), refs, forms, kept, sum(away.values()), directories, position)


def _copies(views: Views) -> dict[str, list[tuple[str, Copy]]]:
    """Layer → its diff ID and a blob of it, for each blob known; first the one that a cache hit is given, then those
    with other times."""
    index = CacheIndex(views)
    known: dict[str, tuple[Provider, ...]] = {}
    found: dict[str, list[tuple[str, Copy]]] = defaultdict(list)
    rows = views.query("SELECT item, digest, diff_id, media_type, bytes FROM copies ORDER BY item, converted, digest")
    for item, digest, diff_id, media_type, count in rows:
        if digest not in known:
            known[digest] = tuple(index.providers_of(digest))
        found[item].append((diff_id, Copy(digest, media_type, count, known[digest])))
    for item, some in found.items():
        first = index.blob_of(item.partition("/")[2]) if len(some) > 1 else None
        if first is not None:
            some.sort(key=lambda pair: pair[1].digest != first.digest)
    return found


def _tell(
    views: Views,
    refs: Mapping[str, tuple[str, ...]],
    same: Mapping[str, set[str]],
    blobs: Mapping[str, set[str]],
) -> _Told:
    told = _Told()
    held = {ref: {key for n in layers for key in (*same[n], *blobs[n])} for ref, layers in refs.items()}
    for item, build, seq, time in views.query("SELECT item, build, seq, time FROM uses"):
        kind, _, ref = item.partition("/")
        told.used(held.get(ref, ()) if kind == "ref" else [item], build, seq, time)
    for name, ref in views.query("SELECT name, ref FROM images"):
        for key in held.get(ref, ()):
            told.images[key].add(name)
    below = {layers[:-1] for layers in refs.values()}  # a step adds one layer to what it stands on
    names: dict[str, str] = dict(views.query("SELECT ref, name FROM used_refs"))
    for ref, layers in sorted(refs.items(), key=lambda pair: (len(pair[1]), pair[0])):
        for depth, layer in enumerate(layers):
            for key in (*same[layer], *blobs[layer]):
                told.depth[key] = max(told.depth.get(key, 0), depth)
                if names[ref]:
                    told.labels.setdefault(key, names[ref])
        if layers not in below:
            for key in held[ref]:
                told.results[key] += 1
    told.labels |= dict(views.query("SELECT item, label FROM labels"))
    return told


def _kind(key: str, roles: Mapping[str, str], told: _Told) -> str:
    kind, _, name = key.partition("/")
    if kind == "blob":
        return _ROLES.get(roles.get(name, ""), "unnamed")
    if kind == "snapshot" and name.startswith("source-"):
        return "source"
    if kind in {"layer", "snapshot"} and key not in told.seq:
        return "unnamed"
    return kind


def _may_be_needed(key: str, kind: str, running: Collection[str]) -> bool:
    """What a build that runs may have without the log saying so yet: a result that it has just made, a source or
    contents of a context that it found here, and anything that no event names."""
    if kind in UNSPOKEN:
        return bool(running)
    return kind == "snapshot" and key.partition("/")[2].partition("-")[0] in running


def _item(key: str, kind: str, count: int, told: _Told, copies: tuple[Copy, ...], *, in_use: bool) -> Item:
    name = key.partition("/")[2]
    return Item(
        key=key, kind=kind, name=name, bytes=count, label=told.labels.get(key, ""),
        seq=told.seq.get(key, 0), time=told.time.get(key, 0), build=told.build.get(key, ""),
        builds=tuple(sorted(told.builds.get(key, ()))), images=tuple(sorted(told.images.get(key, ()))),
        results=told.results.get(key, 0), depth=told.depth.get(key, 0), in_use=in_use, copies=copies,
    )  # fmt: skip
