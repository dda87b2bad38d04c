"""What an EventLog promises: it keeps what it acknowledged, in one gapless order, whoever writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.errors import LogError
from storage.interfaces.log import EventLog, NewEvent
from storage.log.eventlog import PAGE, SqliteEventLog, follow
from tests.simulation.chance import Chance, Faults, Process
from tests.simulation.disk import Disk
from tests.storage.log.test_eventlog import check_order

Open = Callable[..., EventLog]


@pytest.fixture(params=["sqlite", "memory"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the log of one root, as a process of its own; `clock` as SqliteEventLog has it."""
    opened: list[EventLog] = []
    disk = Disk(Chance(1), Faults())

    def open_log(clock: Callable[[], int] = time.time_ns) -> EventLog:
        if request.param == "sqlite":
            log: EventLog = SqliteEventLog(tmp_path / "root" / "log.db", clock=clock)
        else:
            disk.now = clock
            log = disk.process(f"p{len(opened)}", Process("p")).log
        opened.append(log)
        return log

    yield open_log
    for log in opened:
        log.close()
    disk.end()


@pytest.fixture
def log(opening: Open) -> EventLog:
    return opening()


def new(stream: str = "cache", name: str = "T", **data: Any) -> NewEvent:
    return NewEvent(stream, name, data)


def test_what_is_appended_is_what_is_read(log: EventLog) -> None:
    first = log.append(NewEvent("build/1", "A", {"x": [1, None, "é"]}, build="1", vertex="v", cause=9), new())
    second = log.append(new("build/1"))
    assert [(e.seq, e.stream, e.version, e.type) for e in first + second] == [
        (1, "build/1", 1, "A"), (2, "cache", 1, "T"), (3, "build/1", 2, "T"),
    ]  # fmt: skip
    assert list(log.read()) == first + second
    assert (first[0].build, first[0].vertex, first[0].cause) == ("1", "v", 9)
    assert log.last_seq() == 3


def test_an_empty_log_and_an_empty_submission(log: EventLog) -> None:
    assert (log.append(), log.last_seq(), list(log.read()), log.wait(0, 0)) == ([], 0, [], False)


def test_a_bad_event_keeps_the_whole_submission_out(log: EventLog) -> None:
    with pytest.raises(ValueError, match="primitives"):
        log.append(new(), new(x=(1,)), new())
    assert log.append(new())[0].seq == 1


def test_submissions_of_one_thread_land_in_their_order(log: EventLog) -> None:
    futures = [log.submit([new(number=number)]) for number in range(500)]
    assert [future.result()[0].seq for future in futures] == list(range(1, 501))
    assert [event.data["number"] for event in log.read()] == list(range(500))


def test_eight_threads_get_gapless_adjacent_submissions(log: EventLog) -> None:
    def work(thread: int) -> None:
        for number in range(60):
            parts = (new(f"build/{thread % 3}", thread=thread, number=number, part=part) for part in range(3))
            made = log.append(*parts)
            assert [event.seq - made[0].seq for event in made] == [0, 1, 2]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = list(log.read())
    assert len(events) == 8 * 60 * 3
    check_order(events)
    parts = [(e.data["thread"], e.data["number"], e.data["part"]) for e in events]
    assert parts == [(*parts[i // 3 * 3][:2], i % 3) for i in range(len(parts))]


def test_two_writers_that_take_turns_know_each_others_versions(log: EventLog, opening: Open) -> None:
    other = opening()
    for number in range(10):
        for writer in (log, other):
            writer.append(new("ref/a", number=number), new(f"ref/{number}"))
    check_order(list(log.read()))


def test_time_never_goes_back_even_when_the_clock_does(opening: Open) -> None:
    ticks = iter([100, 50, 120])
    log = opening(lambda: next(ticks))
    assert [log.append(new())[0].time for _ in range(3)] == [100, 100, 120]
    log.close()
    assert opening(lambda: 7).append(new(), new())[1].time == 120


def test_closing_writes_what_was_submitted_and_refuses_what_comes_later(opening: Open) -> None:
    log = opening()
    futures = [log.submit([new()] * 50) for _ in range(100)]
    log.close()
    log.close()
    assert all(future.done() for future in futures)
    for action in (lambda: log.append(new()), log.last_seq, lambda: log.wait(0, 1), lambda: list(log.read())):
        with pytest.raises(LogError, match="the event log is closed"):
            action()
    assert opening().last_seq() == 5000


def test_a_cancelled_waiter_changes_nothing(log: EventLog) -> None:
    future = log.submit([new()])
    assert not future.cancel()
    assert future.result()[0].seq == 1


def test_reading_pages_through_ranges_and_types(log: EventLog) -> None:
    count = PAGE * 2 + 10
    log.append(*(new(name="Rare" if number % 1000 == 0 else "T", number=number) for number in range(count)))
    assert [event.seq for event in log.read()] == list(range(1, count + 1))
    assert [event.seq for event in log.read(after=PAGE - 1, until=PAGE + 2)] == [PAGE, PAGE + 1, PAGE + 2]
    assert [event.seq for event in log.read(after=count - 1, until=count + 99)] == [count]
    assert list(log.read(after=count)) == list(log.read(after=5, until=5)) == []
    assert [event.data["number"] for event in log.read(types=frozenset({"Rare"}))] == [0, 1000, 2000, 3000, 4000]
    assert len(list(log.read(types=frozenset({"Rare", "T"})))) == count
    assert list(log.read(types=frozenset())) == list(log.read(types=frozenset({"No"}))) == []


def test_reading_ends_at_what_was_there_when_it_began(log: EventLog) -> None:
    log.append(*(new() for _ in range(3)))
    reading = log.read()
    assert next(reading).seq == 1
    log.append(new())
    assert [event.seq for event in reading] == [2, 3]


def test_waiting_tells_whether_there_is_a_later_event(log: EventLog) -> None:
    log.append(new())
    assert log.wait(0, 0)
    assert not log.wait(1, 0.05)
    log.submit([new()])
    assert log.wait(1, 30)


def test_following_filters_types_and_stops_when_told(log: EventLog) -> None:
    log.append(new(name="A"), new(name="B"), new(name="A"))
    stop = threading.Event()
    following = follow(log, 0, stop.is_set, types=frozenset({"A"}))
    assert [next(following).seq, next(following).seq] == [1, 3]
    stop.set()
    assert list(following) == []
