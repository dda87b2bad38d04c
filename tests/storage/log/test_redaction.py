"""Values stored apart from their events come back whole, cannot be changed, and are gone when they are erased."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import LogDamaged, LogError, LogTooNew
from storage.interfaces.log import REDACTED, NewEvent, Payload
from storage.log import codec, recorder
from storage.log.detached import ROOM, detach, pointer, salted
from storage.log.eventlog import SqliteEventLog
from storage.log.logfile import FORMAT
from storage.log.payloads import payload_problems
from storage.logtree.leaves import leaf_hashes
from storage.logtree.merkle import Frontier

ROOT = Path(__file__).parents[3]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    log = SqliteEventLog(tmp_path / "a root" / "log.db")
    yield log
    log.close()


def printed(text: str, stream: str = "build/b") -> NewEvent:
    data = {"fd": 1, "offset": 0, "text": text, "dropped": 0}
    return NewEvent(stream, "VertexOutput", data, "b", "v", detached=("/text",))


def said(payloads: list[Payload]) -> NewEvent:
    digests = [payload.digest for payload in payloads]
    return NewEvent("log", "PayloadRedacted", {"digests": digests, "by": "ann", "reason": "it told a password"})


def erase(log: SqliteEventLog, *payloads: Payload) -> int:
    return log.redact((said(list(payloads)), payloads))[0].seq


def test_an_event_of_1_mib_is_read_as_it_was_written_and_its_lists_are_no_redaction(log: SqliteEventLog) -> None:
    """Layers of an image of hundreds, which are stored apart because they are long."""
    data = {"ref": "a", "layers": [{"digest": f"{number:0200}"} for number in range(4800)], "few": [1]}
    [event] = log.append(NewEvent("ref/a", "RemoteCreated", data, "b"))
    assert (event.data, [one.data for one in log.read()]) == (data, [data])
    assert [len(row[4]) < codec.MAX_STATE for row in log.rows(0, 1)] == [True]
    assert [(one.pointer, len(one.data) > 1_000_000) for one in all_payloads(log)] == [("/layers", True)]
    assert list(payload_problems(log, log)) == []


def all_payloads(log: SqliteEventLog) -> list[Payload]:
    return list(log.payloads(0, log.last_seq()))


def tree(log: SqliteEventLog, until: int) -> bytes:
    frontier = Frontier()
    frontier.extend(leaf_hashes(log.rows(0, until)))
    return frontier.root()


def bytes_below(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def change(path: Path, *statements: str) -> None:
    """As somebody would who may write the file."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER payloads_no_update")
    connection.execute("DROP TRIGGER payloads_no_delete")
    for statement in statements:
        connection.execute(statement)
    connection.close()


# ---------------------------------------------------------------- kept apart

NAMES = st.text(min_size=1, max_size=6).filter(lambda name: name.isprintable())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8,
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.tuples(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5), st.randoms()), max_size=5))
def test_what_is_detached_anywhere_comes_back_as_it_was(log: SqliteEventLog, drawn: list[Any]) -> None:
    before = log.last_seq()
    events = []
    for data, chance in drawn:
        places = [pointer(name) for name in data]
        places += [pointer(name, inner) for name, value in data.items() if isinstance(value, dict) for inner in value]
        chosen = [place for place in places if chance.random() < 0.5]
        whole = [place for place in chosen if not any(place.startswith(f"{other}/") for other in chosen)]
        events.append(NewEvent("cache", "T", data, detached=tuple(whole)))
    made = log.append(*events)
    assert [event.data for event in made] == [event.data for event in events]
    assert list(log.read(after=before)) == made
    assert [list(event.data) for event in log.read(after=before)] == [list(event.data) for event in events]
    assert not list(payload_problems(log, log))


def test_the_stored_state_has_salted_digests_and_no_value(log: SqliteEventLog) -> None:
    log.append(printed("swordfish"), printed("swordfish"))
    states = [row[4] for row in log.rows(0, 2)]
    first, second = all_payloads(log)
    assert not any(b"swordfish" in state for state in states)
    assert first.digest != second.digest, "the same value twice: nobody can tell"
    assert first.digest.encode() in states[0]
    assert salted(first.salt, b'"swordfish"') == first.digest
    assert len(first.salt) == 32


def test_events_read_by_type_and_one_by_one_are_whole(log: SqliteEventLog) -> None:
    for number in range(700):
        log.submit([printed(f"line {number}"), *(NewEvent("cache", "T", {}) for _ in range(number % 9))])
    log.append(NewEvent("cache", "T", {}))
    outputs = list(log.read(types=frozenset({"VertexOutput"})))
    assert [event.data["text"] for event in outputs] == [f"line {number}" for number in range(700)]
    some = outputs[321]
    assert list(log.read(after=some.seq - 1, until=some.seq)) == [some]


