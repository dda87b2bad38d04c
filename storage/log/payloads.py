"""Detached values as a log's readers see them (see storage.log.detached): joined with their events, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from storage.interfaces.log import Event, EventLog, Payload, StoredPayloads
from storage.log import codec
from storage.log.detached import REDACTION, ids, join, problem, salted, stored

Query = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
_MANY = 250  # events a query
_NOTHING = (b"", b"")


class Payloads:
    """The payloads of one log. `query` runs SQL on it."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._told: dict[int, Event | None] = {}

    def join(self, detached: Sequence[tuple[Event, dict[str, str]]]) -> None:
        """Complete the data of these events, in order of `seq`. Raises BadPayload or another of codec.UNREADABLE."""
        found = self._stored([event.seq for event, _ in detached])
        for event, digests in detached:
            data, seq = event.data, event.seq
            number = ids(seq)
            for place, digest in digests.items():
                salt, value = found.get(number, _NOTHING)
                name = place[1:]
                # Mostly it is one text right in the data, and reading a log is mostly that.
                if name.isalpha() and data[name] is None and salted(salt, value) == digest:
                    data[name] = orjson.loads(value)
                else:
                    payload = stored(number, seq, place, digest, salt, value)
                    join(data, payload, None if payload.data else self._redaction(payload))
                number += 1

    def of(self, rows: Sequence[codec.Row]) -> Iterator[Payload]:
        """The payloads of stored events, in order. Raises one of codec.UNREADABLE."""
        detached: list[tuple[Event, dict[str, str]]] = []
        for row in rows:
            if b'"x":{' in row[4]:
                codec.decode(row, detached)
        found = self._stored([event.seq for event, _ in detached])
        for event, digests in detached:
            for number, (place, digest) in enumerate(digests.items(), ids(event.seq)):
                yield stored(number, event.seq, place, digest, *found.get(number, _NOTHING))

    def _stored(self, seqs: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
        """Salt and data by id, of these events."""
        rows: list[tuple[Any, ...]] = []
        sql = "SELECT id, salt, data FROM payloads WHERE"
        if seqs and seqs[-1] - seqs[0] < 4 * len(seqs):
            rows = self._query(f"{sql} id >= ? AND id < ?", (ids(seqs[0]), ids(seqs[-1] + 1)))
        else:
            for start in range(0, len(seqs), _MANY):
                some = seqs[start : start + _MANY]
                ranges = " OR ".join(["id >= ? AND id < ?"] * len(some))
                rows += self._query(f"{sql} {ranges}", [end for seq in some for end in (ids(seq), ids(seq + 1))])
        return {row[0]: row[1:] for row in rows}

    def _redaction(self, payload: Payload) -> dict[str, Any] | None:
        """What the log says of why `payload` is gone; None when it says nothing."""
        seq = payload.erased
        if seq not in self._told:
            found = self._query(
                "SELECT rowid, originator_id, originator_version, topic, state FROM events WHERE rowid = ?", (seq,)
            )
            self._told[seq] = codec.decode(found[0]) if found and found[0][3] == REDACTION else None
        event = self._told[seq]
        if event is None or payload.digest not in _digests(event):
            return None
        return {"seq": seq, "time": event.time, "by": event.data["by"], "reason": event.data["reason"]}


def _digests(event: Event) -> list[str]:
    """What a redaction says that it erased; nothing, where it is none that anybody made."""
    said = event.data.get("digests")
    return [digest for digest in said if isinstance(digest, str)] if isinstance(said, list) else []


def payload_problems(log: EventLog, payloads: StoredPayloads) -> Iterator[tuple[int, str]]:
    """What is wrong with detached values: event and why, in order of events, for those that verify a log. Raises
    LogError."""
    told = {digest: event.seq for event in log.read(types=frozenset({REDACTION})) for digest in _digests(event)}
    for payload in payloads.payloads(0, log.last_seq()):
        if wrong := problem(payload):
            yield payload.seq, wrong
        elif payload.data and payload.digest in told:
            yield payload.seq, f"its {payload.pointer} was redacted in event {told[payload.digest]}, and is here"
        elif not payload.data and told.get(payload.digest) is None:
            yield payload.seq, f"its {payload.pointer} is gone, and no event says that it was redacted"

