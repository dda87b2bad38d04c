"""What all facts have in common, and how they become the data of events."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, dataclass_transform

from engine.record import Record

Json = dict[str, Any]
Stream = Literal["build", "ref", "cache", "log"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Fact(Record):
    """Base of all facts. Fields hold primitives, tuples of primitives and plain dicts, and are given by keyword."""

    STREAM: ClassVar[Stream] = "build"


_RENAMED = {"kind": "class"}
"""Names that the log has and Python cannot: field → key, for the fact types below."""
_RENAMED_IN = frozenset({"MaterializationFailed", "PullFailed", "CacheImportFailed", "ProviderLost"})


def needed_keys(fact: type[Fact]) -> frozenset[str]:
    """Keys that the `data` of such a fact's event cannot be without."""
    renamed = _RENAMED if fact.__name__ in _RENAMED_IN else {}
    return frozenset(renamed.get(name, name) for name in fact.FIELDS if not hasattr(fact, name))


def to_data(fact: Fact) -> Json:
    """The `data` of the fact's event: primitives, lists and string-keyed dicts."""
    name = type(fact).__name__
    renamed = _RENAMED if name in _RENAMED_IN else {}
    out: Json = {}
    for key in fact.FIELDS:
        value = getattr(fact, key)
        out[renamed.get(key, key)] = list(value) if isinstance(value, tuple) else value
    return out
