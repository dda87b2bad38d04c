"""Views can be thrown away, torn, copied and folded by several at once, and are always the same."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections import runner, viewfile
from projections.history import History
from projections.runner import Projection, Views
from projections.standard import STANDARD
from storage.digest import canonical_json, parse_json
from storage.errors import DiskError, HostError, LogError
from storage.interfaces.log import Event
from tests.projections import story
from tests.projections.support import ListLog


def dump_of(log: ListLog) -> bytes:
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        return views.dump()


def test_I1_rebuilt_views_dump_byte_for_byte_the_same(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        assert views.catch_up(log) > 0
        before = views.dump()
    for leftover in tmp_path.iterdir():
        leftover.unlink()
    with Views(path, STANDARD) as views:
        views.catch_up(log)
        assert views.dump() == before
        assert views.position == log.last_seq()
        views.rebuild(log)
        assert views.dump() == before
        assert views.check(log) == []
    assert before.count(b"\n") > 10


def test_a_dump_has_every_field_of_every_row(tmp_path: Path) -> None:
    """What is compared by dumps is compared by all of it."""
    with Views(tmp_path / "views.db", STANDARD) as views:
        views.catch_up(story.full_log())
        whole, found = views.dump().splitlines(), []
        for view in STANDARD:
            found.append({"view": view.name, "version": view.version})
            for table in view.tables:
                names = [row[1] for row in views.query(f"PRAGMA table_info({table})")]
                rows = views.query(f"SELECT * FROM {table}")
                found += [{"table": table, "row": dict(zip(names, row, strict=True))} for row in rows]
    assert sorted(whole) == sorted(map(canonical_json, found))
    assert {line["table"] for line in map(parse_json, whole) if "table" in line} >= {"builds", "cache", "uses"}


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, len(story.full_log().events)), max_size=6), batch=st.integers(1, 30),
       restarts=st.booleans())  # fmt: skip
def test_I1_any_split_into_batches_and_restarts_gives_the_same_dump(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], batch: int, restarts: bool
) -> None:
    whole = story.full_log()
    path = tmp_path_factory.mktemp("views") / "views.db"
    views = Views(path, STANDARD)
    original, runner.BATCH = runner.BATCH, batch
    try:
        for cut in [*sorted(cuts), len(whole.events)]:
            views.catch_up(ListLog(whole.events[:cut]))
            if restarts:
                views.close()
                views = Views(path, STANDARD)
        assert views.dump() == dump_of(whole)
    finally:
        runner.BATCH = original
        views.close()


def test_catching_up_again_folds_nothing(tmp_path: Path) -> None:
    log = story.full_log()
    with Views(tmp_path / "views.db", STANDARD) as views:
        assert views.catch_up(log) > 0
        assert views.catch_up(log) == 0


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "table gone", "other columns", "middle", "schema"])
def test_a_damaged_file_is_folded_again_without_a_word(tmp_path: Path, damage: str) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
    data = path.read_bytes()
    match damage:
        case "garbage":
            path.write_bytes(b"not a database at all" * 1000)
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "table gone":
            with sqlite3.connect(path) as db:
                db.execute("DROP TABLE builds")
        case "other columns":
            with sqlite3.connect(path) as db:
                db.execute("DROP TABLE builds")
                db.execute("CREATE TABLE builds (id TEXT)")
        case "middle":
            path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
        case "schema":  # what SQLite says of it is no text
            data = data.replace(b"CREATE TABLE builds", b"CREATE TABEL builds")
            path.write_bytes(data.replace(b"buildsb", b"\xa6uildsb"))
    story.begin(log, "b4")
    with Views.read_only(path, log, STANDARD) as views:
        assert views.dump() == dump_of(log)
    with Views(path, STANDARD) as views:
        views.catch_up(log)
        assert History(views).get("b4").status == "running"
        assert views.dump() == dump_of(log)
    with Views(path, STANDARD) as views:
        assert views.position == log.last_seq()


def test_I1_a_power_loss_takes_whole_transactions(tmp_path: Path) -> None:
    """SQLite's promise for a write-ahead log, but not with synchronous=OFF: pages of the checkpoint may be on the disk
    then without those that belong to them, and nothing finds out (https://sqlite.org/pragma.html#pragma_synchronous)."""
    with Views(tmp_path / "views.db", STANDARD) as views:
        views.catch_up(story.full_log())
        assert views.query("PRAGMA journal_mode") == [("wal",)]
        assert views.query("PRAGMA synchronous")[0][0] >= 1  # NORMAL


def test_damage_met_by_a_look_up_is_repaired_from_the_log(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE builds")
        assert [build.id for build in History(views).list()] == ["b3", "b2", "b1"]


def test_check_names_the_projection_that_differs(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE builds SET cached = 99 WHERE id = 'b1'")
        assert views.check(log) == ["history"]
        views.rebuild(log)
        assert views.check(log) == []


def test_check_of_a_page_that_is_none_says_that_it_differs(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
        with sqlite3.connect(path) as db:
            [page] = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'builds'").fetchone()
            [size] = db.execute("PRAGMA page_size").fetchone()
    data = path.read_bytes()
    path.write_bytes(data[: (page - 1) * size] + b"\xff" * size + data[page * size :])
    with Views.read_only(path, log, STANDARD) as views:
        assert "history" in views.check(log)
    with Views(path, STANDARD) as views:
        assert "history" in views.check(log)
        views.rebuild(log)
        assert views.check(log) == []


def test_a_new_version_refolds_that_view_only(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
    folded: list[str] = []

    def note(cursor: sqlite3.Cursor, event: Event) -> None:
        folded.append(event.type)
        cursor.execute("INSERT INTO renamed VALUES (?)", (event.build,))

    version = next(view.version for view in STANDARD if view.name == "history") + 1
    newer = Projection("history", version, ("renamed",), ("CREATE TABLE renamed (id TEXT)",), {"BuildStarted": note})
    with Views(path, (*(view for view in STANDARD if view.name != "history"), newer)) as views:
        assert views.catch_up(log) == len(folded) == 3
        assert views.query("SELECT count(*) FROM renamed") == [(3,)]
        assert views.query("SELECT name FROM sqlite_master WHERE name = 'builds'") == []
    with Views(path, STANDARD) as views:
        views.catch_up(log)
        assert views.dump() == dump_of(log)


def test_views_of_another_log_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(story.full_log())
    shorter = ListLog()
    story.begin(shorter, "only")
    other = ListLog(begin=5)
    story.whole(other, "x1")
    for _ in range(5):
        story.whole(other, "x2")
    for log in (shorter, other):
        with Views(path, STANDARD) as views:
            views.catch_up(log)
            assert views.dump() == dump_of(log)


def _follow(path: Path, barrier: Any) -> None:
    log = story.full_log()
    runner.BATCH = 3
    barrier.wait()
    with Views(path, STANDARD) as views:
        for cut in range(1, len(log.events) + 1, 5):
            views.catch_up(ListLog(log.events[:cut]))
        views.catch_up(log)


def test_processes_catching_up_at_once_fold_every_event_once(tmp_path: Path) -> None:
    path = tmp_path / "views.db"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=_follow, args=(path, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    with Views(path, STANDARD) as views:
        assert views.position == story.full_log().last_seq()
        assert views.dump() == dump_of(story.full_log())


def test_I13_read_only_views_write_nothing(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "root" / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(ListLog(log.events[:20]))
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.parent.iterdir()}
    path.parent.chmod(0o555)
    try:
        with Views.read_only(path, log, STANDARD) as views:
            assert views.dump() == dump_of(log)
            assert views.check(log) == []
    finally:
        path.parent.chmod(0o755)
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.parent.iterdir()} == before


def test_I13_views_that_were_read_as_they_lie_go_on_in_memory_when_the_log_grows(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
    before = path.read_bytes()
    with Views.read_only(path, log, STANDARD) as views:
        story.begin(log, "b4")
        assert views.catch_up(log) > 0
        assert History(views).get("b4").status == "running"
        assert views.dump() == dump_of(log)
    assert path.read_bytes() == before


def test_I13_read_only_views_need_no_file_and_survive_a_live_or_damaged_one(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views.read_only(path, log, STANDARD) as views:
        assert views.dump() == dump_of(log)
    assert list(tmp_path.iterdir()) == []
    with Views(path, STANDARD) as live:
        live.catch_up(ListLog(log.events[:30]))
        live._db.execute("PRAGMA wal_autocheckpoint=0")
        live._db.execute("BEGIN IMMEDIATE")
        live._db.execute("UPDATE builds SET name = 'half of a transaction'")
        with Views.read_only(path, log, STANDARD) as views:
            assert views.dump() == dump_of(log)
        live._db.execute("ROLLBACK")
        live._db.execute("UPDATE builds SET name = 'in the write-ahead log'")
        assert path.with_name("views.db-wal").stat().st_size
        with Views.read_only(path, log, STANDARD) as views:
            assert History(views).get("b1").name == "in the write-ahead log"  # it is of one moment, and gone on with
            assert History(views).get("b3").name == "app"
        with Views.read_only(path, ListLog(log.events[:30]), STANDARD) as views:
            live._db.execute("UPDATE builds SET name = 'later'")
            assert History(views).get("b1").name == "in the write-ahead log"  # though nothing was to be folded
    path.write_bytes(b"SQLite format 3\0" + b"junk" * 5000)
    with Views.read_only(path, log, STANDARD) as views:
        assert views.dump() == dump_of(log)


def test_read_only_views_see_what_a_writer_adds_to_the_file_that_they_read(tmp_path: Path) -> None:
    whole, path = story.full_log(), tmp_path / "views.db"
    log = ListLog(whole.events[:30])
    with Views(path, STANDARD) as views:
        views.catch_up(log)
    with Views.read_only(path, log, STANDARD) as reader:
        assert reader._source is not None  # nothing was copied
        log.events += whole.events[30:]
        with Views(path, STANDARD) as writer:
            writer.catch_up(log)
        assert reader.query("SELECT count(*) FROM builds") == [(3,)]
        assert reader.dump() == dump_of(whole)


def test_views_of_any_moment_are_those_of_the_log_up_to_there(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(ListLog(log.events[:30]))
    for until in (0, 1, 29, 30, 31, len(log.events)):
        with Views.read_only(path, log, STANDARD, until=until) as views:
            assert views.dump() == dump_of(ListLog(log.events[:until])), until
            assert views.position == until


def test_read_only_views_start_from_the_file(tmp_path: Path) -> None:
    log, path = story.full_log(), tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(log)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE builds SET name = 'marked'")
    db.close()
    with Views.read_only(path, log, STANDARD) as views:
        assert {build.name for build in History(views).list()} == {"marked"}


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        ("CacheRecorded", {"key": ["a"], "ref": "r", "layers": [], "components": "c"}),
        ("CacheRecorded", {"key": "k"}),
        ("CacheRecorded", {"key": "k", "ref": "r", "layers": "abc"}),
        ("LayerPulled", {"digest": "d", "bytes": 10**30, "provider": {}}),
        ("LayerPulled", {"digest": "d", "bytes": "many", "provider": {}}),
        ("LayerPulled", {"digest": "d", "bytes": -1, "provider": {}}),
        ("RemoteCreated", {"ref": "r", "layers": [{"digest": 3}], "providers": [{"registry": "r", "repository": "x"}]}),
        ("BuildFailed", {"error": {"a": 1}}),
        ("BuildStarted", {"name": "\ud800"}),
        ("BlobCreated", {"ref": "r", "diff_id": "d", "digest": "x", "bytes": True}),
        ("GraphDefined", {"vertices": 1.5}),
    ],
)
def test_a_malformed_event_is_a_log_error_that_names_it(type_: str, data: dict[str, Any]) -> None:
    log = ListLog()
    story.begin(log)
    event = log.add_raw(type_, data, "b1")
    with Views(None, STANDARD) as views, pytest.raises(LogError, match=rf"event {event.seq} \({type_}\) is malformed"):
        views.catch_up(log)


def test_I10_unknown_types_and_fields_change_nothing() -> None:
    log = story.full_log()
    plain = dump_of(log)
    log.add_raw("FromTheFuture", {"key": ["what", {"ever": 1}]}, "b1")
    last = log.add_raw("VertexCompleted", {"name": "x", "outputs": [], "colour": {"new": True}}, "nobody")
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        assert views.dump() == plain
        assert views.position == last.seq


def test_a_place_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        Views(tmp_path / "file" / "views.db", STANDARD)


def test_a_directory_in_the_place_of_the_views_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "views.db").mkdir()
    with pytest.raises(DiskError, match=r"opening the views|folding the views"):
        Views(tmp_path / "views.db", STANDARD)


def test_views_that_another_process_holds_for_too_long_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewfile, "WAIT", 0.05)
    path = tmp_path / "views.db"
    with Views(path, STANDARD) as views, sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HostError, match="another process holds the views") as caught:
            views.catch_up(story.full_log())
        assert (caught.value.exit_code, caught.value.where) == (3, str(path))
        other.execute("ROLLBACK")
        assert views.catch_up(story.full_log()) > 0


def test_damaged_views_without_a_log_at_hand_say_what_mends_them(tmp_path: Path) -> None:
    path = tmp_path / "views.db"
    with Views(path, STANDARD) as views:
        views.catch_up(story.full_log())
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE builds")
    with Views(path, STANDARD) as views, pytest.raises(LogError, match="the views are damaged") as caught:
        History(views).list()
    assert "refledger rebuild" in caught.value.hint


def test_views_are_not_saved_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("not ours")
    with Views(None, STANDARD) as views, pytest.raises(HostError):
        views.save(tmp_path / "there")
    assert (tmp_path / "there").read_text() == "not ours"


@pytest.mark.parametrize(
    ("code", "words"),
    [(sqlite3.SQLITE_FULL, "No space left"), (sqlite3.SQLITE_IOERR_WRITE, "Input/output error"),
     (sqlite3.SQLITE_READONLY, "Read-only file system"), (sqlite3.SQLITE_ERROR, "cannot be used")],
)  # fmt: skip
def test_what_sqlite_says_of_the_disk_is_told_in_plain_words(code: int, words: str) -> None:
    error = sqlite3.OperationalError("some words of SQLite's")
    error.sqlite_errorcode = code
    told = viewfile.explained(error, Path("/root/views.db"))
    assert words in str(told)
    assert "/root/views.db" in str(told)
    assert told.exit_code == 3


def test_I1_views_of_the_log_on_disk_are_those_of_the_same_events(tmp_path: Path) -> None:
    from storage.interfaces.log import NewEvent
    from storage.log.eventlog import SqliteEventLog

    story_log = story.full_log()
    events = [NewEvent(x.stream, x.type, x.data, x.build, x.vertex, x.cause) for x in story_log.events]
    times = iter([event.time for event in story_log.events])
    log = SqliteEventLog(tmp_path / "log.db", clock=lambda: next(times))
    try:
        for event in events:
            log.append(event)
        assert [event.time for event in log.read()] == [event.time for event in story_log.events]
        with Views(tmp_path / "views.db", STANDARD) as views:
            views.catch_up(log)
            assert views.dump() == dump_of(story_log)
            assert views.check(log) == []
    finally:
        log.close()
