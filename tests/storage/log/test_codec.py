"""What goes into the log comes out the same, or is refused."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.digest import Digest
from storage.interfaces.log import Event, NewEvent
from storage.log import codec

TIME = 1_700_000_000_123_456_789
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _FLOATS | _TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT, inner, max_size=5),
    max_leaves=30,
)


def stored(event: NewEvent, *, seq: int = 1, version: int = 1, time: int = TIME) -> codec.Row:
    stream, name, body, *_ = codec.encode(event)
    return seq, stream, version, name, codec.stamp(body, time)


def refused(data: Any) -> str:
    with pytest.raises(ValueError, match=r"^T: ") as caught:
        codec.encode(NewEvent("cache", "T", data))
    return str(caught.value)


@given(
    st.dictionaries(_TEXT, _JSON, max_size=8),
    st.tuples(_TEXT, _TEXT, st.none() | _TEXT, st.none() | _TEXT, st.none() | st.integers(1, 2**63 - 1)),
    st.integers(1, 2**63 - 1),
    st.integers(0, 2**64 - 1),
)
def test_any_json_payload_comes_back_as_it_went_in(
    data: dict[str, Any], envelope: tuple[str, str, str | None, str | None, int | None], seq: int, time: int
) -> None:
    stream, name, build, vertex, cause = envelope
    row = stored(NewEvent(stream, name, data, build, vertex, cause), seq=seq, version=7, time=time)
    event = codec.decode(row)
    assert event == Event(seq, time, stream, 7, name, build, vertex, cause, data)
    assert orjson.dumps(event.data) == orjson.dumps(data)  # 1, 1.0 and True are equal to Python, not to a reader
    assert codec.time_of(row[4]) == time


def test_a_decoded_event_is_an_ordinary_frozen_event() -> None:
    event = codec.decode(stored(NewEvent("cache", "T", {"a": 1})))
    made = Event(1, TIME, "cache", 1, "T", None, None, None, {"a": 1})
    assert type(event) is Event
    assert repr(event) == repr(made)
    assert event.to_json() == made.to_json()
    with pytest.raises(AttributeError):
        event.seq = 2


def test_the_state_has_the_documented_short_keys() -> None:
    full = stored(NewEvent("ref/1", "T", {"x": [1]}, build="b1", vertex="v1", cause=3))
    assert full[4] == b'{"t":1700000000123456789,"b":"b1","v":"v1","c":3,"d":{"x":[1]}}'
    assert stored(NewEvent("ref/1", "T", {}))[4] == b'{"t":1700000000123456789,"d":{}}'


def test_what_the_caller_does_to_its_data_afterwards_changes_nothing() -> None:
    data = {"list": [1]}
    _, _, body, copy, _ = codec.encode(NewEvent("cache", "T", data))
    data["list"].append(2)
    assert copy["d"] == {"list": [1]}
    assert orjson.loads(body)["d"] == {"list": [1]}


def test_digests_are_text() -> None:
    digest = Digest("sha256:" + "0" * 64)
    event = codec.decode(stored(NewEvent("cache", "T", {"digest": digest}, vertex=digest)))
    assert (event.data, type(event.data["digest"]), type(event.vertex)) == ({"digest": str(digest)}, str, str)


class _Colour(Enum):
    RED = "red"


@dataclass
class _Point:
    x: int


class _Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    "value",
    [
        (1, 2), _Pair(1, 2), {1}, b"x", uuid.UUID(int=1), datetime(2020, 1, 1, tzinfo=UTC), _Colour.RED, _Point(1),
        float("nan"), float("inf"), 2**64, -(2**63) - 1, "\ud800", pytest.param(object(), id="an object"), 1j,
    ],
    ids=repr,
)  # fmt: skip
def test_what_json_cannot_give_back_is_refused_and_named(value: Any) -> None:
    assert ".data.deep[1].here" in refused({"fine": 1, "deep": [0, {"here": value}]})


@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",), uuid.UUID(int=1)], ids=repr)
def test_keys_that_are_not_text_are_refused_and_named(key: Any) -> None:
    assert refused({"deep": {key: 1}}).endswith(f".data.deep has the key {key!r}")


@pytest.mark.parametrize("field", ["stream", "type", "build", "vertex"])
def test_an_envelope_that_is_not_unicode_is_refused(field: str) -> None:
    fields: dict[str, Any] = {"stream": "cache", "type": "T", "data": {}, field: "\ud800"}
    with pytest.raises(ValueError, match=rf"\.{field} is "):
        codec.encode(NewEvent(**fields))


def test_64_kib_is_the_most_an_event_may_take() -> None:
    room = codec.MAX_STATE - len(b'{"t":18446744073709551615,"d":{"x":""}}')
    assert len(stored(NewEvent("cache", "T", {"x": "a" * room}), time=2**64 - 1)[4]) == codec.MAX_STATE == 65536
    assert f"more than {codec.MAX_STATE}" in refused({"x": "a" * (room + 1)})
    assert f"more than {codec.MAX_STATE}" in refused({"x": "é" * (room // 2 + 1)})


def test_lists_that_are_longer_than_an_event_are_stored_apart_the_longest_first() -> None:
    layers = [f"sha256:{number:064}" for number in range(1000)]
    data = {"ref": "a", "few": layers[:10], "a/b": layers, "many": layers, "none": []}
    *_, body, copy, payloads = codec.encode(NewEvent("cache", "T", data))
    state = orjson.loads(body)
    assert len(body) < codec.MAX_STATE
    assert copy["d"] == data
    assert state["d"] == {**data, "a/b": None, "many": None}
    assert list(state["x"]) == ["/many", "/a~1b"]
    assert [orjson.loads(value) for _, value in payloads] == [layers, layers]
    *_, body, copy, payloads = codec.encode(NewEvent("cache", "T", {**data, "a/b": []}))
    assert (list(orjson.loads(body)["x"]), len(payloads)) == (["/many"], 1)


def test_1_mib_is_the_most_that_an_event_and_its_lists_may_take() -> None:
    assert "more than 1048576" in refused({"layers": ["x" * 1000] * 1050})
    assert "without its lists, more than 65536" in refused({"text": "x" * 70_000, "layers": ["x" * 1000] * 100})


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b"1", b"{}", b'{"t":1}', b'{"d":{}}', b"\xff"])
def test_bytes_that_are_no_state_raise_what_is_promised(state: bytes) -> None:
    with pytest.raises(codec.UNREADABLE):
        codec.decode((1, "cache", 1, "T", state))


def test_a_type_name_is_never_imported() -> None:
    event = codec.decode((1, "cache", 1, "antigravity:open", b'{"t":1,"d":{}}'))
    assert event.type == "antigravity:open"
