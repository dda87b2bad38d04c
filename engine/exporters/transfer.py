"""What exporters share: layers with the blobs that they have to have, packed or converted where they have none."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from engine.errors import (
    DiskError,
    MaterializationError,
    VerificationError,
)
from engine.events import BlobCreated, LocalLost
from engine.exporters import conversion
from engine.exporters.conversion import Conversion
from engine.exporters.reading import BlobReader
from engine.ledger import Facts
from engine.refs.providers import unavailable
from engine.refs.ref import Layer, Ref, Remote
from engine.together import locked, made_and_told, together
from storage.digest import Digest
from storage.interfaces.images import Compression, Descriptor, Provider
from storage.interfaces.locks import Locks
from storage.interfaces.packing import LayerPacker, PackedBlob
from storage.reference import LAYOUT_REGISTRY
from storage.threads import in_thread

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
    """Packs and converts layers for exporters; `repack` also those of images whose blobs are not here, as nobody
    may be asked for them."""

    reader: BlobReader
    packer: LayerPacker
    catalog: Catalog
    locks: Locks
    facts: Facts
    here: Here
    conversion: Conversion
    repack: bool = False
    _asked: dict[Digest, tuple[int | None, Compression]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader.again = self._packed_again

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
        done = frozenset(digest for digest, how in self._asked.items() if how == (epoch, compression))
        return await self.conversion.convert(ref, layers, compression, epoch if rewrite else None, done)

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
        """Pack a snapshot, and say so. Raises MaterializationError when it is gone, DiskError."""
        name = layer.snapshot

        async def make() -> PackedBlob:
            if not await self.here.usable(_step(layer), vertex):
                self.here.miss(layer)
                raise _gone(layer)
            try:
                return await in_thread(lambda: self.packer.pack(name, epoch, compression))
            except VerificationError as error:
                await self.here.lose(layer, "snapshot", name, error.what, vertex=vertex)
                raise _gone(layer) from error
            except DiskError as error:
                if await self.here.usable(_step(layer)):
                    raise
                raise _gone(layer) from error

        return await made_and_told(
            self.locks, make, self._is_here, lambda packed: self._tell(packed, ref, name, epoch, vertex, compression)
        )

    async def _repack(self, layer: Layer, ref: Ref, vertex: str | None) -> Layer:
        """A layer of an image whose blob cannot be had, with one that is made of what is here; `layer` itself where
        there is no need, or no way."""
        diff_id = layer.diff_id
        on_disk = any(provider.registry == LAYOUT_REGISTRY for provider in layer.providers)
        tars = self.conversion.tars
        if not self.repack or diff_id is None or on_disk or self.reader.is_here(layer) or not tars.has(diff_id):
            return layer
        async with locked(self.locks, f"pack-{diff_id}"):
            packed = self.catalog.packed(str(diff_id), None, _DEFAULT.written)
            if packed is None or not self._is_here(packed):
                packed = await made_and_told(
                    self.locks,
                    lambda: in_thread(partial(self._of_its_tar, diff_id)),
                    self._is_here,
                    lambda packed: self._tell(packed, ref, str(diff_id), None, vertex, _DEFAULT),
                )
        return replace(layer, blob=packed.blob)

    def _of_its_tar(self, diff_id: Digest) -> PackedBlob:
        with self.conversion.tars.open(diff_id) as tar:
            packed = self.conversion.converter.convert(tar, None, diff_id, _DEFAULT)
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

    def _is_here(self, packed: PackedBlob) -> bool:
        return self.reader.blobs.size(packed.blob.digest) is not None

    def _readable(self, packed: PackedBlob) -> bool:
        return self._is_here(packed) or bool(self.catalog.providers(packed.blob.digest))

    def _with_providers(self, layer: Layer) -> Layer:
        assert layer.blob is not None
        known = self.catalog.providers(layer.blob.digest)
        return replace(layer, providers=tuple(dict.fromkeys((*layer.providers, *known))))

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


def _step(layer: Layer) -> Layer:
    """What is asked for when only the snapshot will do."""
    return Layer(snapshot=layer.snapshot, created=layer.created)


def _gone(layer: Layer) -> MaterializationError:
    return unavailable(f"the result of step {layer.snapshot} is not here any more", layer, "missing", None, ())
