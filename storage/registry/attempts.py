"""What came of each request to a registry: told once, when it is over, whoever repeats it.

A challenge and the request that answers it are one, as are a request and the redirects that it leads to. Who cancels
has no answer, and nothing is told.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from storage.errors import RefledgerError, RegistryError, VerificationError
from storage.interfaces.images import Attempt, Provider
from storage.registry.failures import printable

if TYPE_CHECKING:
    import httpx

Observe = Callable[[Attempt], None]
Verb = Literal["pull", "manifest", "resolve", "exists", "mount", "upload", "put"]
Outcome = Literal["ok", "refused", "missing", "auth", "transport", "corrupt"]
_KEY = "refledger.exchange"
_OUTCOMES: dict[int, Outcome] = {401: "auth", 403: "auth", 404: "missing", 410: "missing"}


@dataclass(frozen=True, slots=True)
class Topic:
    """What a request is about. `failures_only`: an answer, whatever it says, is not worth telling."""

    verb: Verb
    name: str
    provider: Provider
    failures_only: bool = False


class Exchange:
    """One request, from the moment it is made."""

    def __init__(self, topic: Topic | None, observe: Observe | None) -> None:
        self._topic = topic
        self._observe = observe if topic is not None else None
        self._began = time.monotonic()
        self._response: httpx.Response | None = None
        self._sent = 0

    def body(self, data: bytes | AsyncIterator[bytes] | None) -> bytes | AsyncIterator[bytes] | None:
        """`data`, to be sent, counted."""
        if self._observe is None or data is None:
            return data
        self._sent = 0
        if isinstance(data, bytes):
            self._sent = len(data)
            return data
        return self._counted(data)

    async def _counted(self, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in data:
            yield piece
            self._sent += len(piece)

    def answered(self, response: httpx.Response) -> None:
        """There is an answer, whose body is still to come."""
        self._response = response
        response.extensions[_KEY] = self

    def unanswered(self, error: RefledgerError) -> None:
        """It failed before anybody could read an answer."""
        if isinstance(error, RegistryError):
            self.over(error)
        else:
            self.over(RegistryError(f"what was to be sent did not come: {error.what}", kind="transport"))

    def over(self, error: RefledgerError | None = None) -> None:
        """It is over: with `error`, or as the answer says. Only the first call tells."""
        observe, self._observe, topic, response = self._observe, None, self._topic, self._response
        if observe is None or topic is None or (error is None and topic.failures_only):
            return
        status = response.status_code if response is not None else 0
        if error is not None:
            status = getattr(error, "status", 0) or status
        read = response.num_bytes_downloaded if response is not None and status < 400 else 0
        observe(
            Attempt(
                verb=topic.verb,
                name=printable(topic.name),
                provider=topic.provider,
                status=status,
                outcome=_outcome(topic.verb, status, error),
                bytes=self._sent or read,
                seconds=time.monotonic() - self._began,
                error=printable(error.what) if error is not None else "",
            )
        )


def over(response: httpx.Response | None, error: RefledgerError | None = None) -> None:
    """The exchange that `response` belongs to is over (see Exchange.over)."""
    exchange = response.extensions.get(_KEY) if response is not None else None
    if isinstance(exchange, Exchange):
        exchange.over(error)


def _outcome(verb: Verb, status: int, error: RefledgerError | None) -> Outcome:
    if isinstance(error, RegistryError):
        return error.kind if error.kind != "disk" else "transport"
    if isinstance(error, VerificationError):
        return "corrupt"
    if error is not None:
        return "transport"
    if verb == "mount":
        return "ok" if status == 201 else "refused"
    return _OUTCOMES.get(status, "refused") if status >= 400 else "ok"
