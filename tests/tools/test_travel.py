"""Looking back from the command line: a long log in a root that is only read, and logs that are old or not whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from projections.history import History
from projections.mentions import Mentions
from projections.records import read_records, records_of
from storage.interfaces.log import NewEvent
from storage.log.eventlog import SqliteEventLog
from tests.builder import Done, refledger
from tests.projections import story
from tests.projections.support import ListLog
from tests.state import state_of
from tools import roots
from tools.lab.long_log import make

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
EVENTS, BUILDS = 18_000, 60


@pytest.fixture(scope="module")
def long_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("long") / "root"
    make(root, EVENTS, BUILDS)
    assert run(root, "rebuild").code == 0
    return root


def run(root: Path, *args: str) -> Done:
    env = {"PATH": os.environ["PATH"], "HOME": str(root.parent), "TZ": "UTC"}
    return refledger("--root", str(root), *args, env=env)


def told(root: Path, *args: str) -> list[Any]:
    done = run(root, *args, "--json")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_a_build_at_a_step_a_time_and_an_event(long_root: Path) -> None:
    before = state_of(long_root)
    build = told(long_root, "history", "--status", "completed")[0]
    (end,) = told(long_root, "show", build["id"])
    (third,) = told(long_root, "show", build["id"], "--at", "step:3")
    assert third["status"] == "running"
    assert all(step["state"] in {"done", "cached"} for step in third["steps"][:3])
    assert third["steps"][3]["state"] == "pending"
    (by_name,) = told(long_root, "show", build["id"], "--at", "make part-2")
    (by_seq,) = told(long_root, "show", build["id"], "--at", str(third["at"]))
    assert by_name == by_seq == third
    (last,) = told(long_root, "show", build["id"], "--at", "+1h")
    assert last["steps"] == end["steps"]
    (first,) = told(long_root, "show", build["id"], "--at", str(build["first_seq"]))
    assert first["steps"] == []
    for moment, words in (("3", "step:3"), ("+soon", "+45s"), ("no such", "no step matches"), ("1999-01-01", "began")):
        done = run(long_root, "show", build["id"], "--at", moment)
        assert done.code == 2
        assert words in done.err
        assert done.err.count("\n") == 1
    assert state_of(long_root) == before


def test_a_build_played_into_a_pipe_is_told_at_once_line_by_line(long_root: Path) -> None:
    build = told(long_root, "history", "--status", "completed")[0]["id"]
    lines = run(long_root, "show", build, "--play").out.splitlines()
    assert lines[1] == "#1 [1/12] FROM base"
    assert lines[-2].startswith("#13 DONE")
    (end,) = told(long_root, "show", build)
    played = told(long_root, "show", build, "--play")
    assert played[-1]["type"] == "BuildCompleted"
    assert len([item for item in played if item["type"] == "VertexCompleted"]) == len(
        [item for item in end["steps"] if item["state"] == "done" and item["kind"] == "step"]
    )


def test_refs_as_they_were(long_root: Path) -> None:
    now = told(long_root, "refs")
    half = told(long_root, "refs", "--at", str(EVENTS // 2))
    assert 0 < len(half) < len(now)
    assert {item["ref"] for item in half} == {item["ref"] for item in now if item["seq"] <= EVENTS // 2}
    assert told(long_root, "refs", "--at", str(EVENTS)) == now
    assert run(long_root, "refs", "--at", "1999-01-01").code == 2
    assert run(long_root, "refs", "--at", str(EVENTS + 1)).code == 2


def test_what_lay_in_the_root_at_a_moment(long_root: Path) -> None:
    first = next(item for item in told(long_root, "refs") if item["kind"] == "local" and item["bytes"] == 8192)
    *before, total_before = told(long_root, "du", "--at", str(first["seq"] - 1))
    *after, total_after = told(long_root, "du", "--at", str(first["seq"]))
    new = {item["name"] for item in after} - {item["name"] for item in before}
    assert new == {first["ref"]}
    assert total_after["bytes"] - total_before["bytes"] == 8192
    assert run(long_root, "du", "--at", "1", "--verbose").code == 2


def test_output_by_step_and_pattern(long_root: Path) -> None:
    build = next(item for item in told(long_root, "history") if item["executed"] == 12)["id"]
    lines = told(long_root, "output", build, "3")
    assert lines
    assert {line["step"] for line in lines} == {"[3/12] RUN make part-2"}
    assert told(long_root, "output", build, "3", "--grep", "^cc .*object") == lines
    stamped = run(long_root, "output", build, "3", "--timestamps").out.splitlines()[0]
    assert stamped.startswith("2025-10-09 ")
    assert run(long_root, "output", build, "--grep", "not there").code == 1
    assert run(long_root, "output", build, "--grep", "(").code == 2
    assert run(long_root, "output", build, "--attempt", "2").code == 2


def test_what_is_known_of_keys_is_the_same_with_and_without_the_index(long_root: Path) -> None:
    with roots.read_root(long_root) as (log, views):
        keys = [event.data["key"] for event in log.read(types=frozenset({"CacheRecorded"}))][:200:20]
        end = History(views).list()[0].last_seq
        whole, some = read_records(log, end), records_of(log, Mentions(views), keys, end)
        for key in keys:
            assert some.latest(key, 10**9) == whole.latest(key, 10**9) is not None
            record = some.latest(key, 10**9)
            assert record is not None
            assert some.names(record) == whole.names(record)
            assert some.execution(record) == whole.execution(record)
            for name in some.names(record):
                assert some.pulled.get(name) == whole.pulled.get(name)
                assert some.providers.get(name) == whole.providers.get(name)


# ---------------------------------------------------------------- old logs


@pytest.mark.parametrize("name", ["1-first", "1-language", "1-caches"])
def test_I10_logs_of_every_schema_so_far_are_read(tmp_path: Path, name: str) -> None:
    """Written by the code of commits 0cb7613 (the first log), 927a906 and 02d5df4."""
    shutil.copy(LOGS / f"{name}.db", tmp_path / "log.db")
    builds = told(tmp_path, "history")
    assert [(build["id"], build["status"]) for build in builds] == [("b2", "running"), ("b1", "completed")]
    assert builds[1]["bytes_pulled"] == 30_000_000
    (view,) = told(tmp_path, "show", "b1")
    assert [step["state"] for step in view["steps"]] == ["done", "done", "cached", "done"]
    assert [line["text"] for line in told(tmp_path, "output", "b1")] == ["cc -c main.c", "cc -o main main.o"]
    assert [ref["kind"] for ref in told(tmp_path, "refs")] == ["local", "remote"]
    assert len(told(tmp_path, "events")) == len(list(stored(tmp_path)))


def stored(root: Path) -> list[int]:
    log = SqliteEventLog(root / "log.db", read_only=True)
    try:
        return [event.seq for event in log.read()]
    finally:
        log.close()


def test_a_log_of_a_newer_version_is_refused_in_one_line(tmp_path: Path) -> None:
    import sqlite3

    shutil.copy(LOGS / "1-caches.db", tmp_path / "log.db")
    db = sqlite3.connect(tmp_path / "log.db")
    db.execute("PRAGMA user_version = 7")
    db.close()
    for args in (["history"], ["events"], ["refs"], ["rebuild"]):
        done = run(tmp_path, *args)
        assert done.code == 3
        assert "written by a newer Refledger" in done.err
        assert done.err.count("\n") == 1
        assert done.out == ""


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["torn last page", "truncated", "overwritten"])
def test_what_lies_before_the_damage_is_read_and_the_damage_is_named(
    long_root: Path, tmp_path: Path, damage: str
) -> None:
    root = tmp_path / "root"
    shutil.copytree(long_root, root)
    path = root / "log.db"
    data = path.read_bytes()
    if damage == "overwritten":
        middle = len(data) // 2 // 4096 * 4096
        path.write_bytes(data[:middle] + b"\xa5" * 8192 + data[middle + 8192 :])
    else:
        path.write_bytes(data[: len(data) - 1000] if damage == "torn last page" else data[: len(data) * 3 // 4])
    whole = [json.loads(line) for line in run(long_root, "events", "--json").out.splitlines()]
    done = run(root, "events", "--json")
    read = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 3
    named = (f" after event {len(read)}", f" event {len(read) + 1} is damaged")
    assert any(words in done.err for words in named)
    assert done.err.count("\n") == 1
    assert len(read) > EVENTS // 4
    assert read == whole[: len(read)]
    told_builds = run(root, "history", "--json", "-n", "1000")
    assert "Traceback" not in told_builds.err
    builds = [json.loads(line) for line in told_builds.out.splitlines()]
    begun = [event for event in read if event["type"] == "BuildStarted"]
    assert len(builds) >= len(begun) - 1
    shown = run(root, "show", begun[0]["build"], "--json")
    assert json.loads(shown.out)["status"] == told(long_root, "show", begun[0]["build"])[0]["status"]


def test_a_damaged_event_is_named_and_those_before_it_are_read(tmp_path: Path) -> None:
    import sqlite3

    log = ListLog()
    story.whole(log)
    real = SqliteEventLog(tmp_path / "log.db")
    for event in log.events:
        real.append(NewEvent(event.stream, event.type, event.data, event.build, event.vertex))
    real.close()
    db = sqlite3.connect(tmp_path / "log.db")
    db.execute("DROP TRIGGER events_no_update")
    db.execute("UPDATE events SET state = x'7b7d' WHERE rowid = 9")
    db.commit()
    db.close()
    done = run(tmp_path, "events", "--json")
    assert [json.loads(line)["seq"] for line in done.out.splitlines()] == list(range(1, 9))
    assert "event 9 is damaged" in done.err
    shown = run(tmp_path, "show", "b1")
    assert shown.code == 3
    assert "RUN make" in shown.out
    assert "event 9 is damaged" in shown.err
