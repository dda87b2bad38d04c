"""What may be lost or damaged: in a root, in a registry, and the registry itself."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.log.eventlog import SqliteEventLog
from tools.drills.place import Place


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done: `kind` for the table, `what` exactly. `digest`: the blob of the base image that only a person can
    bring back, "" when there is none; `away`: so is the registry. `meanwhile` happens while the build runs, `undo`
    after it."""

    kind: str
    what: str
    digest: str = ""
    away: bool = False
    meanwhile: Callable[[Any], None] = lambda _: None
    undo: Callable[[], None] = lambda: None


def hurt(path: Path, dice: random.Random) -> str:
    """Do something bad to one file; says what."""
    size = path.stat().st_size
    way = dice.choice(["flip", "truncate", "remove", "empty", "append"] if size else ["remove", "append"])
    if way == "flip":
        at = dice.randrange(size)
        with path.open("r+b") as out:
            out.seek(at)
            byte = out.read(1)[0]
            out.seek(at)
            out.write(bytes([byte ^ (1 << dice.randrange(8))]))
    elif way == "remove":
        path.unlink()
    elif way == "append":
        with path.open("ab") as out:
            out.write(b"x")
    else:
        os.truncate(path, dice.randrange(size) if way == "truncate" else 0)
    return f"{way} {path.name[:16]}"


def hurt_kept(item: Path, dice: random.Random) -> str:
    """Do something bad to a layer or a snapshot, an image or a directory."""
    if item.is_file():
        return hurt(item, dice)
    way = dice.choice(["file", "file", "file", "all", "tree", "new"])
    if way == "all":
        shutil.rmtree(item)
    elif way == "tree":
        shutil.rmtree(item / "fs")
    elif way == "new":
        (item / "fs/stray").touch()
    else:
        files = sorted(path for path in (item / "fs").rglob("*") if path.is_file() and not path.is_symlink())
        if files:
            return hurt(dice.choice(files), dice)
        (item / "fs").chmod(0o700)
    return f"{way} of {item.name[:16]}"


def in_root(directory: str) -> Callable[[Place, Path, random.Random], Damage]:
    """Damages one thing in `layers`, `snapshots` or `blobs` of the root."""

    def damage(_place: Place, root: Path, dice: random.Random) -> Damage:
        kept = sorted(root.glob("blobs/sha256/*" if directory == "blobs" else f"{directory}/*"))
        if not kept:
            return Damage(directory, "nothing is there")
        return Damage(directory, hurt_kept(dice.choice(kept), dice))

    return damage


def everything(_place: Place, root: Path, dice: random.Random) -> Damage:
    """Damages half of all that is in the root, but the log."""
    kept = [path for glob in ("layers/*", "snapshots/*", "blobs/sha256/*") for path in sorted(root.glob(glob))]
    chosen = dice.sample(kept, len(kept) // 2)
    for item in chosen:
        hurt_kept(item, dice)
    return Damage("half of the root", f"{len(chosen)} things")


def in_registry(place: Place, _root: Path, dice: random.Random) -> Damage:
    """Damages or removes a blob (layer, config or manifest) in the registry's storage, which is put back afterwards."""
    stored = sorted((place.registry.directory / "data").rglob("blobs/sha256/*/*/data"))
    path = dice.choice(stored)
    digest = f"sha256:{path.parent.name}"
    before = path.read_bytes()
    what = hurt(path, dice)

    def undo() -> None:
        path.write_bytes(before)

    only = digest if digest in place.base_blobs else ""
    return Damage("registry blob", f"{what} {digest[:19]}", digest=only, undo=undo)


def registry_away(place: Place, root: Path, dice: random.Random) -> Damage:
    """Takes the registry away some time after the first hit of the build."""
    pause = dice.uniform(0, 0.4)
    log = SqliteEventLog(root / "log.db", read_only=True)
    last = log.last_seq()

    def meanwhile(process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            if next(log.read(after=last, types=frozenset({"CacheQueried"})), None) is not None:
                time.sleep(pause)
                break
            time.sleep(0.01)
        log.close()
        place.registry.stop()

    def undo() -> None:
        place.registry.start()

    return Damage("registry gone", f"{pause:.2f} s after the hit", away=True, meanwhile=meanwhile, undo=undo)


LOCAL = (in_root("layers"), in_root("snapshots"), in_root("blobs"), everything)
