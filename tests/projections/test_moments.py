"""The past: views of any event through snapshots, the event of a time, and what names what."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import events as e
from projections import moments
from projections.history import History, Wanted
from projections.mentions import Mentions
from projections.moments import Moments, event_at, seq_at, wanted_positions
from projections.output import output_lines
from projections.refs import Refs, life
from projections.runner import Views
from projections.standard import STANDARD, TRAVELLED
from storage.errors import DiskError, LogError
from storage.interfaces.log import Event
from tests.projections import story
from tests.projections.support import BEGIN, SECOND, ListLog, digest


@pytest.fixture
def log() -> ListLog:
    return story.full_log()


def dump_at(log: ListLog, seq: int) -> bytes:
    with Views(None, TRAVELLED) as views:
        views.catch_up(ListLog(log.events[:seq]))
        return views.dump()


def test_views_of_every_moment_are_the_same_with_and_without_snapshots(
    log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEP", 7)
    past = Moments(tmp_path / "moments", TRAVELLED)
    written = past.extend(log)
    assert written == len(wanted_positions(len(log.events))) > 1
    assert past.extend(log) == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "moments").iterdir())
    for seq in range(1, len(log.events) + 1):
        with past.views(log, seq) as views:
            assert views.dump() == dump_at(log, seq), seq
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "moments").iterdir()) == before


def test_the_past_begins_at_the_latest_snapshot_that_is_not_later(
    log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEP", 7)
    past = Moments(tmp_path / "moments", TRAVELLED)
    past.extend(log)
    for name in ("notes.db", "7"):  # what is none of ours, but lies there
        (tmp_path / "moments" / name).write_text("")
    first, second = wanted_positions(len(log.events))[:2]
    folded: list[int] = []
    read = ListLog.read

    def counted(self: ListLog, **bounds: Any) -> Iterator[Event]:
        for event in read(self, **bounds):
            folded.append(event.seq)
            yield event

    for seq in (first - 1, first, first + 1, second - 1, second, second + 1):
        folded.clear()
        with monkeypatch.context() as watched:
            watched.setattr(ListLog, "read", counted)
            past.views(log, seq).close()
        begun = max(position for position in (0, first, second) if position <= seq)
        assert min(folded, default=begun) >= begun, f"{seq} is not made from {begun}"


def test_snapshots_that_are_damaged_or_of_another_log_are_not_believed(
    log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEP", 7)
    past = Moments(tmp_path / "moments", TRAVELLED)
    past.extend(log)
    other = ListLog(begin=BEGIN + 5)
    story.begin(other, "c1")
    story.whole(other, "c2")
    with past.views(other, 25) as views:
        assert views.dump() == dump_at(other, 25)
    for path in (tmp_path / "moments").iterdir():
        path.write_bytes(path.read_bytes()[:5000] + b"junk" * 1000)
    with past.views(log, 25) as views:
        assert views.dump() == dump_at(log, 25)


def test_a_growing_log_keeps_few_snapshots(log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "STEP", 2)
    past = Moments(tmp_path / "moments", TRAVELLED)
    for end in (5, 20, 40, len(log.events)):
        past.extend(ListLog(log.events[:end]))
        assert 0 < len(list((tmp_path / "moments").iterdir())) <= moments.KEPT
    past.discard()
    assert list((tmp_path / "moments").iterdir()) == []


def test_snapshots_that_cannot_be_kept_or_removed_are_a_disk_error(
    log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEP", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="keeping snapshots of the views"):
        Moments(tmp_path / "file" / "moments", TRAVELLED).extend(log)
    (tmp_path / "moments" / "5.db").mkdir(parents=True)
    with pytest.raises(DiskError, match="removing snapshots of the views"):
        Moments(tmp_path / "moments", TRAVELLED).discard()


def test_a_snapshot_is_durable_before_it_has_its_name(
    log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEP", 20)
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(fd: int) -> None:
        done.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    kept = Moments(tmp_path / "moments", TRAVELLED).extend(log)
    assert done == [f"{what} {20 * number}.db.part" for number in range(1, kept + 1) for what in ("fsync", "rename")]
    assert kept > 1


def test_only_one_process_at_a_time_writes_snapshots(
    log: ListLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "STEP", 5)
    place = tmp_path / "moments"
    place.mkdir()
    other = os.open(place, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert Moments(place, TRAVELLED).extend(log) == 0
    os.close(other)
    assert Moments(place, TRAVELLED).extend(log) > 0


def test_the_event_of_a_time(log: ListLog) -> None:
    assert seq_at(log, BEGIN) == 0
    assert seq_at(log, BEGIN + SECOND) == 10
    assert seq_at(log, BEGIN + SECOND + 1) == 10
    assert seq_at(log, BEGIN + 10**6 * SECOND) == len(log.events)
    assert seq_at(ListLog(), BEGIN) == 0


def test_an_event_that_a_damaged_log_lost_is_an_error(log: ListLog) -> None:
    assert event_at(log, 3) == log.events[2]
    with pytest.raises(LogError, match="event 999 cannot be read"):
        event_at(log, 999)


def test_the_life_of_a_ref_is_the_same_with_and_without_the_index(log: ListLog) -> None:
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        records = Refs(views).list()
        assert len(records) >= 3
        for record in records:
            whole = life(log, record)
            assert life(log, record, mentions=Mentions(views)) == whole
            assert len(whole) > 3
            until = whole[2].seq
            assert life(log, record, until=until, mentions=Mentions(views)) == whole[:3]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), ["b3", "b2", "b1"]),
        (Wanted(statuses=("running", "failed")), ["b2"]),
        (Wanted(name="oth*"), ["b2"]),
        (Wanted(name="*/app:*"), ["b3", "b2", "b1"]),  # a tag
        (Wanted(name="nothing*"), []),
        (Wanted(mentions=("b1-run",)), ["b1"]),
        (Wanted(mentions=(digest("blob1"),)), ["b3", "b2", "b1"]),
        (Wanted(mentions=(digest("img")[:20],)), ["b3", "b1"]),
        (Wanted(mentions=(digest("blob1"), "b3-run")), ["b3"]),
        (Wanted(mentions=("%",)), []),
        (Wanted(until=BEGIN + SECOND), ["b1"]),
        (Wanted(since=BEGIN + SECOND), ["b3", "b2"]),
    ],
)
def test_builds_are_found_by_what_a_person_knows_of_them(log: ListLog, wanted: Wanted, found: list[str]) -> None:
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        assert [record.id for record in History(views).find(wanted)] == found
        assert [record.id for record in History(views).find(wanted, 1)] == found[:1]


def test_attempts_do_not_overwrite_each_other() -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    for attempt in (1, 2):
        log.add(e.VertexStarted(name="RUN x", inputs=(), attempt=attempt), "b1", "v")
        log.add(e.VertexOutput(fd=1, offset=0, text=f"whole {attempt}\nhalf {attempt}"), "b1", "v")
    told = [(line.attempt, line.text) for _, line in output_lines(log, "b1")]
    assert told == [(1, "whole 1"), (1, "half 1"), (2, "whole 2"), (2, "half 2")]
