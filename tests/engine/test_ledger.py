"""Facts on their way into the log."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError
from engine.events import BuildCompleted, BuildStarted, PullProgressed, VertexCancelled, VertexFailed, detached
from engine.ledger import MOST_TEXT, ROOM, Ledger, Silent, fitting
from storage.digest import canonical_json
from storage.errors import DiskError, LogError
from storage.interfaces.log import Event
from storage.log.codec import MAX_EVENT
from storage.log.eventlog import SqliteEventLog


def test_a_list_is_cut_to_what_an_event_has_room_for() -> None:
    layer = {"digest": f"sha256:{'0' * 64}", "transport": "streamed", "bytes": 1, "source": "r.example/" + "x" * 200}
    assert fitting([layer] * 10) == (layer,) * 10
    kept = fitting([layer] * 2000)
    assert 0 < len(kept) < 2000
    assert ROOM - 400 < sum(len(canonical_json(item)) for item in kept) <= ROOM


def test_what_is_said_of_an_error_is_cut_and_what_no_event_can_hold_is_refused(tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "log.db")

    async def main() -> None:
        ledger = Ledger(log, "b1")
        await ledger.record(VertexFailed(name="a", error="\x01" * 100_000), vertex="v")
        with pytest.raises(InputError, match=r"BuildCompleted: \d+ bytes"):
            ledger.post(BuildCompleted(results=({"name": "x" * MAX_EVENT, "digest": "", "ref": ""},)))
        await ledger.record(VertexCancelled(name="b"), vertex="v")

    try:
        asyncio.run(main())
        first, second = log.read()
        assert (first.data["error"], second.type) == ("\x01" * MOST_TEXT + "…", "VertexCancelled")
    finally:
        log.close()


class FullDisk:
    """A log that cannot be written."""

    def submit(self, events: Any) -> Future[list[Event]]:
        future: Future[list[Event]] = Future()
        future.set_exception(DiskError("writing the event log: No space left on device"))
        return future


def test_what_could_not_be_written_is_raised_and_not_printed_beside() -> None:
    async def main() -> list[Any]:
        printed: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: printed.append(context))
        ledger = Ledger(FullDisk(), "b1")  # type: ignore[arg-type]  # a log that only fails
        ledger.post(PullProgressed(digest="sha256:12", bytes=1, total=2))
        with pytest.raises(DiskError):
            await ledger.flush()
        gc.collect()
        await asyncio.sleep(0)
        return printed

    assert asyncio.run(main()) == []


class FullForAMoment(FullDisk):
    """One that can be written again."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def submit(self, events: Any) -> Future[list[Event]]:
        self.types += [event.type for event in events]
        if len(self.types) == 1:
            return super().submit(events)
        future: Future[list[Event]] = Future()
        future.set_result([])
        return future


def test_I6_nothing_is_durable_without_what_was_posted_before_it() -> None:
    log = FullForAMoment()
    ledger = Ledger(log, "b1")  # type: ignore[arg-type]  # a log that fails once
    ledger.post(PullProgressed(digest="sha256:12", bytes=1, total=2))
    ledger.post(PullProgressed(digest="sha256:12", bytes=2, total=2))
    with pytest.raises(DiskError):
        asyncio.run(ledger.record(PullProgressed(digest="sha256:12", bytes=2, total=2)))
    assert len(log.types) == 1


def test_I6_nothing_is_done_on_behind_a_fact_that_could_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteEventLog(path)
    other = sqlite3.connect(path)
    other.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no room'); END")
    other.commit()
    other.close()

    async def main() -> None:
        ledger = Ledger(log, "b1")
        await ledger.flush()
        ledger.post(VertexCancelled(name="a"), vertex="v")
        with pytest.raises(LogError, match="no room"):
            await ledger.flush()
        with pytest.raises(LogError, match="no room"):
            await ledger.record(VertexCancelled(name="b"), vertex="v")

    try:
        asyncio.run(main())
        assert log.last_seq() == 0
    finally:
        log.close()


def test_who_only_looks_keeps_no_fact() -> None:
    silent, fact = Silent(), BuildCompleted(results=())
    silent.post(fact)
    assert asyncio.run(silent.record(fact)) == 0


def test_very_many_secret_arguments_are_erased_as_one() -> None:
    few, many = ({f"TOKEN_{number}": "x" for number in range(count)} for count in (2, 501))
    assert detached(started(few)) == ("/options/args/TOKEN_0", "/options/args/TOKEN_1")
    assert detached(started(many)) == ("/options/args",)


def started(args: dict[str, str]) -> BuildStarted:
    return BuildStarted(
        frontend="f", definition="d", options={"args": args}, context=None, engine_version="1", host={}
    )
