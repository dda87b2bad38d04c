"""An upload that outlives the process: what a registry has of a large blob is not sent again.

One PATCH of no stated length takes the blob, a PUT closes it (distribution-spec, "Pushing a blob in chunks"; as docker
does). Whoever is interrupted ends the PATCH where it is, so that the registry answers for what it has, and keeps the
location. After a sudden death the registry is asked what it has; docker-registry answers that the upload is invalid,
as the location names an offset that is no longer the end of what it has, and the blob begins anew.

The bytes that are sent later are a part of the blob, and cannot be verified by themselves: the registry verifies the
whole when it is closed. What was put together wrongly is thrown away, and sent once more from its start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from storage.errors import RefledgerError, VerificationError
from storage.interfaces.images import Descriptor
from storage.interfaces.registry import ByteStream
from storage.registry.body import wrong_length
from storage.registry.failures import Unavailable
from storage.registry.upload import Upload, cancel_upload, location_of
from storage.uploads import UploadSessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PARTING_SECONDS = 5.0
"""What an interrupted upload may take to hear what the registry has."""
_BARREN = 2
"""PATCHes in a row that bring nothing, after which it is tried in another way."""
_AHEAD = 2
"""Chunks that are read ahead: the source need not wait for the target."""
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class _Refused(Exception):
    """The registry takes no PATCH like this one."""


class LastingUpload(Upload):
    """As Upload, of a source that can be read from an offset on (`resume`)."""

    def __init__(self, *given: Any, resume: Callable[[int], ByteStream], sessions: UploadSessions) -> None:
        """`given` as of Upload."""
        super().__init__(*given)
        self._resume = resume
        self._sessions = sessions

    async def run(self) -> None:
        """See Upload.run. When it is cancelled, or its source fails, what the registry has is there for another one."""
        transport, failures, reached, again = self._session.transport, 0, 0, False
        while True:
            location, begin = await self._open()
            if begin > reached:  # reason: what was written may lie in buffers yet; what the registry has is progress
                failures, reached = min(failures, 1), begin
            feed = _Feed(self._resume, begin, self._blob, self._where)
            try:
                await self._close(await self._send(location, feed))
            except _Refused:
                await self._drop(location)
                await super().run()
            except Unavailable as error:
                failures += 1
                if feed.failure is not None or failures >= transport.limits.tries:
                    raise
                await transport.pause(failures, error.retry_after)
                if await self._is_there():
                    self._sessions.forget(self._target, self._blob)
                    return
                if failures < _BARREN or begin:
                    continue
                await self._drop(location)  # a proxy may just hang up on requests of no stated length
                await super().run()
            except RefledgerError as error:
                if error.exit_code == VerificationError.exit_code:  # also what a source makes of that
                    await self._drop(location)
                if again or not begin or not isinstance(error, VerificationError) or feed.failure is not None:
                    raise
                again = True  # the parts do not fit together: once more, all from one source
                continue
            self._sessions.forget(self._target, self._blob)
            return

    async def _open(self) -> tuple[str, int]:
        """The location of an upload that goes on, or of a new one, and how much the registry has of it."""
        kept = self._sessions.load(self._target, self._blob)
        if kept:
            async with self._session.open(self._call("GET", kept, repeat=True)) as response:
                matched = _RANGE.fullmatch(response.headers.get("range", "").strip())
                there = int(matched[1]) + 1 if matched else 0
                if response.status_code in {200, 202, 204} and 1 < there <= self._blob.size:
                    return location_of(response, kept, self._where), there
            self._sessions.forget(self._target, self._blob)
        location, _ = await self._begin()
        self._sessions.save(self._target, self._blob, location)
        return location, 0

    async def _send(self, location: str, feed: _Feed) -> str:
        """PATCH what is missing; the location for what follows. Raises also what the source raises."""
        if feed.begin == self._blob.size:
            return location
        async with feed.open():
            patch = asyncio.ensure_future(self._stream(location, feed))
            try:
                location = await asyncio.shield(patch)
            except asyncio.CancelledError:
                feed.end()
                await asyncio.wait({patch}, timeout=PARTING_SECONDS)
                raise
            finally:
                patch.cancel()
                await asyncio.gather(patch, return_exceptions=True)
        if feed.failure is not None:
            raise feed.failure
        return location

    async def _stream(self, location: str, feed: _Feed) -> str:
        call = self._call("PATCH", location, None, feed.body)
        async with self._session.open(call) as response:
            if response.status_code not in {202, 204}:
                error = await self._session.failure(call, response)
                if response.status_code in {404, 416} and feed.begin:
                    self._sessions.forget(self._target, self._blob)
                    raise Unavailable(error.what, status=response.status_code, where=error.where)
                raise error if error.kind == "auth" else _Refused
            location = location_of(response, location, self._where)
        self._sessions.save(self._target, self._blob, location)
        return location

    async def _drop(self, location: str) -> None:
        self._sessions.forget(self._target, self._blob)
        await cancel_upload(self._session, self._call("DELETE", location))


class _Feed:
    """The blob from `begin` on, as the body of one request. The body ends well whatever becomes of
    the source: `failure` is what that raised."""

    def __init__(
        self, source: Callable[[int], ByteStream], begin: int, blob: Descriptor, where: str
    ) -> None:
        self._source = source
        self._blob = blob
        self._where = where
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._ended = False
        self._taken = False
        self.begin = begin
        self.failure: Exception | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Read the source meanwhile."""
        reading = asyncio.ensure_future(self._read())
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)  # reason: who is cancelled meanwhile must hear of it

    def end(self) -> None:
        """Let the body end with what was taken of it."""
        self._ended = True
        if self._queue.empty():
            self._queue.put_nowait(None)

    async def body(self) -> AsyncGenerator[bytes, None]:
        """What comes, until it ends. Raises Unavailable when it is asked for a second time."""
        if self._taken:
            # reason: a rejected token makes the session ask for a body twice, and a stream cannot go back
            raise Unavailable("a part of the upload had to be sent again", where=self._where)
        self._taken = True
        while not self._ended and (chunk := await self._queue.get()) is not None:
            yield chunk

    async def _read(self) -> None:
        came = self.begin
        try:
            async with aclosing(self._source(self.begin)) as chunks:  # type: ignore[type-var]  # an async generator
                async for chunk in chunks:
                    came += len(chunk)
                    if came > self._blob.size:
                        break
                    if chunk:
                        await self._queue.put(chunk)
            if came != self._blob.size:
                how = f"ends after {came}" if came < self._blob.size else "goes on after the"
                raise wrong_length(how, self._blob.size, self._where)
        except Exception as error:  # noqa: BLE001  # raised by whoever sends, once the registry has answered
            self.failure = error
        await self._queue.put(None)
