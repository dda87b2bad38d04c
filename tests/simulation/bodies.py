"""Blobs on their way through the simulated network, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from storage.digest import sha256
from storage.errors import RefledgerError, VerificationError
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import ByteStream
from storage.registry.body import wrong_length
from storage.registry.failures import Unavailable
from tests.simulation.chance import Crashed
from tests.simulation.wire import (
    BACKOFF_SECONDS,
    BLOB,
    CRASH,
    LOST,
    PIECE,
    SENT,
    SLOW,
    SLOW_SECONDS,
    WRONG,
    Access,
    Wire,
    blob_call,
    breakdown,
    flipped,
    refusal,
)


class Download:
    """BlobStream of `blob` from `start` to `end`; `verified`: is the digest looked at?"""

    def __init__(
        self, wire: Wire, provider: Provider, blob: Descriptor, start: int, end: int, *, verified: bool
    ) -> None:
        self._wire = wire
        self._provider = provider
        self._blob = blob
        self._offset = start
        self._end = end
        self._verified = verified
        self._access: Access | None = None
        self._data = b""
        self._call = blob_call("GET", provider, blob.digest, "pull")
        self._came: list[bytes] = []
        self.wire_bytes = 0
        self.resumed_from = 0
        self.ranged = False

    async def connect(self) -> None:
        """Ask for what is missing yet."""
        wire, call = self._wire, self._call
        host, access, kind = await wire.arrive(call, BLOB)
        self._access = access
        access.status, body = host.blob(self._provider.repository, self._blob.digest)
        if access.status != 200:
            self.close()
            raise wire.tell(call, access, error=refusal(call, access.status, body))
        if kind == "wrong size":
            body += b"!"
        if kind == WRONG:
            body = flipped(body)
        if len(body) != self._blob.size:
            self.close()
            promised = f"the registry has {len(body)} bytes where {self._blob.size} are promised"
            raise wire.tell(call, access, error=self._corrupt(promised))
        self._data = body
        asked = self._offset > 0 or self._end < self._blob.size
        self.ranged = asked and host.ranges and kind != "no ranges"
        if self.ranged:
            access.status = 206
        else:
            self._count(self._offset)
        await wire.latency()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        wire = self._wire
        while self._offset < self._end:
            left = self._end - self._offset
            size = left if wire.chance.maybe(50) else 1 + wire.chance.below(left)
            kind = wire.faults.at("registry.piece", *PIECE)
            if kind == CRASH:
                raise Crashed(f"while reading {self._call.where}")
            if kind == LOST:
                raise wire.tell(self._call, self._access, error=breakdown(self._call))
            if kind == "resumed":
                self.close()
                await asyncio.sleep(BACKOFF_SECONDS)
                await self.connect()
                self.resumed_from = self._offset
            piece = self._data[self._offset : self._offset + size]
            self._count(len(piece))
            self._offset += len(piece)
            piece = flipped(piece[::-1])[::-1] if kind == WRONG else piece  # another byte than `connect` may have
            if self._verified:
                self._came.append(piece)
            await (asyncio.sleep(SLOW_SECONDS) if kind == SLOW else wire.latency())
            yield piece
        if self._verified and (found := sha256(b"".join(self._came))) != self._blob.digest:
            raise wire.tell(self._call, self._access, error=self._corrupt(f"its bytes have the digest {found}"))
        wire.tell(self._call, self._access)
        self.close()

    def close(self) -> None:
        """The connection is not needed any more."""
        access, self._access = self._access, None
        if access is not None and access.ended < 0:
            access.ended = asyncio.get_running_loop().time()

    def _count(self, size: int) -> None:
        self.wire_bytes += size
        if self._access is not None:
            self._access.bytes += size

    def _corrupt(self, why: str) -> VerificationError:
        what = f"the registry's blob is not what its digest promises: {why}"
        hint = "the copy in the registry is damaged: push the image again"
        return VerificationError(what, where=self._call.where, hint=hint)


@dataclass(slots=True)
class Sending:
    """`blob` on its way to `target`, from sources that are opened by `chunks`, or by `resume` from an offset on.
    `kept`: where the registry keeps what comes of an upload that breaks off, if it does. Afterwards `begun` is how
    much of it was there before."""

    wire: Wire
    target: Provider
    blob: Descriptor
    where: str
    chunks: Callable[[], ByteStream]
    resume: Callable[[int], ByteStream] | None
    kept: bytearray | None
    begun: int = 0

    async def run(self) -> bytes:
        """What the registry has when all was sent. Raises RegistryError, VerificationError, and what comes of the
        source."""
        while True:
            self.begun = len(self.kept) if self.kept else 0
            came = bytearray() if self.kept is None else self.kept
            resumed = self.resume is not None and self.kept is not None
            stream = self.resume(self.begun) if self.resume is not None and resumed else self.chunks()
            try:
                again = await self._send(stream, came)
            except RefledgerError as error:
                if error.exit_code == VerificationError.exit_code and self.kept is not None:
                    self.kept.clear()
                raise
            finally:
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()
            if not again:
                return bytes(came)
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _send(self, stream: ByteStream, came: bytearray) -> bool:
        """Add what `stream` gives to `came`. Is it to be tried again?"""
        async for piece in stream:
            kind = self.wire.faults.at("registry.send", *SENT)
            if kind == CRASH:
                raise Crashed(f"while sending {self.where}")
            if kind == LOST:
                raise Unavailable(f"the connection to {self.target.registry} broke", where=self.where).final()
            if kind == "again":
                return True
            await (asyncio.sleep(SLOW_SECONDS) if kind == SLOW else self.wire.latency())
            came += piece
            if len(came) > self.blob.size:
                raise wrong_length("goes on after the", self.blob.size, self.where)
        if len(came) != self.blob.size:
            raise wrong_length(f"ends after {len(came)}", self.blob.size, self.where)
        return False
