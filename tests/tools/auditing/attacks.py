"""What somebody who can write to a root may do to it, and what `refledger audit verify` says of that.

A real root, whose log was signed at the end of each build, is made once; every attack works on a copy.
`python -m tests.tools.auditing.attacks` writes docs/audit-attacks.md.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.interfaces.log import NewEvent
from storage.log.codec import Row
from storage.log.eventlog import SqliteEventLog
from tests.builder import PROJECT, Builder, base_image, refledger
from tests.registry_fixture import RegistryProcess

Json = dict[str, Any]
PAGE = PROJECT / "docs/audit-attacks.md"
DOCKERFILE = """\
FROM {base}
COPY greeting /greeting
RUN cat /greeting > /copy
RUN echo {word} > /word
"""


@dataclass(slots=True)
class Scene:
    """The root of several builds, honest: `old` is a copy of it as it was before the last two; `other` another root
    that the same key signs; `published` the file that got every checkpoint of both; `builds` by what they are."""

    root: Path
    old: Path
    other: Path
    key: str
    published: Path
    builder: Builder
    builds: dict[str, str] = field(default_factory=dict)


def make_scene(directory: Path, registry: RegistryProcess, repository: str) -> Scene:
    """Real builds: one that runs and pushes, one that is cached, one that fails, one that pushes another image."""
    builder, other = Builder(directory / "one"), Builder(directory / "two")
    published = directory / "published"
    key = directory / "key"
    made = builder.run("audit", "keygen", "--name", "ci.example/refledger", "-o", str(key))
    assert made.code == 0, made.err
    verifier = next(word for word in made.out.split() if word.startswith("ci.example/refledger+"))
    image = base_image(registry, f"{repository}/base")
    for one in (builder, other):
        one.env |= {"REFLEDGER_AUDIT_KEY_FILE": str(key), "REFLEDGER_AUDIT_PUBLISH": f"file:{published}"}
        one.write({"greeting": "hello\n"})
    scene = Scene(builder.root, directory / "old", other.root, verifier, published, builder)

    def build(name: str, word: str, *args: str, fails: bool = False) -> None:
        text = DOCKERFILE.format(base=image["reference"], word=word)
        done = builder.build(text + ("RUN echo it breaks; false\n" if fails else ""), *args)
        assert done.code == (1 if fails else 0), done.err
        scene.builds[name] = builder.builds()[0]["id"]

    build("first", "one", "-t", f"{registry.host}/{repository}/app:1", "--push")
    build("cached", "one")
    copy_root(builder.root, scene.old)
    build("failed", "one", fails=True)
    build("last", "two", "-t", f"{registry.host}/{repository}/app:2", "--push")
    other.must_build(DOCKERFILE.format(base=image["reference"], word="three"))
    return scene


def copy_root(source: Path, dest: Path) -> None:
    """As `cp -a` does it: times and owners are kept."""
    subprocess.run(["cp", "-a", str(source), str(dest)], check=True)


# ---------------------------------------------------------------- a copy under attack


@dataclass(slots=True)
class Copy:
    """A copy of the scene's root that somebody writes to."""

    scene: Scene
    path: Path
    events: list[Json]
    bundle: Path | None = None

    @property
    def target(self) -> Path:
        """What is to be checked."""
        return self.bundle or self.path

    def make_bundle(self, build: str) -> Path:
        """An honest bundle of a build, which is the target from now on."""
        self.bundle = self.path.with_name(f"{build}.bundle")
        args = "--root", str(self.path), "bundle", self.scene.builds[build], "-o", str(self.bundle)
        done = self.scene.builder.run(*args)
        assert done.code == 0, done.err
        return self.bundle

    @contextmanager
    def log(self) -> Iterator[sqlite3.Connection]:
        """The log without what makes it append-only."""
        with closing(sqlite3.connect(self.path / "log.db", isolation_level=None)) as db:
            triggers = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")]
            for name in triggers:
                db.execute(f'DROP TRIGGER "{name}"')
            yield db

    def row(self, seq: int) -> list[Any]:
        """Stream, version, type and state of an event."""
        with self.log() as db:
            sql = "SELECT originator_id, originator_version, topic, state FROM events WHERE rowid = ?"
            return list(db.execute(sql, (seq,)).fetchone())

    def put(self, seq: int, row: list[Any]) -> None:
        """Write it back."""
        with self.log() as db:
            db.execute("DELETE FROM events WHERE rowid = ?", (seq,))
            db.execute("INSERT INTO events (rowid, originator_id, originator_version, topic, state)"
                       " VALUES (?, ?, ?, ?, ?)", (seq, *row))  # fmt: skip

    def edit(self, seq: int, change: Callable[[Json], object]) -> int:
        """Change the state of an event; returns `seq`."""
        row = self.row(seq)
        state = json.loads(row[3])
        change(state)
        row[3] = json.dumps(state, separators=(",", ":"), ensure_ascii=False).encode()
        self.put(seq, row)
        return seq

    def find(self, name: str, build: str = "", last: bool = False) -> int:
        """The `seq` of the first (or `last`) event of type `name` (of that build)."""
        wanted = self.scene.builds.get(build)
        found = [one["seq"] for one in self.events if one["type"] == name and wanted in (None, one["build"])]
        return int(found[-1 if last else 0])

    @property
    def head(self) -> int:
        """The last event."""
        return int(self.events[-1]["seq"])

    @property
    def checkpoints(self) -> list[int]:
        """Events that are checkpoints."""
        return [one["seq"] for one in self.events if one["type"] == "CheckpointSigned"]

    def renumber(self, start: int, by: int) -> None:
        """Move the events from `start` on."""
        with self.log() as db:
            order = "DESC" if by > 0 else "ASC"
            rows = db.execute(f"SELECT rowid FROM events WHERE rowid >= ? ORDER BY rowid {order}", (start,)).fetchall()
            for (seq,) in rows:
                db.execute("UPDATE events SET rowid = ? WHERE rowid = ?", (seq + by, seq))
                own = "id BETWEEN ? * 1024 AND ? * 1024 + 1023"  # what lies apart from it moves along
                db.execute(f"UPDATE payloads SET id = id + ? * 1024 WHERE {own}", (by, seq, seq))

    def forget(self) -> None:
        """Throw away all that is kept beside the log."""
        for name in ("tree.db", "checkpoint", "views.db"):
            (self.path / name).unlink(missing_ok=True)


