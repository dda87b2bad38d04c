"""A build has one end, whatever comes while it is being said."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from engine.events import BuildCompleted, BuildStarted
from engine.ledger import Ledger
from engine.operation import end, operate
from storage.eventlog import SqliteEventLog

STARTED = BuildStarted(frontend="test", definition="", options={}, context=None, engine_version="", host={})


class SlowLog(SqliteEventLog):
    """Whose last commit takes until `go` is set; `asked` when it is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.go = threading.Event(), threading.Event()

    def submit(self, events: Any) -> Future[Any]:
        if events[0].type == "BuildCompleted":
            self.asked.set()
            future: Future[Any] = Future()

            def late() -> None:
                self.go.wait()
                future.set_result(super(SlowLog, self).submit(events).result())

            threading.Thread(target=late).start()
            return future
        return super().submit(events)


@pytest.mark.parametrize("operation", [True, False])
def test_cancelled_while_its_end_is_being_recorded_it_has_ended_once(tmp_path: Path, *, operation: bool) -> None:
    log = SlowLog(tmp_path / "log.db")
    ledger = Ledger(log, "abc")

    async def nothing() -> list[dict[str, Any]]:
        return []

    async def main() -> None:
        work = operate(ledger, STARTED, nothing()) if operation else end(ledger, BuildCompleted(results=()))
        task = asyncio.ensure_future(work)
        await asyncio.to_thread(log.asked.wait)
        task.cancel()
        await asyncio.sleep(0)
        log.go.set()
        await task

    asyncio.run(main())
    ends = [event.type for event in log.read() if event.type != "BuildStarted"]
    log.close()
    assert ends == ["BuildCompleted"]
