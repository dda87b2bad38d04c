"""One attempt to have a blob from one provider: what is missing of it comes in while all of it is unpacked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from engine.refs.fill import FetchLimits, Fill
from engine.refs.spool import Spool
from storage.errors import DiskError, VerificationError
from storage.interfaces.blobs import ByteSource, PartialBlob
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import RegistrySource
from storage.threads import in_thread, settle


class Pull:
    """Goes on from what is in `partial`, and owns it. `connections`: see Fill; `shown` is told the bytes that are
    here."""

    def __init__(
        self,
        registry: RegistrySource,
        provider: Provider,
        blob: Descriptor,
        partial: PartialBlob,
        connections: asyncio.Semaphore,
        limits: FetchLimits,
        shown: Callable[[int], None],
    ) -> None:
        self._provider = provider
        self._blob = blob
        self._partial = partial
        self._spool = Spool(partial, blob)
        self._fill = Fill(registry, provider, blob, self._spool, connections, limits, shown)
        self.leftover = blob.size - self._fill.missing
        """Bytes that were here before; this provider did not send them."""
        self.misread = False
        """What the reader saw could not be unpacked, or had a wrong digest; and was not known to be the blob."""

    @property
    def wire_bytes(self) -> int:
        """Body bytes that came, as the provider counts them."""
        return self._fill.wire_bytes

    @property
    def resumed_from(self) -> int:
        """How many bytes did not have to come; or the offset where a broken connection was taken up again, or 0."""
        return self.leftover or self._fill.resumed_from

    @property
    def verified(self) -> bool:
        """Has everything been here, with the right digest?"""
        return self._spool.found == self._blob.digest

    async def run(self, unpack: Callable[[ByteSource], Coroutine[Any, Any, int]]) -> None:
        """Raises RegistryError, VerificationError, DiskError, and what else `unpack` raises, when both sides have come
        to rest. Bytes that may be good are kept for the next attempt unless the disk refused more."""
        try:
            await self._both(unpack)
        except DiskError:
            await self._discard()
            raise
        except VerificationError:
            if self.misread or self.verified or self.wire_bytes:
                await self._discard()  # else the provider's answer alone was wrong, before it sent a byte
            raise
        else:
            await self._discard()
        finally:
            self._partial.close()

    async def _both(self, unpack: Callable[[ByteSource], Coroutine[Any, Any, int]]) -> None:
        filling = asyncio.ensure_future(self._fill.run())
        unpacking = asyncio.ensure_future(unpack(self._spool))
        try:
            await asyncio.wait({filling, unpacking}, return_when=asyncio.FIRST_COMPLETED)
            if not unpacking.done() and filling.exception() is None:
                await asyncio.wait({unpacking})
        finally:
            # The thread must be gone, and its leavings with it, before anybody tries again.
            self._spool.abandon()
            filling.cancel()
            await settle(filling)
            await settle(unpacking)
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # it came while both were ending: no other provider is to be asked
        failure = unpacking.exception()
        if failure is None:
            return
        if not filling.cancelled() and (first := filling.exception()) is not None:
            raise first  # it made the reader stop
        if isinstance(failure, VerificationError) and not self.verified:
            self.misread = True
            if self._spool.found is not None:
                raise self._wrong_digest() from failure
        raise failure

    def _wrong_digest(self) -> VerificationError:
        return VerificationError(
            f"the registry's blob is not what its digest promises: its bytes have the digest {self._spool.found}",
            where=f"{self._provider}@{self._blob.digest}",
            hint="the copy in the registry is damaged: push the image again",
        )

    async def _discard(self) -> None:
        with suppress(DiskError):  # what cannot be removed now is removed when it is old
            await in_thread(self._partial.discard)