def test_a_name_that_looks_like_a_mark_is_a_name(log: SqliteEventLog) -> None:
    data = {"a": {REDACTED: {"digest": "x"}}, "x": {"/a": "sha256:00"}, "d": None}
    log.append(NewEvent("cache", "T", data))
    assert next(log.read()).data == data
    assert not all_payloads(log)


# ---------------------------------------------------------------- erased


def test_erased_is_gone_from_every_file_and_the_tree_stands(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(printed("harmless"), printed("swordfish-4711\n"), printed("harmless too"))
    before = tree(log, 3)
    secret = all_payloads(log)[1]
    assert b"swordfish" in bytes_below(tmp_path)
    seq = erase(log, secret)
    assert b"swordfish" not in bytes_below(tmp_path), "while the log is open"
    assert secret.salt not in bytes_below(tmp_path), "or a short value could be found by trying"
    assert tree(log, 3) == before
    texts = [event.data["text"] for event in log.read(until=3)]
    assert (texts[0], texts[2]) == ("harmless", "harmless too")
    told = next(log.read(after=seq - 1))
    assert texts[1] == {
        REDACTED: {"digest": secret.digest, "seq": seq, "time": told.time, "by": "ann", "reason": "it told a password"}
    }
    assert (told.type, told.data["digests"]) == ("PayloadRedacted", [secret.digest])
    assert not list(payload_problems(log, log))


def test_erasing_in_any_order_leaves_no_copy_in_free_space(log: SqliteEventLog, tmp_path: Path) -> None:
    chance = random.Random(9)
    texts = [f"needle-{number:04}-" + "x" * chance.choice((0, 10, 500, 3000, 20_000)) for number in range(300)]
    for start in range(0, 300, 10):
        log.append(*map(printed, texts[start : start + 10]), NewEvent("cache", "T", {}))
    payloads = all_payloads(log)
    order = chance.sample(range(300), 200)
    for start in range(0, 200, 20):
        erase(log, *(payloads[number] for number in order[start : start + 20]))
        log.append(printed("more"))
    data = bytes_below(tmp_path)
    assert {number for number in range(300) if b"needle-%04d-" % number in data} == set(range(300)) - set(order)
    assert not list(payload_problems(log, log))


def test_erasing_twice_keeps_what_was_said_first(log: SqliteEventLog) -> None:
    log.append(printed("x"))
    payload = all_payloads(log)[0]
    first = erase(log, payload)
    erase(log, payload)
    assert next(log.read()).data["text"][REDACTED]["seq"] == first


KILLED = """
import os, signal, sys
from pathlib import Path
from storage.log import recorder
from storage.log.eventlog import SqliteEventLog
from tests.storage.log.test_redaction import erase, all_payloads, printed
log = SqliteEventLog(Path(sys.argv[1]))
log.append(printed("other"), printed("swordfish-4711"))
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before":
    recorder.LogRecorder.erase = die
else:
    recorder.LogWriter._truncate = die
erase(log, all_payloads(log)[1])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_I12_kill_9_while_erasing_leaves_both_or_neither(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "root" / "log.db"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    log = SqliteEventLog(path)
    kinds = [event.type for event in log.read()]
    assert kinds == ["VertexOutput"] * 2 + ["PayloadRedacted"] * (moment == "after")
    assert not list(payload_problems(log, log))
    log.append(printed("the next build"))
    log.close()
    assert (b"swordfish" in bytes_below(tmp_path)) == (moment == "before"), "whoever closes it next finishes it"


def test_a_reader_that_keeps_the_old_state_is_told_of(
    log: SqliteEventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_READERS", 0.1)
    monkeypatch.setattr(recorder, "LOCK_TIMEOUT", 0.05)
    log.append(printed("swordfish-4711"))
    reader = sqlite3.connect(tmp_path / "a root" / "log.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM payloads").fetchall()
    with pytest.raises(LogError, match="another process reads an earlier state"):
        erase(log, all_payloads(log)[0])
    reader.close()
    assert next(log.read()).data["text"][REDACTED]["by"] == "ann"
    log.close()
    assert b"swordfish" not in bytes_below(tmp_path)


# ---------------------------------------------------------------- changed behind its back


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE payloads SET data = CAST('\"swordfisH\"' AS BLOB) WHERE id / 1024 = 2", "is not what it was"),
        ("UPDATE payloads SET salt = randomblob(32) WHERE id / 1024 = 2", "is not what it was"),
        ("DELETE FROM payloads WHERE id / 1024 = 2", "no event says"),
        ("UPDATE payloads SET data = zeroblob(5) WHERE id / 1024 = 2", "no event says"),
        ("UPDATE payloads SET data = x'', salt = x'' WHERE id / 1024 = 2", "no event says"),
        ("UPDATE payloads SET (salt, data) = (SELECT salt, data FROM payloads LIMIT 1) WHERE id / 1024 = 2", "not"),
    ],
)
def test_a_payload_that_was_changed_or_taken_away_is_found(
    log: SqliteEventLog, tmp_path: Path, statement: str, words: str
) -> None:
    log.append(printed("a"), printed("swordfish"), printed("c"))
    change(tmp_path / "a root" / "log.db", statement)
    assert [seq for seq, _ in payload_problems(log, log)] == [2]
    read = log.read()
    assert next(read).data["text"] == "a", "what lies before it can be read"
    with pytest.raises(LogDamaged, match=f"event 2 is damaged: .*{words}"):
        next(read)


def test_what_another_redaction_told_of_excuses_nothing(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(printed("a"), printed("b"))
    erase(log, all_payloads(log)[0])
    change(
        tmp_path / "a root" / "log.db",
        "UPDATE payloads SET (salt, data) = (SELECT salt, data FROM payloads LIMIT 1) WHERE id / 1024 = 2",
    )
    assert [seq for seq, _ in payload_problems(log, log)] == [2]
    with pytest.raises(LogDamaged, match="event 2 is damaged"):
        list(log.read())


def test_an_erased_value_that_was_put_back_is_found(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(printed("a"))
    payload = all_payloads(log)[0]
    erase(log, payload)
    change(
        tmp_path / "a root" / "log.db",
        f"UPDATE payloads SET salt = x'{payload.salt.hex()}', data = x'{payload.data.hex()}'",
    )
    assert list(payload_problems(log, log)) == [(1, "its /text was redacted in event 2, and is here")]


# ---------------------------------------------------------------- formats


def old_log(path: Path) -> None:
    """As Refledger made logs before: no payloads, format 1."""
    log = SqliteEventLog(path)
    log.append(NewEvent("build/b", "VertexOutput", {"fd": 1, "offset": 0, "text": "old"}, "b", "v"))
    log.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("DROP TABLE payloads; PRAGMA user_version = 1")
    connection.close()


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def test_I10_an_old_log_is_read_and_becomes_a_new_one_when_it_must(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    old_log(path)
    log = SqliteEventLog(path)
    log.append(NewEvent("cache", "T", {}))
    assert version(path) == 1
    assert not all_payloads(log)
    log.append(printed("new"))
    assert version(path) == FORMAT
    assert [event.data.get("text") for event in log.read()] == ["old", None, "new"]
    erase(log, *all_payloads(log))
    log.close()


def test_an_older_refledger_refuses_a_log_with_payloads(
    log: SqliteEventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(printed("new"))
    monkeypatch.setattr("storage.log.logfile.FORMAT", 1)
    with pytest.raises(LogTooNew, match="format 2, and this Refledger knows formats up to 1"):
        SqliteEventLog(tmp_path / "a root" / "log.db", read_only=True)


def test_what_is_to_be_detached_must_be_there() -> None:
    with pytest.raises(KeyError):
        codec.encode(NewEvent("cache", "T", {"a": 1}, detached=("/b",)))


def test_a_log_read_in_place_needs_no_write(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(printed("a"))
    log.close()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a root").iterdir()}
    reader = SqliteEventLog(tmp_path / "a root" / "log.db", read_only=True)
    assert [event.data["text"] for event in reader.read()] == ["a"]
    with pytest.raises(LogError, match="for reading only"):
        reader.redact((said([]), ()))
    reader.close()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a root").iterdir()} == before
    assert list(before) == ["log.db"]


def test_I6_what_was_erased_does_not_come_back_with_the_write_ahead_log_of_a_power_loss(
    log: SqliteEventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite empties that, and does not flush it: xfs had the old one after a power loss."""
    log.append(printed("swordfish"))
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        synced.append((Path(f"/proc/self/fd/{fd}").readlink().name, os.fstat(fd).st_size))

    monkeypatch.setattr(os, "fsync", watched)
    erase(log, *all_payloads(log))
    assert synced[-1] == ("log.db-wal", 0)


def test_an_event_has_so_many_detached_values_at_most() -> None:
    names = tuple(f"a{number}" for number in range(ROOM + 1))
    with pytest.raises(ValueError, match="more than 1024"):
        detach(dict.fromkeys(names, 1), tuple(map(pointer, names)))


def test_a_value_that_stands_in_the_event_too_is_damage(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(printed("said"))
    with closing(sqlite3.connect(tmp_path / "a root" / "log.db")) as db, db:
        db.execute("DROP TRIGGER events_no_update")
        db.execute("UPDATE events SET state = replace(CAST(state AS TEXT), '\"text\":null', '\"text\":\"more\"')")
        db.execute("UPDATE events SET state = CAST(state AS BLOB)")
    with pytest.raises(LogError, match="its /text is there twice"):
        list(log.read())
