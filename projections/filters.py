"""Which items are meant: filters as docker's `prune` and `du` have them; sizes and durations as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from projections.inventory import Item
from storage.errors import InputError

_DAY = 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Filter:
    """`key`=`value`, or its opposite when `negated`."""

    key: str
    value: str
    negated: bool = False

    def matches(self, item: Item, now: int) -> bool:
        """Does `item` pass at `now` (UTC ns)?"""
        return FILTERS[self.key](item, self.value, now) != self.negated


def passes(filters: Sequence[Filter], item: Item, now: int) -> bool:
    """Does `item` pass? Of several filters with one key one must match, and every negated one."""
    wanted: dict[str, bool] = {}
    for one in filters:
        matched = one.matches(item, now)
        if one.negated and not matched:
            return False
        if not one.negated:
            wanted[one.key] = wanted.get(one.key, False) or matched
    return all(wanted.values())


def _truth(value: str) -> bool:
    if value.lower() not in {"true", "false", "1", "0"}:
        raise InputError(f"not true or false: {value[:40]!r}")
    return value.lower() in {"true", "1"}


def _is_id(item: Item, value: str, _now: int) -> bool:
    name = item.name
    return name.startswith(value) or name.partition(":")[2].startswith(value)


def _named(names: Collection[str], value: str) -> bool:
    return any(name == value or name.rpartition(":")[0] == value for name in names)


FILTERS: Mapping[str, Callable[[Item, str, int], bool]] = {
    "id": _is_id,
    "kind": lambda item, value, _: item.kind == value,
    "type": lambda item, value, _: item.kind in TYPES.get(value, (value,)),
    "build": lambda item, value, _: any(build.startswith(value) for build in item.builds),
    "image": lambda item, value, _: _named(item.images, value),
    "until": lambda item, value, now: item.time <= now - duration(value),
    "unused-for": lambda item, value, now: item.time <= now - duration(value),
    "inuse": lambda item, value, _: item.in_use == _truth(value),
    "shared": lambda item, value, _: (item.results > 1) == _truth(value),
    "private": lambda item, value, _: (item.results <= 1) == _truth(value),
    "remote": lambda item, value, _: bool(item.elsewhere) == _truth(value),
    "description": lambda item, value, _: value in item.label,
}
TYPES: Mapping[str, Sequence[str]] = {
    "regular": ("layer", "snapshot", "blob"),
    "exec.cachemount": ("cachemount",),
    "source.local": ("context",),
    "source.git.checkout": ("source",),
}
"""BuildKit's names of record types, as far as there is the same here."""


def parse_filter(written: str) -> Filter:
    """`KEY=VALUE` or `KEY!=VALUE`. Raises InputError."""
    key, equals, value = written.partition("=")
    negated = key.endswith("!")
    key = key.removesuffix("!")
    if not equals or key not in FILTERS:
        known = ", ".join(FILTERS)
        raise InputError(f"filter {written[:80]!r} is none", hint=f"KEY=VALUE or KEY!=VALUE with one of: {known}")
    if key in {"until", "unused-for"}:
        duration(value)
    elif key in {"inuse", "shared", "private", "remote"}:
        _truth(value)
    return Filter(key, value, negated)


_UNITS = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": _DAY // 86_400, "m": _DAY // 1440, "h": _DAY // 24,
    "d": _DAY, "w": 7 * _DAY,
}  # fmt: skip


def duration(written: str) -> int:
    """`72h`, `1h30m`, `7d`: in ns. Raises InputError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d|w)", written)
    if not parts or "".join(number + unit for number, unit in parts) != written or len(written) > 40:
        if written == "0":
            return 0
        raise InputError(f"not a duration: {written[:40]!r}", hint="write 90s, 30m, 72h, 7d, or a sum: 1h30m")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))


_SIZES = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40
}  # fmt: skip


def storage_size(written: str) -> int:
    """`10GB`, `512MiB`, `1000`: in bytes; decimal units as docker has them, binary ones with an i. Raises
    InputError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([kmgt]?i?)b?", written.strip().lower())
    if not found or found[2] not in _SIZES:
        raise InputError(f"not a size: {written[:40]!r}", hint="write bytes, or 500MB, 10GB, 2GiB")
    return int(float(found[1]) * _SIZES[found[2]])
