"""Reading `event.data` of logs that other versions, or strangers, may have written.

A missing field takes its default (I10); a field of another type raises `Malformed`, which the runner turns into a
LogError that names the event. Nothing here trusts a value further than its type and range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from storage.errors import InputError, LogError
from storage.interfaces.log import Event, redacted

Data = Mapping[str, Any]

_LARGEST: Final = 2**53
"""Sizes stay below this, so their sums fit SQLite's 64 bits and JSON readers keep them exact."""


class Malformed(ValueError):
    """A field that is missing without a default, or not of the type its event promises."""


PUSHED = frozenset({"image", "index", "copy"})
"""Kinds of exports that put a name into a registry."""

BAD_EVENT = (Malformed, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, InputError)
"""What a handler may raise over an event that no version of the engine wrote."""


def malformed(event: Event, error: Exception) -> LogError:
    """The LogError that says which event cannot be folded, and why."""
    reason = str(error) or type(error).__name__
    return LogError(
        f"event {event.seq} ({event.type[:80]}) is malformed: {reason[:200]}",
        hint="the log was edited or damaged; go on with an intact copy of the root",
    )


def text(data: Data, key: str, default: str | None = None) -> str:
    """The string `key`; `default` when it is absent or null; words for one that was erased. Raises Malformed."""
    value = data.get(key)
    if type(value) is dict:
        value = redacted(value) or value
    if value is None:
        value = default
    if not isinstance(value, str):
        raise Malformed(f"{key} is not text")
    return value


def maybe_text(data: Data, key: str) -> str | None:
    """The string `key`, None when it is absent or null. Raises Malformed."""
    return None if data.get(key) is None else text(data, key)


def integer(data: Data, key: str, default: int | None = None) -> int | None:
    """The integer `key`, `default` when it is absent or null. Raises Malformed, also beyond ±2**53."""
    value = data.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _LARGEST:
        raise Malformed(f"{key} is not an integer")
    return value


def size(data: Data, key: str) -> int:
    """The number of bytes `key`, 0 when it is absent. Raises Malformed, also for a negative one."""
    value = integer(data, key, 0)
    if value is None or value < 0:
        raise Malformed(f"{key} is not a size")
    return value


def mapping(data: Data, key: str) -> dict[str, Any]:
    """The object `key`, empty when it is absent or null. Raises Malformed."""
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{key} is not an object")
    return value


def strings(data: Data, key: str) -> dict[str, str]:
    """The object `key`, whose values are strings; empty when it is absent or null. Raises Malformed."""
    value = mapping(data, key)
    if not all(isinstance(item, str) for item in value.values()):
        raise Malformed(f"{key} is not an object of texts")
    return value


def objects(data: Data, key: str) -> list[dict[str, Any]]:
    """The list of objects `key`, empty when it is absent or null. Raises Malformed."""
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, dict) for item in value):
        raise Malformed(f"{key} is not a list of objects")
    return list(value)


def build_of(event: Event) -> str:
    """The build that an event of it is about."""
    return event.build or event.stream.removeprefix("build/")


def git_name(data: Data) -> str:
    """A repository and its ref as they are asked for: `remote#ref`. Raises Malformed."""
    return f"{text(data, 'remote')}#{text(data, 'ref', '')}".rstrip("#")


def texts(data: Data, key: str) -> list[str]:
    """The list of strings `key`, empty when it is absent or null. Raises Malformed."""
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise Malformed(f"{key} is not a list of texts")
    return list(value)
