"""Opening a layer's blob wherever it lies: on this disk, else with the first place that gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

from engine.clock import Clock
from engine.errors import MaterializationError, RegistryError, VerificationError
from engine.events import ExportProgressed
from engine.ledger import Facts
from engine.refs.fetch import PROGRESS_INTERVAL
from engine.refs.places import Places, kind_of
from engine.refs.providers import unavailable
from engine.refs.ref import Layer
from engine.refs.relay import Relay
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Descriptor, Provider
from storage.interfaces.registry import ByteStream, RegistrySource
from storage.threads import in_thread

T = TypeVar("T")
CHUNK = 1 << 20


async def _never(_layer: Layer, _blob: Descriptor) -> bool:
    return False


@dataclass(slots=True)
class BlobReader:
    """Reads blobs for those who pass them on. `again`: makes a blob of this root anew that turned out to be damaged
    or gone, and says whether it could."""

    blobs: BlobStore
    registry: RegistrySource
    facts: Facts
    clock: Clock
    places: Places = field(default_factory=Places)
    again: Callable[[Layer, Descriptor], Awaitable[bool]] = _never

    def read(
        self, layer: Layer, shown: Callable[[int], None], served: Callable[[Provider], None] | None = None,
        start: int = 0,
    ) -> ByteStream:  # fmt: skip
        """The layer's blob: from here, else from the first place that gives it, where the next one goes on when it
        breaks off. `shown` is told the bytes so far, `served` the places that they came from.

        The returned iterator raises DiskError, and MaterializationError when nobody has it, or the bytes were wrong
        (`corrupt`): who gave those is not asked again, so that another reading may fare better. With `start`, an offset
        in bytes, only what follows it, and that unverified: whoever has what is before it must do so.
        """
        assert layer.blob is not None
        return self._bytes(layer, layer.blob, shown, served, start)

    async def anew(self, layers: Iterable[Layer], work: Callable[[], Awaitable[T]]) -> T:
        """What `work` makes, which reads `layers` and hands their bytes on: from its beginning once more, when bytes
        turned out to be wrong and somebody else may have them right."""
        named = {layer.name: layer for layer in layers}
        while True:
            try:
                return await work()
            except MaterializationError as error:
                layer = named.get(error.layer)
                if error.kind != "corrupt" or layer is None or layer.blob is None:
                    raise
                if next(self.places.of(layer.providers, layer.blob.digest), None) is None:
                    raise

    def is_here(self, layer: Layer) -> bool:
        """Does the blob lie on this disk?"""
        return layer.blob is not None and self.blobs.size(layer.blob.digest) is not None

    async def _bytes(
        self, layer: Layer, blob: Descriptor, shown: Callable[[int], None], served: Callable[[Provider], None] | None,
        start: int,
    ) -> AsyncIterator[bytes]:  # fmt: skip
        there = self.blobs.size(blob.digest) is not None
        # before the first byte goes out: whoever has some of a damaged blob could not begin anew
        here = there and await in_thread(lambda: self.blobs.sound(blob.digest))
        if not here and (there or not layer.providers):  # damaged, or let go of since it was made
            here = await self.again(layer, blob)
        file = self._opened(blob) if here else None
        stream = self._stored(file, shown, start) if file else self._remote(layer, blob, shown, served, start)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _stored(
        self, file: BinaryIO, shown: Callable[[int], None], done: int
    ) -> AsyncGenerator[bytes, None]:
        with file:
            file.seek(done)
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
                done += len(chunk)
                shown(done)

    def _opened(self, blob: Descriptor) -> BinaryIO | None:
        """The blob on this disk, None when it was let go of just now."""
        try:
            return self.blobs.open(blob.digest)
        except FileNotFoundError:
            return None

    async def _remote(
        self, layer: Layer, blob: Descriptor, shown: Callable[[int], None], served: Callable[[Provider], None] | None,
        start: int,
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        relay = Relay(self.registry, self.places, self.facts, layer.name, blob, layer.providers)
        done = start
        try:
            async with aclosing(relay.stream(start)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    done += len(chunk)
                    shown(done)
        except (RegistryError, VerificationError) as error:
            what = f"layer {blob.digest.short} cannot be had: {error.what}"
            asked = relay.asked or layer.providers
            raise unavailable(what, layer, kind_of(error), error, asked) from error
        if served is not None:
            for place in relay.served:
                served(place)

    def progress(self, target: str, blob: Descriptor, transport: str) -> Callable[[int], None]:
        """A `shown` that puts ExportProgressed into the log, at most four a second."""
        last = self.clock.monotonic()

        def shown(done: int) -> None:
            nonlocal last
            now = self.clock.monotonic()
            if now - last >= PROGRESS_INTERVAL or done == blob.size:
                last = now
                self.facts.post(
                    ExportProgressed(
                        target=target, digest=str(blob.digest), bytes=done, total=blob.size, transport=transport
                    )
                )

        return shown


async def drain(stream: ByteStream, write: Callable[[bytes], None]) -> int:
    """Give every chunk of `stream` to `write`; returns the bytes."""
    total = 0
    async with aclosing(stream) as chunks:  # type: ignore[type-var]  # our streams are async generators
        async for chunk in chunks:
            write(chunk)
            total += len(chunk)
    return total


async def of_bytes(data: bytes) -> AsyncIterator[bytes]:
    """`data` as a stream of one chunk."""
    yield data