def open_copy(scene: Scene, path: Path) -> Copy:
    """A fresh copy at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    copy_root(scene.root, path)
    return Copy(scene, path, _events(scene))


_known: dict[Path, list[Json]] = {}


def _events(scene: Scene) -> list[Json]:
    if scene.root not in _known:
        _known[scene.root] = scene.builder.events()
    return _known[scene.root]


# ---------------------------------------------------------------- what verify says


def append(copy: Copy, stream: str, name: str, data: Json, build: str | None) -> int:
    log = SqliteEventLog(copy.path / "log.db")
    try:
        return log.append(NewEvent(stream, name, data, build))[0].seq
    finally:
        log.close()


def stored_rows(path: Path) -> list[Row]:
    log = SqliteEventLog(path / "log.db", read_only=True)
    try:
        return list(log.rows(0, log.last_seq()))
    finally:
        log.close()


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code, the first line of the error, and the object that --json prints."""

    code: int
    error: str
    found: Json


def verify(path: Path, *args: str) -> Outcome:
    """`refledger audit verify PATH --json ARGS` in another process, without key or root in its environment."""
    done = refledger("audit", "verify", str(path), "--json", *args, env={"PATH": "/usr/bin:/bin", "HOME": "/"})
    return Outcome(done.code, done.err.strip(), json.loads(done.out) if done.out.strip() else {})


# ---------------------------------------------------------------- the page

_HEAD = """# Attacks on a log, and what finds them

What somebody who can write to a root, or to a bundle, may do, and what `refledger audit verify --key KEY` says first.
Each was done to a copy of a root of four real builds (one that ran and pushed, one cached, one failed, one that pushed
again), whose log was signed at the end of each and published to a file. `python -m tests.tools.auditing.attacks` did
them all and made this page; `tests/tools/auditing/test_attacks.py` checks every row. Where two checkpoints vouch for
what is between them only, the position is that range (`to`). N are numbers. See [the threat model](audit.md).

| somebody | with | found at | `audit verify` says |
|---|---|---|---|
"""


def page(rows: Sequence[str]) -> str:
    """docs/audit-attacks.md."""
    return _HEAD + "".join(f"{row}\n" for row in rows)


def row(what: str, against: bool, expected: Expected, outcome: Outcome) -> str:
    """Its line of the table."""
    first = outcome.found.get("first")
    if first is None:
        where, said = "–", "nothing is wrong with it"
        if expected.uncovered > HONEST_TAIL:
            said += f"; nothing vouches for the last {expected.uncovered}"
    else:
        where = "no event"
        if first["seq"]:
            where = "the event" if first["seq"] == first["until"] else "a range of events"
        said = f"{first['what']}: {first['meaning']}"
    cells = [what, "`--against`" if against else "", where, f"`` {_steady(said)} ``"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


HONEST_TAIL = 2
"""Events behind the last checkpoint of an honest root: that one, and that it was published."""


def _steady(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text)
    text = re.sub(r"'sha256:[0-9a-f]+", "'DIGEST", text)
    text = re.sub(r"\b[0-9a-f]{12}(-[0-9a-f]{12}-[0-9]+)?\b", lambda found: "SNAPSHOT" if found[1] else "BUILD", text)
    text = re.sub(r"\b[0-9a-f]{16}\b", "LOG", text)
    text = re.sub(r"/.*?/published", "PUBLISHED", text)
    return re.sub(r"\b[0-9]+(\.[0-9]+)?\b", "N", text)


def main() -> None:
    """Do them all and write the page."""
    import tempfile

    from tests.tools.auditing.attack_table import ATTACKS

    with tempfile.TemporaryDirectory() as name, RegistryProcess(Path(name) / "hub") as registry:
        scene = make_scene(Path(name), registry, "attacks")
        rows = []
        for number, attack in enumerate(ATTACKS):
            copy = open_copy(scene, Path(name) / str(number) / "root")
            expected = attack.do(copy)
            outcome = attempt(scene, copy.target, against=attack.against)
            rows.append(row(attack.what, attack.against, expected, outcome))
            print(rows[-1], file=sys.stderr)  # progress, for who waits
            clear(copy.path.parent)
        PAGE.write_text(page(rows))


def attempt(scene: Scene, path: Path, *, against: bool) -> Outcome:
    """As somebody checks it who has the key, and the published checkpoints if the table says so."""
    return verify(path, "--key", scene.key, *(["--against", str(scene.published)] if against else []))


def clear(path: Path) -> None:
    """Remove a copy."""
    shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
