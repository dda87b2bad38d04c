"""Attacks on a log as a whole, and on its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from typing import Any

from storage.logtree.leaves import leaf_hashes
from storage.logtree.merkle import Frontier
from storage.logtree.tiles import Tree
from storage.signing.notes import Checkpoint, Note, Signer, sign_note
from tests.tools.auditing.attacks import Attack, Copy, Expected, append, copy_root, stored_rows

Json = dict[str, Any]


def _rewrite(copy: Copy, signer: Signer | None) -> None:
    """Make the tree and all checkpoints anew behind a change; with `signer`, sign them."""
    for seq in copy.checkpoints:
        size = seq - 1
        tree = Frontier()
        tree.extend(leaf_hashes(stored_rows(copy.path)[:size]))
        row = copy.row(seq)
        state = json.loads(row[3])
        old = Note.parse(state["d"]["note"])
        identity = next(leaf_hashes(stored_rows(copy.path)[:1]))[:8].hex()
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
        kept.add(leaf_hashes(stored_rows(copy.path)[: copy.checkpoints[-1] - 1]))
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
        for later, *_, state in stored_rows(copy.path):
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
    return len(stored_rows(copy.scene.old))


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
        there = stored_rows(copy.path)
        log = len(there)
        name = "BuildStarted" if not any(row[1] == f"build/{build}" for row in there) else "VertexOutput"
        data: Json = {"fd": 1, "offset": 0, "text": "x"}
        if name == "BuildStarted":
            data = {"frontend": "dockerfile", "definition": "", "options": {}, "context": None, "engine_version": "0",
                    "host": {}}  # fmt: skip
        assert append(copy, f"build/{build}", name, data, build) == log + 1
    done = builder.run("audit", "checkpoint", env=env)
    assert done.code == 0, done.err
    return Expected(copy.checkpoints[1], "fork", until=copy.checkpoints[2] - 1)


def _other_log(copy: Copy) -> Expected:
    _replace_log(copy, copy.scene.other)
    return Expected(1, "origin", until=copy.head)


def _other_checkpoint(copy: Copy) -> Expected:
    row = next(row for row in stored_rows(copy.scene.other) if row[3] == "CheckpointSigned")
    return Expected(append(copy, "log", "CheckpointSigned", json.loads(row[4])["d"], None), "origin")


def _other_events(copy: Copy) -> Expected:
    """A build of another root, as it was stored there."""
    rows = stored_rows(copy.scene.other)
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


def _forge_checkpoint(copy: Copy) -> Expected:
    tree = Frontier()
    tree.extend(leaf_hashes(stored_rows(copy.path)))
    old = json.loads(copy.row(copy.checkpoints[-1])[3])["d"]
    made = Checkpoint(old["origin"], tree.size, tree.root())
    note = sign_note(str(made), Signer("ci.example/refledger", bytes(32)))
    data = {"origin": made.origin, "size": made.size, "root": made.root.hex(), "note": note}
    seq = append(copy, "log", "CheckpointSigned", data, None)
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


LOGS = (
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
)  # fmt: skip
CHECKPOINTS = (
    Attack("appends a checkpoint that another key of that name signed", _forge_checkpoint),
    Attack("strips the signature from a checkpoint", _strip_signature),
    Attack("changes a signature", _flip_signature),
    Attack("changes the root in the event of a checkpoint", _other_root_in_event),
    Attack("says that something else was published", _published_lie),
    Attack("forges the checkpoint beside the log", _seen_forged),
)  # fmt: skip
