"""Values that are stored apart from their events: those that may have to be erased while no event changes, and lists
that are too long for one (storage/log/codec.py).

An event that has such a value (what a step printed, the value of a build arg, 500 layers) holds null in its place, and
under `x` of its state the value's *salted digest*, by the place's JSON pointer (RFC 6901):

    SHA-256(salt, 32 random bytes || 0x00 || the value as JSON)

Salt and value lie in a table of their own, `payloads`, and go into the log with the event, in one transaction. The tree
over the log (storage/logtree/leaves.py) is of states, so it holds for the digests: with the value, a proof covers it
too; without, nobody can guess a value and try it, as the salt is gone with it. Where the value was, the payload then
names the event that tells who erased it, when and why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from storage.interfaces.images import Json
from storage.interfaces.log import REDACTED, Payload

SALT = 32  # bytes
_DRAWN = 128  # salts
ROOM = 1024
"""Values that one event may have detached at most: the id of a payload is ROOM × seq + its place among the pointers."""

REDACTION = "PayloadRedacted"
"""The type of the events that tell who erased values, `by` and `reason`, of which `digests`."""

SCHEMA = (
    "CREATE TABLE payloads (id INTEGER PRIMARY KEY, salt BLOB NOT NULL, data BLOB NOT NULL)",
    ("CREATE TRIGGER payloads_no_delete BEFORE DELETE ON payloads "
     "BEGIN SELECT RAISE(ABORT, 'payloads are erased in place'); END"),
    ("CREATE TRIGGER payloads_no_update BEFORE UPDATE ON payloads WHEN substr(NEW.data, 1, 1) <> x'00' "
     "BEGIN SELECT RAISE(ABORT, 'payloads are erased, and never changed'); END"),
)
"""A rowid table, appended to in order: SQLite then never moves a row, and leaves no copy of one behind."""


def salted(salt: bytes, data: bytes) -> str:
    """The salted digest of a value's JSON."""
    return "sha256:" + sha256(salt + b"\0" + data).hexdigest()


_salts: list[bytes] = []
os.register_at_fork(after_in_child=_salts.clear)  # reason: two processes must never use the same salt


def _salt() -> bytes:
    """Random bytes, drawn for many values at once: asking the kernel for each costs more than all else that is done to
    detach one."""
    try:
        return _salts.pop()  # atomic, so that no other thread gets the same
    except IndexError:
        drawn = os.urandom(SALT * _DRAWN)
        salt, *rest = (drawn[at : at + SALT] for at in range(0, len(drawn), SALT))
        _salts.extend(rest)
        return salt


def pointer(*names: str) -> str:
    """The JSON pointer of a place."""
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def detach(data: Json, pointers: tuple[str, ...]) -> tuple[Json, dict[str, str], tuple[tuple[bytes, bytes], ...]]:
    """`data` with null at `pointers`, the digests by pointer, and salt and JSON of each. Raises KeyError, ValueError
    for more of them than ROOM."""
    if len(pointers) > ROOM:
        raise ValueError(f"{len(pointers)} detached values, more than {ROOM}")
    rest, digests, payloads = dict(data), {}, []
    for place in pointers:
        value, salt = _swap(rest, place, None, copied=True), _salt()
        payload = orjson.dumps(value)
        digests[place] = salted(salt, payload)
        payloads.append((salt, payload))
    return rest, digests, tuple(payloads)


def _swap(data: Json, place: str, value: Any, *, copied: bool = False) -> Any:
    """Put `value` at `place`, and return what was there; `copied`: objects on the way are replaced by copies."""
    *way, last = place.split("/")[1:]
    for name in way:
        inner = data[_plain(name)]
        if copied:
            inner = data[_plain(name)] = dict(inner)
        data = inner
    name = _plain(last)
    old, data[name] = data[name], value
    return old


def _plain(name: str) -> str:
    return name.replace("~1", "/").replace("~0", "~") if "~" in name else name


# ---------------------------------------------------------------- stored


class BadPayload(ValueError):
    """What is detached from an event cannot be put back; says why."""


def ids(seq: int) -> int:
    """The id of the first payload of event `seq`."""
    return seq * ROOM


def erased(payload: bytes, event: int) -> tuple[bytes, bytes]:
    """What replaces salt and data of a payload, of the same size: SQLite then writes it over them, in place, and copies
    nothing elsewhere. The `event` that tells of it, and zeros (no JSON)."""
    return event.to_bytes(SALT, "big"), bytes(len(payload))


def stored(number: int, seq: int, place: str, digest: str, salt: bytes, data: bytes) -> Payload:
    """The payload of a stored row, or of none (no `data`)."""
    if data[:1] in (b"", b"\0"):
        return Payload(number, seq, place, digest, erased=int.from_bytes(salt, "big") & (2**63 - 1))
    return Payload(number, seq, place, digest, salt, data)


def problem(payload: Payload) -> str:
    """Why a payload is not the one that its event has the digest of; "" when it is, or is gone."""
    if payload.data and salted(payload.salt, payload.data) != payload.digest:
        return f"its {payload.pointer} is not what it was: the digest differs"
    return ""


def join(data: Json, payload: Payload, told: Mapping[str, Any] | None) -> None:
    """Put the value back into its event's `data`; for an erased one, what is `told` of that. Raises BadPayload, and
    KeyError, TypeError, AttributeError or ValueError for an event that has no such place."""
    if payload.data:
        if wrong := problem(payload):
            raise BadPayload(wrong)
        value = orjson.loads(payload.data)
    elif told is None:
        raise BadPayload(f"its {payload.pointer} is gone, and no event says that it was redacted")
    else:
        value = {REDACTED: {"digest": payload.digest, **told}}
    if _swap(data, payload.pointer, value) is not None:
        raise BadPayload(f"its {payload.pointer} is there twice")


def part(data: Json, digests: Mapping[str, str], salts: Mapping[str, bytes]) -> None:
    """Undo `join`, where the values came with their `salts` by pointer: null at each place, once its value is found to
    be the one of the digest. What is told of an erased one is believed when it names that. Raises BadPayload, and
    KeyError, TypeError or AttributeError for an event that has no such place."""
    for place, digest in digests.items():
        value = _swap(data, place, None)
        if isinstance(value, dict) and isinstance(told := value.get(REDACTED), dict):
            same = told.get("digest") == digest
        else:
            same = salted(salts.get(place, b""), orjson.dumps(value)) == digest
        if not same:
            raise BadPayload(f"its {place} is not what it was: the digest differs")
