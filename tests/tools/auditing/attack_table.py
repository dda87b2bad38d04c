"""The attacks of docs/audit-attacks.md: what is done to a copy of an honest root, and where that has to be found."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage.bundle.form import Index, Member
from storage.bundle.reading import Bundle, read_bundle
from storage.bundle.writing import write_bundle
from storage.digest import Digest, sha256
from storage.interfaces.log import Event, NewEvent
from storage.log.codec import Row
from storage.log.eventlog import SqliteEventLog
from storage.logtree.leaves import leaf_hashes
from storage.logtree.merkle import Frontier
from storage.logtree.tiles import Tree
from storage.signing.notes import Checkpoint, Note, Signer, sign_note
from tests.tools.auditing.attacks import Copy, copy_root
from tools.auditing.bundles import prove_events

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """Where the attack must be found: in event `seq` exactly, or, with `until`, in that range; 0: at no event's. `kind`
    of the fault; "" where nothing is wrong, and then so many events must be said to be vouched for by nobody."""

    seq: int = 0
    kind: str = ""
    until: int = 0
    uncovered: int = 0


@dataclass(frozen=True, slots=True)
class Attack:
    """`what` was done, as the page has it; `do` does it, and says what must come of it; `against`: with the published
    checkpoints at hand."""

    what: str
    do: Callable[[Copy], Expected]
    against: bool = False


# ---------------------------------------------------------------- one event


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


def _append(copy: Copy, stream: str, name: str, data: Json, build: str | None) -> int:
    log = SqliteEventLog(copy.path / "log.db")
    try:
        return log.append(NewEvent(stream, name, data, build))[0].seq
    finally:
        log.close()


def _append_stray(copy: Copy) -> Expected:
    return Expected(_append(copy, "build/0123456789ab", "BuildCompleted", {"results": []}, "0123456789ab"), "build")


def _append_plausible(copy: Copy) -> Expected:
    build = copy.scene.builds["last"]
    _append(copy, f"build/{build}", "VertexOutput", {"fd": 1, "offset": 0, "text": "hello\n"}, build)
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


# ---------------------------------------------------------------- the whole log


def _rows(path: Path) -> list[Row]:
    log = SqliteEventLog(path / "log.db", read_only=True)
    try:
        return list(log.rows(0, log.last_seq()))
    finally:
        log.close()


def _rewrite(copy: Copy, signer: Signer | None) -> None:
    """Make the tree and all checkpoints anew behind a change; with `signer`, sign them."""
    for seq in copy.checkpoints:
        size = seq - 1
        tree = Frontier()
        tree.extend(leaf_hashes(_rows(copy.path)[:size]))
        row = copy.row(seq)
        state = json.loads(row[3])
        old = Note.parse(state["d"]["note"])
        identity = next(leaf_hashes(_rows(copy.path)[:1]))[:8].hex()
        origin = Checkpoint.parse(old.text).origin.rpartition("/")[0] + "/" + identity
        made = str(Checkpoint(origin, size, tree.root()))
        signature = "".join(f"— {name} {b64encode(key + rest).decode()}\n" for name, key, rest in old.signatures)
        note = sign_note(made, signer) if signer else f"{made}\n{signature}"
        state["d"] |= {"root": tree.root().hex(), "note": note, "origin": origin}
        row[3] = json.dumps(state, separators=(",", ":"), ensure_ascii=False).encode()
        copy.put(seq, row)
        published = copy.row(seq + 1)
        told = json.loads(published[3])
        told["d"]["root"] = tree.root().hex()
        copy.put(seq + 1, [*published[:3], json.dumps(told, separators=(",", ":")).encode()])
        (copy.path / "checkpoint").write_text(note)
    (copy.path / "tree.db").unlink()
    with Tree(copy.path / "tree.db") as kept:
        kept.add(leaf_hashes(_rows(copy.path)[: copy.checkpoints[-1] - 1]))
        kept.keep()


def _rewrite_without_key(copy: Copy) -> Expected:
    copy.edit(copy.find("BuildFailed"), lambda state: state["d"].update(error="it was the network"))
    _rewrite(copy, None)
    return Expected(copy.checkpoints[2], "signature")


def _rewrite_with_other_key(copy: Copy) -> Expected:
    copy.edit(copy.find("BuildFailed"), lambda state: state["d"].update(error="it was the network"))
    _rewrite(copy, Signer("ci.example/refledger", bytes(range(32))))
    return Expected(1, "signature", until=copy.head)


def _drop_checkpoints(copy: Copy) -> Expected:
    for seq in reversed(copy.checkpoints):
        with copy.log() as db:
            db.execute("DELETE FROM events WHERE rowid IN (?, ?)", (seq, seq + 1))
        copy.renumber(seq + 2, -2)
        for later, *_, state in _rows(copy.path):
            if json.loads(state).get("c", 0) > seq:
                copy.edit(later, lambda state: state.update(c=state["c"] - 2))
    copy.forget()
    return Expected(1, "signature", until=copy.head - 2 * len(copy.checkpoints))


def _replace_log(copy: Copy, source: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (copy.path / f"log.db{suffix}").unlink(missing_ok=True)
        if (source / f"log.db{suffix}").exists():
            shutil.copy2(source / f"log.db{suffix}", copy.path)


def _old_end(copy: Copy) -> int:
    return len(_rows(copy.scene.old))


def _roll_back(copy: Copy) -> Expected:
    _replace_log(copy, copy.scene.old)
    return Expected(_old_end(copy) + 1, "rollback", until=copy.checkpoints[-1] - 1)


def _roll_back_all(copy: Copy) -> Expected:
    shutil.rmtree(copy.path)
    copy_root(copy.scene.old, copy.path)
    return Expected(_old_end(copy) + 1, "rollback", until=copy.checkpoints[2] - 1)


def _cut_off(copy: Copy) -> Expected:
    end = copy.checkpoints[-1] - 3
    with copy.log() as db:
        db.execute("DELETE FROM events WHERE rowid > ?", (end,))
    return Expected(end + 1, "rollback", until=copy.checkpoints[-1] - 1)


def _fork(copy: Copy) -> Expected:
    """Somebody who may use the key goes on from an old copy, and does not publish."""
    shutil.rmtree(copy.path)
    copy_root(copy.scene.old, copy.path)
    builder = copy.scene.builder
    env = {"REFLEDGER_ROOT": str(copy.path), "REFLEDGER_AUDIT_PUBLISH": ""}
    for _ in range(40):  # as long as the true one
        build = "f" * 12
        log = len(_rows(copy.path))
        name = "BuildStarted" if not any(row[1] == f"build/{build}" for row in _rows(copy.path)) else "VertexOutput"
        data: Json = {"fd": 1, "offset": 0, "text": "x"}
        if name == "BuildStarted":
            data = {"frontend": "dockerfile", "definition": "", "options": {}, "context": None, "engine_version": "0",
                    "host": {}}  # fmt: skip
        assert _append(copy, f"build/{build}", name, data, build) == log + 1
    done = builder.run("audit", "checkpoint", env=env)
    assert done.code == 0, done.err
    return Expected(copy.checkpoints[1], "fork", until=copy.checkpoints[2] - 1)


def _other_log(copy: Copy) -> Expected:
    _replace_log(copy, copy.scene.other)
    return Expected(1, "origin", until=copy.head)


def _other_checkpoint(copy: Copy) -> Expected:
    row = next(row for row in _rows(copy.scene.other) if row[3] == "CheckpointSigned")
    return Expected(_append(copy, "log", "CheckpointSigned", json.loads(row[4])["d"], None), "origin")


def _other_events(copy: Copy) -> Expected:
    """A build of another root, as it was stored there."""
    rows = _rows(copy.scene.other)
    with copy.log() as db:
        for _, stream, version, name, state in rows[: [row[3] for row in rows].index("CheckpointSigned")]:
            highest = "SELECT MAX(originator_version) FROM events WHERE originator_id = ?"
            [there] = db.execute(highest, (stream,)).fetchone()
            db.execute("INSERT INTO events (originator_id, originator_version, topic, state) VALUES (?, ?, ?, ?)",
                       (stream, (there or version - 1) + 1, name, state))  # fmt: skip
    return Expected(copy.head + 1, "blob", until=copy.head + len(rows))


def _truncate_file(copy: Copy) -> Expected:
    with closing(sqlite3.connect(copy.path / "log.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(copy.path / "log.db", (copy.path / "log.db").stat().st_size // 2)
    return Expected(1, "file", until=copy.head)


# ---------------------------------------------------------------- checkpoints


def _forge_checkpoint(copy: Copy) -> Expected:
    tree = Frontier()
    tree.extend(leaf_hashes(_rows(copy.path)))
    old = json.loads(copy.row(copy.checkpoints[-1])[3])["d"]
    made = Checkpoint(old["origin"], tree.size, tree.root())
    note = sign_note(str(made), Signer("ci.example/refledger", bytes(32)))
    data = {"origin": made.origin, "size": made.size, "root": made.root.hex(), "note": note}
    seq = _append(copy, "log", "CheckpointSigned", data, None)
    return Expected(copy.checkpoints[-1], "signature", until=seq)


def _strip_signature(copy: Copy) -> Expected:
    seq = copy.checkpoints[-1]
    return Expected(copy.edit(seq, lambda s: s["d"].update(note=s["d"]["note"].partition("— ")[0])), "signature")


def _flip_signature(copy: Copy) -> Expected:
    def flip(state: Json) -> None:
        note = state["d"]["note"]
        state["d"]["note"] = note[:-10] + ("A" if note[-10] != "A" else "B") + note[-9:]

    return Expected(copy.edit(copy.checkpoints[-1], flip), "signature")


def _other_root_in_event(copy: Copy) -> Expected:
    return Expected(copy.edit(copy.checkpoints[-1], lambda state: state["d"].update(root="00" * 32)), "checkpoint")


def _published_lie(copy: Copy) -> Expected:
    return Expected(copy.edit(copy.head, lambda state: state["d"].update(size=copy.head)), "checkpoint")


def _seen_forged(copy: Copy) -> Expected:
    old = Checkpoint.parse(Note.parse((copy.path / "checkpoint").read_text()).text)
    note = sign_note(str(Checkpoint(old.origin, 5, bytes(32))), Signer("ci.example/refledger", bytes(32)))
    (copy.path / "checkpoint").write_text(note)
    return Expected(0, "checkpoint")


# ---------------------------------------------------------------- what lies beside the log


def _views(copy: Copy) -> Expected:
    with closing(sqlite3.connect(copy.path / "views.db", isolation_level=None)) as db:
        changed = db.execute("UPDATE builds SET status = 'completed' WHERE status = 'failed'").rowcount
    assert changed == 1
    return Expected(0, "views")


def _tile(copy: Copy, seq: int) -> None:
    with closing(sqlite3.connect(copy.path / "tree.db", isolation_level=None)) as db:
        [hashes] = db.execute("SELECT hashes FROM tiles WHERE level = 0 AND number = 0").fetchone()
        changed = hashes[: 32 * (seq - 1)] + bytes(32) + hashes[32 * seq :]
        db.execute("UPDATE tiles SET hashes = ? WHERE level = 0 AND number = 0", (changed,))


def _tiles(copy: Copy) -> Expected:
    _tile(copy, 40)
    return Expected(0, "kept")


def _change_and_tiles(copy: Copy) -> Expected:
    seq = copy.edit(copy.find("BuildFailed"), lambda state: state["d"].update(error="it was the network"))
    _tile(copy, seq)
    return Expected(copy.checkpoints[1], "tree", until=copy.checkpoints[2] - 1)


def _blob(copy: Copy, digest: str) -> Path:
    return copy.path / "blobs" / "sha256" / digest.partition(":")[2]


def _named(copy: Copy, name: str, field: str) -> tuple[int, Path]:
    seq = copy.find(name)
    return seq, _blob(copy, json.loads(copy.row(seq)[3])["d"][field])


def _swap_blob(copy: Copy) -> Expected:
    seq, path = _named(copy, "BuildStarted", "definition")
    path.write_text("FROM scratch\n")
    return Expected(seq, "blob")


def _exchange_blobs(copy: Copy) -> Expected:
    (one, first), (_, second) = _named(copy, "GraphDefined", "graph"), _named(copy, "ContextScanned", "listing")
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return Expected(one, "blob")


def _delete_blob(copy: Copy) -> Expected:
    seq, path = _named(copy, "GraphDefined", "graph")
    path.unlink()
    return Expected(seq, "blob")


def _swap_packed(copy: Copy) -> Expected:
    seq, path = _named(copy, "BlobCreated", "digest")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return Expected(seq, "blob")


def _image_of(copy: Copy, kind: str, name: str) -> Path:
    """The image, or the first file of the tree, of a layer or snapshot."""
    image = copy.path / kind / f"{name}.erofs"
    if image.exists():
        return image
    return next(path for path in sorted((copy.path / kind / name / "fs").rglob("*")) if path.is_file())


def _edit_file(path: Path) -> None:
    """Change one byte in the middle, and give the file its time back when it is an image."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if path.suffix == ".erofs":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _edit_snapshot(copy: Copy) -> Expected:
    seq = copy.find("LocalCreated", last=True)
    _edit_file(_image_of(copy, "snapshots", json.loads(copy.row(seq)[3])["d"]["ref"]))
    return Expected(seq, "snapshot")


