"""A blob, or a range of one, on its way in: verified while it streams, taken up again where a connection broke.

Sources: OCI distribution-spec ("Pulling blobs"), RFC 9110 section 14 (ranges).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from storage.digest import Hasher
from storage.errors import RefledgerError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor
from storage.registry.attempts import over
from storage.registry.failures import Unavailable
from storage.registry.session import Call, Session

if TYPE_CHECKING:
    import httpx

_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Download:
    """`BlobStream` of `blob` from `start` to `end` (half open; all offsets are bytes from the blob's own start).
    `ask` makes the request from the headers to send. Without `hasher` only the length is checked. Raises ValueError
    for a range that the blob does not have."""

    def __init__(
        self,
        session: Session,
        blob: Descriptor,
        ask: Callable[[dict[str, str]], Call],
        start: int,
        end: int,
        hasher: Hasher | None,
    ) -> None:
        if not (0 <= start < end <= blob.size or (start, end, blob.size) == (0, 0, 0)):
            raise ValueError(f"no range {start} to {end} in {blob.size} bytes")
        self._session = session
        self._blob = blob
        self._ask = ask
        self._call = ask({})
        self._response: httpx.Response | None = None
        self._hasher = hasher
        self._offset = start
        self._end = end
        self._answer_end = end
        self._ranged = False
        self._whole = False
        self._skip = 0
        self._wire_bytes = 0
        self._resumed_from = 0

    @property
    def wire_bytes(self) -> int:
        """Body bytes received so far; a stretch that was sent twice counts twice."""
        return self._wire_bytes

    @property
    def resumed_from(self) -> int:
        """Offset in bytes at which the last broken connection was taken up again; 0 for none."""
        return self._resumed_from

    @property
    def ranged(self) -> bool:
        """Did the last answer hold to the range it was asked for (206)?"""
        return self._ranged

    async def connect(self) -> None:
        """Ask for what is missing yet; for all of the blob where ranges go wrong. Raises RegistryError,
        VerificationError."""
        try:
            if await self._connected():
                return
            self._whole = True
            await self.aclose()
            await self._connected()
        except RefledgerError as error:
            over(self._response, error)
            await self.aclose()
            raise
        except BaseException:
            await self.aclose()
            raise

    async def _connected(self) -> bool:
        """Ask. False when the answer is another range than the one that was asked for, or that there is none."""
        self._call = self._ask(self._range())
        self._response = response = await self._session.send(self._call)
        status = response.status_code
        if self._range() and (status == 416 or (status == 206 and not self._fits(response))):
            return False
        await self._check_answer(response)
        return True

    async def aclose(self) -> None:
        """Let go of the connection."""
        response, self._response = self._response, None
        over(response)
        if response is not None:
            await response.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        limits = self._session.transport.limits
        barren = 0
        while True:
            start = self._offset
            try:
                async for chunk in self._chunks():
                    hashing = self._hash(chunk)
                    yield chunk
                    if hashing is not None:
                        await hashing
                if self._offset == self._end:
                    break
                if start < self._offset == self._answer_end:
                    await self.aclose()
                    await self.connect()  # reason: no failure, the answer was to less than the question
                    continue
                # reason: an answer without Content-Length ends like this, whole or broken; asking on tells which
                failure: RefledgerError = self._corrupt(f"it ends after {self._offset} of {self._end} bytes")
            except Unavailable as error:
                failure = error
                over(self._response, error)
            barren = 0 if self._offset - start >= limits.progress_bytes else barren + 1
            if barren >= limits.tries_of(hurried=self._call.hurried):
                raise failure
            await self.aclose()
            await self._session.transport.pause(max(barren, 1))
            await self.connect()
            self._resumed_from = self._offset
        if self._hasher is not None and self._hasher.digest() != self._blob.digest:
            raise self._corrupt(f"its bytes have the digest {self._hasher.digest()}")

    def _range(self) -> dict[str, str]:
        """The header that asks for what is missing yet; none for all of the blob."""
        if self._whole:
            return {}
        if self._end < self._blob.size:
            return {"Range": f"bytes={self._offset}-{self._end - 1}"}
        return {"Range": f"bytes={self._offset}-"} if self._offset else {}

    def _hash(self, chunk: bytes) -> asyncio.Future[None] | None:
        """Reason for a thread: hashing runs beside the consumer's own work, and outside the event loop."""
        if self._hasher is None:
            return None
        return asyncio.get_running_loop().run_in_executor(None, self._hasher.update, chunk)

    async def _check_answer(self, response: httpx.Response) -> None:
        """Does the answer give the missing bytes, as many as there must be?"""
        size, status = self._blob.size, response.status_code
        if status not in {200, 206} or (status == 206 and not self._range()):
            raise await self._session.failure(self._call, response)
        begin, end = self._answered_range(response) if status == 206 else (0, size)
        self._ranged = status == 206
        self._skip = self._offset - begin
        self._answer_end = end
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) != end - begin:
            raise self._corrupt(f"the registry has {begin + int(length)} bytes where {end} are promised")

    def _fits(self, response: httpx.Response) -> bool:
        """Does a 206 say that it begins where it was asked to? It may begin before, as many servers only keep whole
        blocks, and end before it (RFC 9110 section 15.3.7)."""
        matched = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        return matched is not None and int(matched[1]) <= self._offset <= int(matched[2]) < self._blob.size

    def _answered_range(self, response: httpx.Response) -> tuple[int, int]:
        """Where the bytes of a 206 begin and end."""
        matched = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        assert matched is not None  # see `_fits`
        if matched[3] not in {"*", str(self._blob.size)}:
            raise self._corrupt(f"the registry has {matched[3]} bytes where {self._blob.size} are promised")
        return int(matched[1]), int(matched[2]) + 1

    async def _chunks(self) -> AsyncIterator[bytes]:
        """New bytes in pieces of about `limits.chunk_bytes`, or less when they come slowly: whoever keeps them loses
        less in a crash. What came before a break is handed on before it raises."""
        assert self._response is not None
        limits, now = self._session.transport.limits, asyncio.get_running_loop().time
        due = now() + limits.chunk_seconds
        gathered: list[bytes] = []
        held = 0
        failure: RegistryError | None = None
        try:
            async for raw in self._session.transport.pieces(self._response, self._call.where):
                piece = self._fresh(raw)
                gathered.append(piece)
                held += len(piece)
                if held >= limits.chunk_bytes or (held and now() >= due):
                    yield b"".join(gathered)
                    gathered, held = [], 0
                    due = now() + limits.chunk_seconds
                if self._offset == self._end < self._answer_end:
                    break  # reason: the rest of a whole blob, from a registry without ranges, is not asked for
        except RegistryError as error:
            failure = error
        if held:
            yield b"".join(gathered)
        if failure is not None:
            raise failure

    def _fresh(self, piece: bytes) -> bytes:
        """`piece` without what an earlier connection brought, nor what lies behind the range.
        Raises VerificationError past the promised size."""
        self._wire_bytes += len(piece)
        if self._skip:
            known = min(self._skip, len(piece))
            self._skip -= known
            piece = piece[known:]
        if self._offset + len(piece) > self._answer_end:
            raise self._corrupt(f"it goes on after the {self._answer_end} bytes promised")
        piece = piece[: self._end - self._offset]
        self._offset += len(piece)
        return piece

    def _corrupt(self, why: str) -> VerificationError:
        what = f"the registry's blob is not what its digest promises: {why}"
        hint = "the copy in the registry is damaged: push the image again"
        error = VerificationError(what, where=self._call.where, hint=hint)
        over(self._response, error)
        return error
