"""Steps that are no vertices: each start has one end in the log, whatever happens between."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.aside import shown_step
from engine.errors import DiskError, InputError, RefledgerError
from engine.graph import ContextSource, Copy, Graph, VertexError, vertex
from engine.ledger import Ledger
from engine.solver.contexts import Taken
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.interfaces.log import Event
from storage.log.eventlog import SqliteEventLog
from tests.engine.solver.kit import Nothing


def told(path: Path, error: BaseException | None) -> list[Event]:
    log = SqliteEventLog(path / "log.db")

    async def main() -> None:
        ledger = Ledger(log, "b1")
        try:
            async with shown_step(ledger, "[internal] work", "work") as outputs:
                if error is not None:
                    raise error
                outputs.append("ref")
        except (RefledgerError, VertexError, asyncio.CancelledError) as raised:
            assert raised is error
        await ledger.flush()

    try:
        asyncio.run(main())
        return list(log.read())
    finally:
        log.close()


STEP = vertex(Copy(("a",), "/"), (), "COPY a /")


@pytest.mark.parametrize(
    ("error", "end", "data"),
    [
        (None, "VertexCompleted", {"outputs": ["ref"]}),
        (InputError("no"), "VertexFailed", {"error": "no"}),
        (VertexError(STEP, InputError("no step")), "VertexFailed", {"error": "no step"}),
        (asyncio.CancelledError(), "VertexCancelled", {}),
    ],
)
def test_the_end_is_told(tmp_path: Path, error: BaseException | None, end: str, data: dict[str, object]) -> None:
    first, last = told(tmp_path, error)
    assert (first.type, last.type, first.vertex, last.vertex) == ("VertexStarted", end, "work", "work")
    assert {"name": "[internal] work", **data}.items() <= last.data.items()


class _Full(DirectoryBlobs):
    def put(self, data: bytes) -> Digest:
        raise DiskError("storing a blob: No space left on device")


def test_a_context_whose_listing_cannot_be_kept_has_an_end_and_names_the_step(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    context = vertex(ContextSource(), (), "[internal] load build context")
    step = vertex(Copy(("a",), "/"), (context.digest, context.digest), "COPY a /")
    log = SqliteEventLog(tmp_path / "log.db")
    ledger = Ledger(log, "b1")
    taken = Taken({context.digest: tmp_path}, ledger, _Full(tmp_path, owner="b1"), Nothing())
    try:
        with pytest.raises(VertexError, match="No space left") as caught:
            asyncio.run(taken.read(Graph((context, step), ())))
        assert caught.value.vertex == step
        assert [event.type for event in log.read()] == ["VertexStarted", "VertexFailed"]
    finally:
        log.close()