def _delete_snapshot(copy: Copy) -> Expected:
    seq = copy.find("LocalCreated")
    name = json.loads(copy.row(seq)[3])["d"]["ref"]
    shutil.rmtree(copy.path / "snapshots" / name, ignore_errors=True)
    (copy.path / "snapshots" / f"{name}.erofs").unlink(missing_ok=True)
    return Expected(seq, "snapshot")


def _edit_seal(copy: Copy) -> Expected:
    """The seal of a tree, or the header that is the seal of an image."""
    for row in _rows(copy.path):
        seq, name = row[0], json.loads(row[4])["d"].get("ref", "")
        if row[3] != "LocalCreated":
            continue
        seal = copy.path / "snapshots" / name / "seal"
        if seal.exists():
            seal.write_text("1 " + "0" * 64 + "\n")
            return Expected(seq, "snapshot")
    raise AssertionError("no RUN left a tree")


def _edit_layer(copy: Copy) -> Expected:
    seq = copy.find("LayerPulled")
    _edit_file(_image_of(copy, "layers", json.loads(copy.row(seq)[3])["d"]["diff_id"].partition(":")[2]))
    return Expected(seq, "layer")


def _exchange_layers(copy: Copy) -> Expected:
    """One layer in the place of another: each is sound by itself."""
    pulled = [row for row in _rows(copy.path) if row[3] == "LayerPulled"]
    names = [json.loads(row[4])["d"]["diff_id"].partition(":")[2] for row in pulled[:2]]
    for suffix in ("", ".erofs"):
        one, two = (copy.path / "layers" / (name + suffix) for name in names)
        if one.exists():
            one.rename(one.with_name("aside"))
            two.rename(one)
            one.with_name("aside").rename(two)
    return Expected(pulled[0][0], "layer")


