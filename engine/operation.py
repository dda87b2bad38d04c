"""Work that is no Dockerfile build (a copy, an index) as a build in the log: started, ended, and findable."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from engine.errors import Cancelled, RefledgerError
from engine.events import BuildCancelled, BuildCompleted, BuildFailed, BuildStarted
from engine.ledger import Ledger
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
        await end(ledger, BuildFailed(vertex=None, error=str(error), exit_code=error.exit_code))
        raise
    else:
        await end(ledger, BuildCompleted(results=tuple(results)))


async def end(ledger: Ledger, fact: BuildCompleted | BuildFailed, vertex: str | None = None) -> None:
    """Record how it ended. A cancellation that comes meanwhile comes too late: nothing ends twice. Raises LogError."""
    recording = asyncio.ensure_future(ledger.record(fact, vertex=vertex))
    await settle(recording)
    recording.result()


async def cancelled(ledger: Ledger) -> NoReturn:
    """Say that the build was interrupted, whatever else comes now. Raises Cancelled."""
    await settle(asyncio.ensure_future(ledger.record(BuildCancelled())))
    raise Cancelled("interrupted") from None
