"""Attacks on bundles."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.bundle.form import Index, Member
from storage.bundle.reading import Bundle, read_bundle
from storage.bundle.writing import write_bundle
from storage.digest import Digest, sha256
from storage.interfaces.log import Event
from storage.log.eventlog import SqliteEventLog
from tests.tools.auditing.attacks import Attack, Copy, Expected
from tools.auditing.bundles import prove_events

Json = dict[str, Any]


def rebundle(path: Path, change: Callable[[Bundle, list[Event], dict[Digest, bytes]], Index]) -> None:
    """Write the bundle anew, with all its digests made to fit. `change` gets its events and blobs, to change them."""
    found = read_bundle(path)
    assert found.damage is None
    events, blobs = list(found.events), dict(found.small)
    index = change(found, events, blobs)
    kept = [member for member in index.blobs if member.digest in blobs]
    write_bundle(str(path), replace(index, blobs=tuple(kept), kept={}), events, lambda one: io.BytesIO(blobs[one]))


def _bundled_event(copy: Copy) -> Expected:
    path = copy.make_bundle("failed")

    def change(found: Bundle, events: list[Event], _: dict[Digest, bytes]) -> Index:
        at = next(at for at, event in enumerate(events) if event.type == "BuildFailed")
        events[at] = replace(events[at], data={**events[at].data, "error": "it was the network"})
        return found.index

    rebundle(path, change)
    return Expected(1, "proof", until=copy.head)


def _bundled_taken_out(copy: Copy) -> Expected:
    """With a proof of the rest, which anybody who has the log can make."""
    path = copy.make_bundle("failed")
    gone: list[int] = []

    def change(found: Bundle, events: list[Event], blobs: dict[Digest, bytes]) -> Index:
        at = next(at for at, event in enumerate(events) if event.type == "VertexFailed")
        gone.append(events.pop(at).seq)
        return _with_proof(copy, found.index, events, blobs)

    rebundle(path, change)
    return Expected(gone[0] + 1, "version")


def _bundled_without_end(copy: Copy) -> Expected:
    path = copy.make_bundle("failed")
    last: list[int] = []

    def change(found: Bundle, events: list[Event], blobs: dict[Digest, bytes]) -> Index:
        events.pop()
        last.append(events[-1].seq)
        return _with_proof(copy, found.index, events, blobs)

    rebundle(path, change)
    return Expected(last[0], "end")


def _with_proof(copy: Copy, index: Index, events: list[Event], blobs: dict[Digest, bytes]) -> Index:
    log = SqliteEventLog(copy.path / "log.db", read_only=True)
    try:
        proof = prove_events(copy.path, log, events)
    finally:
        log.close()
    assert proof is not None
    blobs[sha256(proof)] = proof
    members = [member for member in index.blobs if member.role != "proof"]
    return replace(index, blobs=(*members, Member(sha256(proof), len(proof), "proof")))


def _proof_of(found: Bundle) -> bytes:
    return next(found.small[member.digest] for member in found.index.blobs if member.role == "proof")


def _bundled_other_proof(copy: Copy) -> Expected:
    other = _proof_of(read_bundle(copy.make_bundle("last")))
    path = copy.make_bundle("failed")

    def change(found: Bundle, _: list[Event], blobs: dict[Digest, bytes]) -> Index:
        blobs[sha256(other)] = other
        members = [member for member in found.index.blobs if member.role != "proof"]
        return replace(found.index, blobs=(*members, Member(sha256(other), len(other), "proof")))

    rebundle(path, change)
    return Expected(1, "proof", until=copy.head)


def without_proof(found: Bundle, _: list[Event], __: dict[Digest, bytes]) -> Index:
    """The index of the bundle as one of a root that was never signed has it."""
    return replace(found.index, blobs=tuple(one for one in found.index.blobs if one.role != "proof"))


def _bundled_no_proof(copy: Copy) -> Expected:
    rebundle(copy.make_bundle("failed"), without_proof)
    return Expected(1, "signature", until=copy.head)


def _bundled_blob(copy: Copy) -> Expected:
    """The Dockerfile left out, without a word."""
    path = copy.make_bundle("failed")

    def change(found: Bundle, _: list[Event], __: dict[Digest, bytes]) -> Index:
        return replace(found.index, blobs=tuple(one for one in found.index.blobs if one.role != "definition"))

    rebundle(path, change)
    return Expected(copy.find("BuildStarted", "failed"), "blob")


def _bundled_bit(copy: Copy) -> Expected:
    path = copy.make_bundle("failed")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return Expected(0, "file")


BUNDLES = (
    Attack("changes an event of a bundle, and its digests", _bundled_event),
    Attack("takes an event out of a bundle, and proves the rest", _bundled_taken_out),
    Attack("takes the end out of a bundle, and proves the rest", _bundled_without_end),
    Attack("gives a bundle the proof of another one", _bundled_other_proof),
    Attack("takes the proof out of a bundle", _bundled_no_proof),
    Attack("leaves the Dockerfile out of a bundle, and its entry in the index", _bundled_blob),
    Attack("flips a bit of a bundle", _bundled_bit),
)  # fmt: skip