# ---------------------------------------------------------------- bundles


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
    return Expected(last[0], "build")


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


# ---------------------------------------------------------------- nothing wrong


def _vacuum(copy: Copy) -> Expected:
    with copy.log() as db:
        db.execute("VACUUM")
    return Expected(uncovered=2)


def _without_views(copy: Copy) -> Expected:
    copy.forget()
    return Expected(uncovered=2)


_OTHER = "sha256:" + "ab" * 32
ATTACKS = (
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
    Attack("rewrites the log, tree and checkpoints, without the key", _rewrite_without_key),
    Attack("rewrites all of it and signs with another key of the same name", _rewrite_with_other_key),
    Attack("takes out all checkpoints, and all that is kept beside the log", _drop_checkpoints),
    Attack("puts an old copy of log.db in its place", _roll_back),
    Attack("rolls back log, tree and last checkpoint", _roll_back_all, against=True),
    Attack("cuts off the end of the log", _cut_off),
    Attack("goes on from an old copy with the key, behind a published checkpoint", _fork, against=True),
    Attack("puts the log of another root in its place", _other_log),
    Attack("appends a checkpoint of another root of the same key", _other_checkpoint),
    Attack("appends the events of another root", _other_events),
    Attack("truncates the file", _truncate_file),
    Attack("appends a checkpoint that another key of that name signed", _forge_checkpoint),
    Attack("strips the signature from a checkpoint", _strip_signature),
    Attack("changes a signature", _flip_signature),
    Attack("changes the root in the event of a checkpoint", _other_root_in_event),
    Attack("says that something else was published", _published_lie),
    Attack("forges the checkpoint beside the log", _seen_forged),
    Attack("edits views.db", _views),
    Attack("edits the kept tree", _tiles),
    Attack("changes an event and the kept tree", _change_and_tiles),
    Attack("swaps a blob", _swap_blob),
    Attack("exchanges two blobs", _exchange_blobs),
    Attack("deletes a blob", _delete_blob),
    Attack("flips a bit of a packed layer", _swap_packed),
    Attack("flips a bit of a snapshot", _edit_snapshot),
    Attack("deletes a snapshot", _delete_snapshot),
    Attack("edits the seal of a snapshot", _edit_seal),
    Attack("flips a bit of a layer, and resets the time", _edit_layer),
    Attack("exchanges two layers", _exchange_layers),
    Attack("changes an event of a bundle, and its digests", _bundled_event),
    Attack("takes an event out of a bundle, and proves the rest", _bundled_taken_out),
    Attack("takes the end out of a bundle, and proves the rest", _bundled_without_end),
    Attack("gives a bundle the proof of another one", _bundled_other_proof),
    Attack("takes the proof out of a bundle", _bundled_no_proof),
    Attack("leaves the Dockerfile out of a bundle, and its entry in the index", _bundled_blob),
    Attack("flips a bit of a bundle", _bundled_bit),
    Attack("drops the triggers and runs VACUUM", _vacuum),
    Attack("deletes views, kept tree and the checkpoint beside the log", _without_views),
)  # fmt: skip
