"""Attacks on what lies beside a log; and what is none."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.tools.auditing.attacks import Attack, Copy, Expected, stored_rows

Json = dict[str, Any]


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
    for row in stored_rows(copy.path):
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
    pulled = [row for row in stored_rows(copy.path) if row[3] == "LayerPulled"]
    names = [json.loads(row[4])["d"]["diff_id"].partition(":")[2] for row in pulled[:2]]
    for suffix in ("", ".erofs"):
        one, two = (copy.path / "layers" / (name + suffix) for name in names)
        if one.exists():
            one.rename(one.with_name("aside"))
            two.rename(one)
            one.with_name("aside").rename(two)
    return Expected(pulled[0][0], "layer")


BESIDE = (
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
)  # fmt: skip


def _vacuum(copy: Copy) -> Expected:
    with copy.log() as db:
        db.execute("VACUUM")
    return Expected(uncovered=2)


def _without_views(copy: Copy) -> Expected:
    copy.forget()
    return Expected(uncovered=2)


SOUND = (
    Attack("drops the triggers and runs VACUUM", _vacuum),
    Attack("deletes views, kept tree and the checkpoint beside the log", _without_views),
)  # fmt: skip
