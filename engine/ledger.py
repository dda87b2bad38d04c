"""How a build speaks to the log: facts in, events out, in order.

`record` returns when the fact is durable (what follows may depend on it: I2, I6); `post` only keeps the order, for
progress, output, and what nothing outside depends on yet. Both go through the same queue, so the log's order is the
order of the calls, and a durable fact has all before it durable too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from engine.errors import InputError
from engine.events import SENSITIVE, Fact, detached, to_data
from storage.digest import canonical_json
from storage.interfaces.log import Event, EventLog, NewEvent, TooLarge

ROOM = 512 * 1024
"""Bytes that a list in one event may take: an event has 1 MiB with its lists."""
MOST_TEXT = 8192
"""Characters of an error in an event."""


def fitting(items: Sequence[Any]) -> tuple[Any, ...]:
    """The first of `items` (as events hold them) that one event has room for: mostly all."""
    fit, room = [], ROOM
    for item in items:
        room -= len(canonical_json(item))
        if room < 0:
            break
        fit.append(item)
    return tuple(fit)


def shortened(text: str) -> str:
    """`text`, or as much of its beginning as an event has room for beside what else it says."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"


class Facts(Protocol):
    """Where ops put facts. In a cluster the other end of this is the coordinator of the build (I14)."""

    async def record(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:
        """Append durably; returns the event's seq. Raises LogError, and InputError for what no event has room for."""
        ...

    def post(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        """Append in order, durable a little later. A failure surfaces at the next `record` or `flush`. Raises
        InputError for what no event has room for."""
        ...


class Ledger:
    """Facts of one build; values of build args whose names match `sensitive` can be erased later."""

    def __init__(self, log: EventLog, build: str, sensitive: Sequence[str] = SENSITIVE) -> None:
        self._log = log
        self.sensitive = sensitive
        self._last: Future[list[Event]] | None = None
        self._failure: BaseException | None = None
        self.build = build

    def _submit(self, fact: Fact, vertex: str | None, cause: int | None) -> Future[list[Event]]:
        stream = {"build": f"build/{self.build}", "cache": "cache", "log": "log"}.get(fact.STREAM)
        if stream is None:
            stream = f"ref/{fact.ref}"  # type: ignore[attr-defined]  # every fact of a ref stream has `ref`
        data, name = to_data(fact), type(fact).__name__
        for key in ("error", "reason"):  # they quote what may have any length
            if isinstance(text := data.get(key), str):
                data[key] = shortened(text)
        event = NewEvent(stream, name, data, self.build, vertex, cause, detached(fact, self.sensitive))
        try:
            self._last = self._log.submit([event])
        except TooLarge as error:
            what = f"there is more to say of this than an event of the log has room for ({error})"
            raise InputError(what, hint="give fewer names, arguments or paths, or shorter ones") from error
        return self._last

    async def record(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:
        """See Facts.record."""
        self._raise_failure()
        return (await asyncio.wrap_future(self._submit(fact, vertex, cause)))[0].seq

    def post(self, fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        """See Facts.post."""
        if self._failure is None:  # else it would be durable without what was before it
            self._submit(fact, vertex, cause).add_done_callback(self._note_failure)

    async def flush(self) -> None:
        """Return when everything posted so far is durable. Raises LogError."""
        if self._last is not None:
            # what it raises was told to whoever recorded it, or is told below; left alone, asyncio would print it
            await asyncio.gather(asyncio.wrap_future(self._last), return_exceptions=True)
        self._raise_failure()

    def _note_failure(self, future: Future[list[Event]]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class Silent:
    """Facts that nobody keeps: those of somebody who only looks."""

    async def record(self, _fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:  # noqa: ARG002
        """See Facts."""
        return 0

    def post(self, _fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        """See Facts."""
