"""Attacks on single events of a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.tools.auditing.attacks import Attack, Copy, Expected, append

Json = dict[str, Any]


def _change(field: str, value: object, name: str, build: str = "", kind: str = "tree") -> Callable[[Copy], Expected]:
    def do(copy: Copy) -> Expected:
        return Expected(copy.edit(copy.find(name, build), lambda state: state["d"].update({field: value})), kind)

    return do


def _column(at: int, value: object, name: str, kind: str) -> Callable[[Copy], Expected]:
    def do(copy: Copy) -> Expected:
        seq = copy.find(name, "cached")
        row = copy.row(seq)
        row[at] = value
        copy.put(seq, row)
        return Expected(seq, kind)

    return do


def _envelope(key: str, value: object, name: str, kind: str, build: str = "first") -> Callable[[Copy], Expected]:
    def do(copy: Copy) -> Expected:
        return Expected(copy.edit(copy.find(name, build), lambda state: state.update({key: value})), kind)

    return do


def _backdate(copy: Copy) -> Expected:
    seq = copy.find("BuildCompleted", "last")
    return Expected(copy.edit(seq, lambda state: state.update(t=state["t"] - 86400 * 10**9)), "time")


def _backdate_all(copy: Copy) -> Expected:
    for seq in range(1, copy.head + 1):
        copy.edit(seq, lambda state: state.update(t=state["t"] - 86400 * 10**9))
    return Expected(1, "tree")


def _backdate_tail(copy: Copy) -> Expected:
    return Expected(copy.edit(copy.head, lambda state: state.update(t=state["t"] - 10**12)), "time")


def _delete(find: Callable[[Copy], int]) -> Callable[[Copy], Expected]:
    def do(copy: Copy) -> Expected:
        seq = find(copy)
        with copy.log() as db:
            db.execute("DELETE FROM events WHERE rowid = ?", (seq,))
        return Expected(seq, "gap")

    return do


def _delete_and_close_up(copy: Copy) -> Expected:
    seq = copy.find("VertexFailed")
    with copy.log() as db:
        db.execute("DELETE FROM events WHERE rowid = ?", (seq,))
    copy.renumber(seq + 1, -1)
    return Expected(seq, "version")


def _delete_whole_stream(copy: Copy) -> Expected:
    """All of the failed build, numbers and versions closed up, as if it had never been."""
    first, last = copy.find("BuildStarted", "failed"), copy.find("BuildFailed", "failed")
    with copy.log() as db:
        db.execute("DELETE FROM events WHERE rowid BETWEEN ? AND ?", (first, last))
    copy.renumber(last + 1, first - last - 1)
    return Expected(first, "gap")


def _insert(copy: Copy) -> Expected:
    seq = copy.find("BuildCompleted", "cached")
    row = copy.row(seq)
    copy.renumber(seq, 1)
    with copy.log() as db:
        later = "UPDATE events SET originator_version = originator_version + 1 WHERE originator_id = ? AND rowid > ?"
        db.execute(later, (row[0], seq))
    state = json.loads(row[3])
    state["d"] = {"fd": 1, "offset": 0, "text": "all is well\n", "dropped": 0}
    copy.put(seq, [row[0], row[1], "VertexOutput", json.dumps(state, separators=(",", ":")).encode()])
    return Expected(seq, "tree")


def _append_stray(copy: Copy) -> Expected:
    return Expected(append(copy, "build/0123456789ab", "BuildCompleted", {"results": []}, "0123456789ab"), "build")


def _append_plausible(copy: Copy) -> Expected:
    build = copy.scene.builds["last"]
    append(copy, f"build/{build}", "VertexOutput", {"fd": 1, "offset": 0, "text": "hello\n"}, build)
    return Expected(uncovered=copy.head + 1 - (copy.checkpoints[-1] - 1))


def _swap_contents(copy: Copy) -> Expected:
    one = copy.find("VertexCached", "cached")
    first, second = copy.row(one), copy.row(one + 1)
    copy.put(one, [*first[:3], second[3]])
    copy.put(one + 1, [*second[:3], first[3]])
    return Expected(one, "tree")


def _swap_rows(copy: Copy) -> Expected:
    one = copy.find("CacheQueried", "cached")
    first, second = copy.row(one), copy.row(one + 1)
    with copy.log() as db:
        db.execute("UPDATE events SET rowid = -1 WHERE rowid = ?", (one,))
        db.execute("UPDATE events SET rowid = ? WHERE rowid = ?", (one, one + 1))
        db.execute("UPDATE events SET rowid = ? WHERE rowid = -1", (one + 1,))
    assert copy.row(one) == second
    assert copy.row(one + 1) == first
    return Expected(one, "version")


_OTHER = "sha256:" + "ab" * 32
EVENTS = (
    Attack("changes the first event: the Dockerfile's digest", _change("definition", _OTHER, "BuildStarted")),
    Attack("changes an event in the middle: what the cache answered", _change("ref", "x", "CacheQueried")),
    Attack("changes the last signed event: the digest of the result", _change("results", [], "BuildCompleted", "last")),
    Attack("changes the error of a failed build", _change("error", "the network", "BuildFailed")),
    Attack("swaps a descriptor's digest in an event", _change("digest", _OTHER, "BlobCreated")),
    Attack("swaps the digest that a tag was resolved to", _change("manifest", _OTHER, "SourceResolved")),
    Attack("swaps the diff ID of a pulled layer", _change("diff_id", _OTHER, "LayerPulled")),
    Attack("takes a field out of an event", lambda c: Expected(
        c.edit(c.find("Exported"), lambda state: state["d"].pop("digest")), "state")),
    Attack("changes the type of an event to one that is unknown", _column(2, "Nothing", "VertexCached", "tree")),
    Attack("changes the type of an event to another one", _column(2, "BuildCompleted", "VertexCached", "state")),
    Attack("moves an event to another stream", _column(0, "build/0123456789ab", "VertexCached", "version")),
    Attack("changes an event's version", _column(1, 77, "VertexCached", "version")),
    Attack("writes something else than an event", _column(3, b"\x00\x01", "VertexCached", "state")),
    Attack("changes an event's build", _envelope("b", "0123456789ab", "VertexStarted", "stream")),
    Attack("changes an event's vertex", _envelope("v", _OTHER, "VertexStarted", "tree")),
    Attack("changes an event's cause to an earlier event", _envelope("c", 3, "LayerPulled", "tree")),
    Attack("changes an event's cause to a later event", _envelope("c", 9999, "LayerPulled", "cause")),
    Attack("backdates an event", _backdate),
    Attack("backdates the whole log by a day", _backdate_all),
    Attack("backdates the last event, which nothing covers yet", _backdate_tail),
    Attack("deletes the first event", _delete(lambda _: 1)),
    Attack("deletes an event in the middle", _delete(lambda c: c.find("VertexFailed"))),
    Attack("deletes the last signed event", _delete(lambda c: c.checkpoints[-1] - 1)),
    Attack("deletes the last checkpoint", _delete(lambda c: c.checkpoints[-1])),
    Attack("deletes an event and closes up the numbers", _delete_and_close_up),
    Attack("deletes a whole failed build and closes up the numbers", _delete_whole_stream),
    Attack("inserts an event, with fitting numbers and versions", _insert),
    Attack("appends the end of a build that never began", _append_stray),
    Attack("appends an event that looks right, behind the last checkpoint", _append_plausible),
    Attack("exchanges what two events say", _swap_contents),
    Attack("exchanges two events", _swap_rows),
)  # fmt: skip
