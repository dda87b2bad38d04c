"""What all that the log knows as a build has in common, a Dockerfile's as a copy or a replay: start, graph, end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from engine.errors import Cancelled, DockerfileError, RefledgerError
from engine.events import BuildCancelled, BuildCompleted, BuildFailed, BuildStarted, Fact, GraphDefined
from engine.graph import Graph, Vertex
from engine.ledger import Facts, Ledger, fitting, shortened
from storage.digest import Digest
from storage.threads import settle

Json = dict[str, Any]
PLAN_SHOWN = 200
"""Steps that GraphDefined names at most: the stored graph has them all."""


async def operate(ledger: Ledger, started: BuildStarted, work: Coroutine[Any, Any, Sequence[Json]]) -> None:
    """Do `work` between `started` and its end in the log; what it returns is BuildCompleted.results. Raises what it
    raises (a RefledgerError), with the end already in the log, and Cancelled."""
    ledger.post(started)
    try:
        results = await work
    except asyncio.CancelledError:
        await cancelled(ledger)
    except RefledgerError as error:
        await conclude(ledger, build_failed(error))
        raise
    else:
        await conclude(ledger, BuildCompleted(results=tuple(results)))


def build_failed(error: RefledgerError, vertex: str | None = None) -> BuildFailed:
    """The end of a build that `error` is, of the step `vertex` if of one."""
    text = str(error)
    if isinstance(error, DockerfileError) and error.excerpt:
        text += "\n" + error.excerpt
    return BuildFailed(vertex=vertex, error=shortened(text), exit_code=error.exit_code)


def graph_defined(graph: Graph, stored: Digest, shown: Sequence[Vertex], target: Digest | None) -> GraphDefined:
    """What is said of `graph`, which is `stored`: as many of the steps `shown` as an event has room for."""
    plan = fitting(
        [{"vertex": str(one.digest), "name": one.name, "lines": list(one.lines)} for one in shown[:PLAN_SHOWN]]
    )
    return GraphDefined(graph=str(stored), vertices=len(graph.vertices), plan=plan, target=str(target or ""))


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
