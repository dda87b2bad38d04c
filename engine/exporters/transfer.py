"""What exporters share: packing layers that have no blob yet, and opening a layer's blob wherever it lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from engine.errors import (
    DiskError,
    MaterializationError,
    RegistryError,
    VerificationError,
)
from engine.events import BlobCreated, ExportProgressed, LocalLost
from engine.exporters import conversion
from engine.exporters.conversion import PLAIN, Conversion
from engine.ledger import Facts
from engine.refs.materializer import PROGRESS_INTERVAL, Clock
from engine.refs.places import Places, kind_of
from engine.refs.providers import unavailable
from engine.refs.ref import Layer, Ref, Remote
from engine.refs.relay import Relay
from engine.together import in_thread, locked, together
from storage.digest import Digest
from storage.interfaces import (
    BlobStore,
    ByteStream,
    Compression,
    Descriptor,
    LayerPacker,
    Locks,
    PackedBlob,
    Provider,
    RegistrySource,
)
from storage.reference import LAYOUT_REGISTRY

T = TypeVar("T")
CHUNK = 1 << 20
_DEFAULT = Compression()


class Here(conversion.Here, Protocol):
    """The layers of this root."""

    def miss(self, layer: Layer) -> None:
        """Say that the snapshot of `layer`, which nobody else has, is not here; unless the log says why."""
        ...


class Catalog(Protocol):
    """What earlier builds left in the log about blobs: a projection answers."""

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedBlob | None:
        """The blob that snapshot (or diff ID, or blob) `name` was packed into, with times clamped to `epoch`, as
        `compression` (Compression.written)."""
        ...

    def providers(self, digest: Digest) -> tuple[Provider, ...]:
        """Where a blob can be read or mounted from."""
        ...

    def let_go(self, name: str) -> bool:
        """Were the bytes of `name` (a digest, a diff ID, the id of a snapshot) removed here on purpose?"""
        ...


@dataclass(slots=True)
class Transfer:
    """Reads, packs and converts layers for exporters; `repack` also those of images whose blobs are not here, as nobody
    may be asked for them."""

    blobs: BlobStore
    registry: RegistrySource
    packer: LayerPacker
    catalog: Catalog
    locks: Locks
    facts: Facts
    clock: Clock
    here: Here
    conversion: Conversion
    repack: bool = False
    places: Places = field(default_factory=Places)
    _asked: dict[Digest, tuple[int | None, Compression]] = field(default_factory=dict)

    async def pack(
        self, ref: Ref, epoch: int | None, vertex: str | None, compression: Compression = _DEFAULT,
        rewrite: bool = False,
    ) -> tuple[Layer, ...]:  # fmt: skip
        """The layers of `ref`, each with diff ID and blob. Packs what steps made as `compression`, with times clamped
        to `epoch`, and fetches nothing for that. Layers that are blobs already stay what they are, but for those in
        another compression when it is forced, and for those with later times when `rewrite` says that these are to be
        clamped too: they are converted, and what of them is not here is fetched. Raises InputError,
        MaterializationError, DiskError, VerificationError."""
        layers = await together(self._pack(layer, ref, epoch, vertex, compression) for layer in ref.layers)
        return await self.conversion.convert(ref, layers, compression, epoch if rewrite else None)

    async def _pack(
        self, layer: Layer, ref: Ref, epoch: int | None, vertex: str | None, compression: Compression
    ) -> Layer:
        if not layer.snapshot:
            return self._with_providers(await self._repack(layer, ref, vertex))
        async with locked(self.locks, f"pack-{layer.snapshot}"):
            packed = self.catalog.packed(layer.snapshot, epoch, compression.written)
            if packed is None or not self._readable(packed):
                if packed is not None and not self.catalog.let_go(str(packed.blob.digest)):
                    self.facts.post(LocalLost(kind="blob", name=str(packed.blob.digest), problem="vanished"))
                if epoch is None and layer.blob is not None and not await self.here.usable(_step(layer)):
                    return self._with_providers(layer)  # its own times, in the blob it was packed into elsewhere
                packed = await self._make(layer, ref, epoch, vertex, compression)
        self._asked[packed.blob.digest] = epoch, compression
        same = layer.blob is not None and layer.blob.digest == packed.blob.digest
        providers = layer.providers if same else ()  # those of the blob that it had
        return self._with_providers(replace(layer, diff_id=packed.diff_id, blob=packed.blob, providers=providers))

    async def _make(
        self, layer: Layer, ref: Ref, epoch: int | None, vertex: str | None, compression: Compression
    ) -> PackedBlob:
        """Pack a snapshot. Raises MaterializationError when it is gone, DiskError."""
        if not await self.here.usable(_step(layer), vertex):
            self.here.miss(layer)
            raise _gone(layer)
        try:
            packed = await in_thread(lambda: self.packer.pack(layer.snapshot, epoch, compression))
        except VerificationError as error:
            await self.here.lose(layer, "snapshot", layer.snapshot, error.what, vertex=vertex)
            raise _gone(layer) from error
        except DiskError as error:
            if await self.here.usable(_step(layer)):
                raise
            raise _gone(layer) from error
        await self._tell(packed, ref, layer.snapshot, epoch, vertex, compression)
        return packed

    async def _repack(self, layer: Layer, ref: Ref, vertex: str | None) -> Layer:
        """A layer of an image whose blob cannot be had, with one that is made of what is here; `layer` itself where
        there is no need, or no way."""
        diff_id = layer.diff_id
        on_disk = any(provider.registry == LAYOUT_REGISTRY for provider in layer.providers)
        tars = self.conversion.tars
        if not self.repack or diff_id is None or on_disk or self.is_here(layer) or not tars.has(diff_id):
            return layer
        async with locked(self.locks, f"pack-{diff_id}"):
            packed = self.catalog.packed(str(diff_id), None, _DEFAULT.written)
            if packed is None or self.blobs.size(packed.blob.digest) is None:
                packed = await in_thread(partial(self._of_its_tar, diff_id))
                await self._tell(packed, ref, str(diff_id), None, vertex, _DEFAULT)
        return replace(layer, blob=packed.blob)

    def _of_its_tar(self, diff_id: Digest) -> PackedBlob:
        with self.conversion.tars.open(diff_id) as tar:
            packed = self.conversion.converter.convert(tar, PLAIN, diff_id, _DEFAULT)
        assert packed is not None, "kept whatever it is"
        return packed

    async def _tell(
        self, packed: PackedBlob, ref: Ref, name: str, epoch: int | None, vertex: str | None, compression: Compression
    ) -> None:
        await self.facts.record(
            BlobCreated(
                ref=ref.id,
                diff_id=str(packed.diff_id),
                digest=str(packed.blob.digest),
                media_type=packed.blob.media_type,
                bytes=packed.blob.size,
                compressor=packed.compressor,
                snapshot=name,
                epoch=epoch,
                compression=compression.written,
                annotations=dict(packed.blob.annotations) or None,
            ),
            vertex=vertex,
        )

    def _readable(self, packed: PackedBlob) -> bool:
        return self.blobs.size(packed.blob.digest) is not None or bool(self.catalog.providers(packed.blob.digest))

    def _with_providers(self, layer: Layer) -> Layer:
        assert layer.blob is not None
        known = self.catalog.providers(layer.blob.digest)
        return replace(layer, providers=tuple(dict.fromkeys((*layer.providers, *known))))

    def read(
        self, layer: Layer, shown: Callable[[int], None], served: Callable[[Provider], None] | None = None,
        start: int = 0,
    ) -> ByteStream:  # fmt: skip
        """The layer's blob: from here, else from the first place that gives it, where the next one goes on when it
        breaks off. `shown` is told the bytes so far, `served` the places that they came from.

        The returned iterator raises MaterializationError when nobody has it, or the bytes were wrong (`corrupt`): who
        gave those is not asked again, so that another reading may fare better. With `start`, an offset in bytes, only
        what follows it, and that unverified: whoever has what is before it must do so.
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
        here = self.blobs.size(blob.digest) is not None
        # before the first byte goes out: whoever has some of a damaged blob could not begin anew
        if here and not await in_thread(lambda: self.blobs.sound(blob.digest)):
            here = await self._packed_again(layer, blob)
        stream = self._stored(blob, shown, start) if here else self._remote(layer, blob, shown, served, start)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _packed_again(self, layer: Layer, blob: Descriptor) -> bool:
        """Is the blob here again, made from what it was made from before?"""
        if await self.conversion.again(blob):
            return True
        if not layer.snapshot or not await self.here.usable(_step(layer)):
            return False
        epoch, compression = self._asked.get(blob.digest, (None, _DEFAULT))
        async with locked(self.locks, f"pack-{layer.snapshot}"):
            packed = await self._make(layer, Remote(layer.name, (layer,)), epoch, None, compression)
        return packed.blob.digest == blob.digest

    async def _stored(
        self, blob: Descriptor, shown: Callable[[int], None], done: int
    ) -> AsyncGenerator[bytes, None]:
        with self.blobs.open(blob.digest) as file:
            file.seek(done)
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
                done += len(chunk)
                shown(done)

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

    def progress(self, target: str, blob: Descriptor, transport: str, vertex: str | None) -> Callable[[int], None]:
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
                    ),
                    vertex=vertex,
                )

        return shown


def _step(layer: Layer) -> Layer:
    """What is asked for when only the snapshot will do."""
    return Layer(snapshot=layer.snapshot, created=layer.created)


def _gone(layer: Layer) -> MaterializationError:
    return unavailable(f"the result of step {layer.snapshot} is not here any more", layer, "missing", None, ())


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
