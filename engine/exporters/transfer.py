"""What exporters share: packing layers that have no blob yet, and opening a layer's blob wherever it lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from engine.errors import FailureKind, MaterializationError, RefledgerError, RegistryError, VerificationError
from engine.events import BlobCreated, ExportProgressed
from engine.ledger import Facts
from engine.refs.materializer import PROGRESS_INTERVAL, Clock
from engine.refs.ref import Layer, Ref
from engine.together import in_thread, locked, together
from storage.digest import Digest
from storage.interfaces import (
    BlobStore,
    ByteStream,
    Descriptor,
    LayerPacker,
    LayerRepacker,
    Locks,
    PackedBlob,
    Provider,
    RegistrySource,
)
from storage.reference import LAYOUT_REGISTRY

CHUNK = 1 << 20


class Catalog(Protocol):
    """What earlier builds left in the log about blobs: a projection answers."""

    def packed(self, snapshot: str, epoch: int | None) -> PackedBlob | None:
        """The blob that a snapshot was packed into."""
        ...

    def providers(self, digest: Digest) -> tuple[Provider, ...]:
        """Where a blob can be read or mounted from."""
        ...


@dataclass(slots=True)
class Transfer:
    """Reads and packs layers for exporters; with a `repacker` also those of images whose blobs are not here, as nobody
    may be asked for them."""

    blobs: BlobStore
    registry: RegistrySource
    packer: LayerPacker
    catalog: Catalog
    locks: Locks
    facts: Facts
    clock: Clock
    repacker: LayerRepacker | None = None

    async def pack(self, ref: Ref, epoch: int | None, vertex: str | None) -> tuple[Layer, ...]:
        """The layers of `ref`, each with diff ID and blob. Packs what has none yet; fetches nothing."""
        return tuple(await together(self._pack(layer, ref, epoch, vertex) for layer in ref.layers))

    async def _pack(self, layer: Layer, ref: Ref, epoch: int | None, vertex: str | None) -> Layer:
        again = self._to_repack(layer)
        if not layer.snapshot and again is None:
            return self._with_providers(layer)
        name, clamp = (layer.snapshot, epoch) if again is None else (str(layer.diff_id), None)
        async with locked(self.locks, f"pack-{name}"):
            packed = self.catalog.packed(name, clamp)
            if packed is None or not self._readable(packed):
                packed = await in_thread(again or (lambda: self.packer.pack(name, clamp)))
                await self.facts.record(
                    BlobCreated(
                        ref=ref.id,
                        diff_id=str(packed.diff_id),
                        digest=str(packed.blob.digest),
                        media_type=packed.blob.media_type,
                        bytes=packed.blob.size,
                        compressor=packed.compressor,
                        snapshot=name,
                        epoch=clamp,
                    ),
                    vertex=vertex,
                )
        return self._with_providers(replace(layer, diff_id=packed.diff_id, blob=packed.blob))

    def _to_repack(self, layer: Layer) -> Callable[[], PackedBlob] | None:
        """Packs a layer of an image whose blob cannot be had, None when there is no need or no way."""
        repacker, diff_id = self.repacker, layer.diff_id
        on_disk = any(provider.registry == LAYOUT_REGISTRY for provider in layer.providers)
        if repacker is None or layer.snapshot or diff_id is None or on_disk or self.is_here(layer):
            return None
        return partial(repacker.pack, diff_id) if repacker.has(diff_id) else None

    def _readable(self, packed: PackedBlob) -> bool:
        return self.blobs.size(packed.blob.digest) is not None or bool(self.catalog.providers(packed.blob.digest))

    def _with_providers(self, layer: Layer) -> Layer:
        assert layer.blob is not None
        known = self.catalog.providers(layer.blob.digest)
        return replace(layer, providers=tuple(dict.fromkeys((*layer.providers, *known))))

    def read(self, layer: Layer, shown: Callable[[int], None]) -> ByteStream:
        """The layer's blob: from here, else from the first provider that gives it. `shown` is told the bytes so far.

        The returned iterator raises MaterializationError when nobody has it, VerificationError when bytes were wrong.
        """
        assert layer.blob is not None
        blob = layer.blob
        if self.blobs.size(blob.digest) is not None:
            return self._stored(blob, shown)
        return self._remote(layer, blob, shown)

    def is_here(self, layer: Layer) -> bool:
        """Does the blob lie on this disk?"""
        return layer.blob is not None and self.blobs.size(layer.blob.digest) is not None

    async def _stored(self, blob: Descriptor, shown: Callable[[int], None]) -> AsyncIterator[bytes]:
        done = 0
        with self.blobs.open(blob.digest) as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
                done += len(chunk)
                shown(done)

    async def _remote(self, layer: Layer, blob: Descriptor, shown: Callable[[int], None]) -> AsyncIterator[bytes]:
        last: RefledgerError | None = None
        kind: FailureKind = "missing"
        for provider in layer.providers:
            done = 0
            try:
                async with self.registry.blob(provider, blob) as stream:
                    async for chunk in stream:
                        yield chunk
                        done += len(chunk)
                        shown(done)
                return
            except RegistryError as error:
                last, kind = error, error.kind
            except VerificationError as error:
                last, kind = error, "corrupt"
            if done:
                break  # the reader has bytes already: it must begin anew, which is its own retry
        raise MaterializationError(
            f"layer {blob.digest.short} cannot be had: {last.what if last else 'no provider is known'}",
            kind=kind,
            where=last.where if last else "",
            hint=last.hint if last else "",
            layer=layer.name,
        ) from last

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
