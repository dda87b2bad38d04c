"""Facts on their way into the log."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from engine.events import VertexCancelled
from engine.ledger import ROOM, Ledger, fitting
from storage.digest import canonical_json
from storage.errors import LogError
from storage.eventlog import open_log


def test_a_list_is_cut_to_what_an_event_has_room_for() -> None:
    layer = {"digest": f"sha256:{'0' * 64}", "transport": "streamed", "bytes": 1, "source": "r.example/" + "x" * 200}
    assert fitting([layer] * 10) == (layer,) * 10
    kept = fitting([layer] * 1000)
    assert 0 < len(kept) < 1000
    assert ROOM - 400 < sum(len(canonical_json(item)) for item in kept) <= ROOM


def test_I6_nothing_is_done_on_behind_a_fact_that_could_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = open_log(path)
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
