"""Events as the log stores them: columns `(seq, stream, version, type)` and one blob, the *state*.

The state is a JSON object with short keys, `t` first: `t` time (UTC, ns), `b` build, `v` vertex, `c` cause
(each only when there is one), `d` data, `x` the digests of what is detached from the data, where that is null (only
when something is, see storage.log.detached). A type name is data: nothing is ever imported by a stored name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import orjson

from storage.interfaces.images import Json
from storage.interfaces.log import Event, NewEvent, TooLarge
from storage.log.detached import detach, pointer

MAX_STATE = 64 * 1024
"""Bytes of a state. The longest lists of an event that has more are stored apart, and its state has their digests."""
MAX_EVENT = 1024 * 1024
"""Bytes of an event with all that is stored apart of it."""
_LATEST = 1 << 64  # UTC ns, in the year 2554
_DETACHED = 128  # bytes that a state has in the place of a list, and its digest
_STAMP = len('"t":18446744073709551615,')  # bytes that `stamp` adds at most

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)  # what decoding damaged bytes can raise

Row = tuple[int, str, int, str, bytes]  # seq, stream, version, type, state
Encoded = tuple[str, str, bytes, Json, tuple[tuple[bytes, bytes], ...]]
"""Stream, type, state without its time, the same decoded and with nothing detached, salt and bytes of what is."""


def encode(event: NewEvent) -> Encoded:
    """`event`, checked and ready to be stored but for its time, which `stamp` adds.

    The decoded state is a private copy, so that the caller may reuse `event.data`. Raises ValueError (a bug of the
    caller) when the payload is not made of str, int (64 bit), finite float, bool, None, list and str-keyed dict,
    TooLarge, and KeyError when what is to be detached is not in it. Lists of `data` that make it larger than a state
    may be are detached, too.
    """
    state = _members(event)
    try:
        event.stream.encode()
        event.type.encode()
        body = orjson.dumps(state)
    except (TypeError, UnicodeEncodeError) as error:
        _refuse(event, str(error))
    if len(body) > MAX_EVENT:
        raise TooLarge(f"{event.type}: {len(body)} bytes, more than {MAX_EVENT}")
    # orjson writes tuples, UUIDs, dates, dataclasses and NaN as something else without a word; comparing what comes
    # back finds them all, and costs less than a walk in Python.
    copy: Json = orjson.loads(body)
    if copy != state:
        _refuse(event, "it would be read back as something else")
    apart = event.detached
    if (over := len(body) + _STAMP - MAX_STATE) > 0:
        apart = (*apart, *_longest_lists(event, over))
    payloads: tuple[tuple[bytes, bytes], ...] = ()
    if apart:
        state["d"], state["x"], payloads = detach(event.data, apart)
        body = orjson.dumps(state)
    if len(body) + _STAMP > MAX_STATE:
        raise TooLarge(f"{event.type}: {len(body) + _STAMP} bytes without its lists, more than {MAX_STATE}")
    return event.stream, event.type, body, copy, payloads


def _longest_lists(event: NewEvent, over: int) -> Iterator[str]:
    """Pointers to the longest lists of its data, as many as take `over` bytes together."""
    lists = [(len(orjson.dumps(value)), pointer(name)) for name, value in event.data.items() if isinstance(value, list)]
    for size, place in sorted(lists, reverse=True):
        if over > 0 and place not in event.detached:
            yield place
            over -= size - _DETACHED


def stamp(body: bytes, time: int) -> bytes:
    """The state to store: `body` of `encode` with its time (UTC, ns)."""
    return b'{"t":%d,%b' % (time, body[1:])


def stored_state(event: Event) -> bytes:
    """The state that an event has in the log, all of whose data is in there."""
    return orjson.dumps({"t": event.time, **_members(event)})


def _members(event: NewEvent | Event) -> Json:
    """What a state has behind its time, in this order."""
    state: Json = {}
    if event.build is not None:
        state["b"] = event.build
    if event.vertex is not None:
        state["v"] = event.vertex
    if event.cause is not None:
        state["c"] = event.cause
    state["d"] = event.data
    return state


def time_of(state: bytes) -> int:
    """The time (UTC, ns) of a stored state. Raises one of UNREADABLE when it is no state."""
    return int(orjson.loads(state)["t"])


def decode(row: Row, detached: list[tuple[Event, dict[str, str]]] | None = None) -> Event:
    """The event of one stored row; put into `detached`, with the digests by pointer, when it has not all its data.
    Raises one of UNREADABLE when the state is no state."""
    seq, stream, version, name, blob = row
    state = orjson.loads(blob)
    event = event_of(seq, state["t"], stream, version, name, state)
    if "x" in state and detached is not None:
        detached.append((event, state["x"]))
    return event


def event_of(seq: int, time: int, stream: str, version: int, name: str, state: Json) -> Event:
    """The event with the build, vertex, cause and data of a decoded `state`."""
    get = state.get
    build, vertex, cause, data = get("b"), get("v"), get("c"), state["d"]
    if not (
        type(stream) is str and type(name) is str and type(version) is int and type(time) is int
        and 0 <= time < _LATEST and type(data) is dict and (build is None or type(build) is str)
        and (vertex is None or type(vertex) is str) and (cause is None or type(cause) is int)
    ):  # fmt: skip
        raise TypeError("it is no event")  # whoever can write to the file may write anything
    event = _Event(seq, time, stream, version, name, build, vertex, cause, data)
    event.__class__ = Event  # type: ignore[assignment]
    return event  # type: ignore[return-value]


class _Event:
    """An Event while it is filled in: same layout, not frozen. The constructor of a frozen dataclass goes through
    object.__setattr__ for every field, and took more than half of the time it takes to read a log."""

    __slots__ = ("build", "cause", "data", "seq", "stream", "time", "type", "version", "vertex")

    def __init__(
        self, seq: int, time: int, stream: str, version: int, name: str,
        build: str | None, vertex: str | None, cause: int | None, data: Json,
    ) -> None:  # fmt: skip
        self.seq = seq
        self.time = time
        self.stream = stream
        self.version = version
        self.type = name
        self.build = build
        self.vertex = vertex
        self.cause = cause
        self.data = data


def _refuse(event: NewEvent, why: str) -> NoReturn:
    envelope = {"stream": event.stream, "type": event.type, "build": event.build, "vertex": event.vertex}
    culprit = _culprit({**envelope, "cause": event.cause, "data": event.data}, "")
    raise ValueError(f"{event.type}: payloads are primitives: {culprit or why}")


def _culprit(value: Any, path: str) -> str:
    """Names the first part of `value` that JSON cannot give back, or ""."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) is not str:
                return f"{path or '.'} has the key {key!r}"
            if found := _culprit(item, f"{path}.{key}"):
                return found
        return ""
    if isinstance(value, list):
        return next((found for i, item in enumerate(value) if (found := _culprit(item, f"{path}[{i}]"))), "")
    try:
        same = orjson.loads(orjson.dumps(value)) == value
    except TypeError:
        same = False
    return "" if same else f"{path} is {str(type(value))[7:-1]} {value!r:.80}"
