"""Work that is no Dockerfile build (a copy, an index) as a build in the log: started, ended, and findable."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from engine.errors import Cancelled, RefledgerError
from engine.events import BuildCancelled, BuildCompleted, BuildFailed, BuildStarted, Fact
from engine.ledger import Facts, Ledger
from engine.together import settle

Json = dict[str, Any]


async def operate(ledger: Ledger, started: BuildStarted, work: Coroutine[Any, Any, Sequence[Json]]) -> None:
    """Do `work` between `started` and its end in the log; what it returns is BuildCompleted.results. Raises what it
    raises (a RefledgerError), with the end already in the log, and Cancelled."""
    ledger.post(started)
    try:
        results = await work
    except asyncio.CancelledError:
        await cancelled(ledger)
    except RefledgerError as error:
        await conclude(ledger, BuildFailed(vertex=None, error=str(error), exit_code=error.exit_code))
        raise
    else:
        await conclude(ledger, BuildCompleted(results=tuple(results)))


async def conclude(facts: Facts, end: Fact, vertex: str | None = None) -> None:
    """Put the one `end` of a build into the log. From here on an interruption comes too late: what is said outside is
    what the log says. Raises LogError, DiskError."""
    recording = asyncio.ensure_future(facts.record(end, vertex=vertex))
    await settle(recording)
    recording.result()


async def cancelled(ledger: Ledger) -> NoReturn:
    """Say that the build was interrupted, whatever else comes now. Raises Cancelled."""
    await conclude(ledger, BuildCancelled())
    raise Cancelled("interrupted") from None
