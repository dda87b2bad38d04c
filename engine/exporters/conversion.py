"""Layers that are there already, in another compression, or without times later than SOURCE_DATE_EPOCH.

A layer is made of its blob when that is here, else of what is laid out here, and only else fetched, of which nothing
but the result stays. The result is remembered: the next export converts nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from engine.clock import Clock
from engine.errors import VerificationError
from engine.events import BlobCreated, MaterializationRequested, Materialized
from engine.ledger import Facts
from engine.refs.ref import Layer, Ref
from engine.together import locked, made_and_told, together
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore, ByteSource
from storage.interfaces.images import ESTARGZ, Compression, Descriptor, Provider
from storage.interfaces.locks import Locks
from storage.interfaces.packing import LayerConverter, LayerTars, PackedBlob
from storage.threads import in_thread

PARALLEL = 4
"""Layers that are converted at once: each has its buffers."""

_Key = tuple[str, int | None, str]


class Fetcher(Protocol):
    """The door to bytes: see Materializer."""

    async def read(
        self, ref: Ref, layer: Layer, use: Callable[[ByteSource], int], *, vertex: str | None, cause: int
    ) -> int:
        """Have `use` read the blob of `layer` for the request `cause`; the bytes that came for it."""
        ...


class Here(Protocol):
    """The layers of this root."""

    async def usable(self, layer: Layer, vertex: str | None = None) -> bool:
        """Is `layer` mountable here, and not known to be damaged?"""
        ...

    async def lose(
        self, layer: Layer, kind: str, name: str, problem: str = "", *, vertex: str | None = None
    ) -> None:
        """Remove what is kept of `layer` as `name`, which is damaged."""
        ...


class Converted(Protocol):
    """What earlier builds left in the log about blobs: a projection answers."""

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedBlob | None:
        """The blob that blob `name` was converted into."""
        ...

    def providers(self, digest: Digest) -> tuple[Provider, ...]:
        """Where a blob can be read from."""
        ...


def kind_of(blob: Descriptor) -> str:
    """How `blob` is compressed, as Compression.kind, by what its descriptor says."""
    if blob.media_type.endswith(("+zstd", ".zstd")):
        return "zstd"
    if blob.media_type.endswith(("+gzip", ".gzip")):
        return "estargz" if ESTARGZ in blob.annotations else "gzip"
    return "uncompressed"


def foreign(blob: Descriptor) -> bool:
    """May `blob` be distributed by its maker only? Such a layer stays what it is."""
    return "nondistributable" in blob.media_type or ".foreign." in blob.media_type


@dataclass(frozen=True, slots=True)
class _Wanted:
    """`compression` and `epoch` of what `layer` shall become; `as_is`: when its times need not change, the blob that it
    has will do."""

    layer: Layer
    compression: Compression
    epoch: int | None
    as_is: bool

    @property
    def blob(self) -> Descriptor:
        assert self.layer.blob is not None, "layers are packed before they are converted"
        return self.layer.blob

    @property
    def unchanged(self) -> PackedBlob:
        """The result where the blob is as it has to be."""
        return PackedBlob(self.layer.diff_id or self.blob.digest, self.blob, "")

    @property
    def key(self) -> _Key:
        """What the result is remembered by."""
        return str(self.blob.digest), self.epoch, self.compression.written


def wanted(layer: Layer, compression: Compression, epoch: int | None) -> _Wanted | None:
    """What `layer`, which has a blob, is to become: in another compression when that is forced, without times later
    than `epoch` when there is one. None: it stays."""
    blob = layer.blob
    if blob is None or layer.diff_id is None or foreign(blob):
        return None
    kind = kind_of(blob)
    other = compression.force and kind != compression.kind
    if not other and epoch is None:
        return None
    if not other and kind != compression.kind:
        compression = Compression(kind)  # type: ignore[arg-type]  # kind_of gives no others
    return _Wanted(layer, compression, epoch, as_is=not other)


@dataclass(slots=True)
class Conversion:
    """Converts layers for exports; `tars` of layers that are laid out here."""

    blobs: BlobStore
    converter: LayerConverter
    tars: LayerTars
    fetcher: Fetcher
    catalog: Converted
    locks: Locks
    facts: Facts
    clock: Clock
    here: Here
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    _made: dict[Digest, tuple[_Wanted, Ref]] = field(default_factory=dict)
    _done: dict[_Key, PackedBlob] = field(default_factory=dict)

    async def convert(
        self, ref: Ref, layers: Sequence[Layer], compression: Compression, epoch: int | None,
        done: Container[Digest] = (),
    ) -> tuple[Layer, ...]:  # fmt: skip
        """`layers` of `ref`, each with the blob that it has to have; blobs that are `done` have it. Raises
        MaterializationError, DiskError, VerificationError, InputError."""
        wants = (wanted(layer, compression, epoch) for layer in layers)
        todo = {want.blob.digest: want for want in wants if want is not None and want.blob.digest not in done}
        known = {digest: found for digest, want in todo.items() if (found := self._known(want)) is not None}
        rest = [want for digest, want in todo.items() if digest not in known]
        away = [want for want in rest if not await self._here(want)]
        started, cause = self.clock.monotonic(), 0
        if away:
            cause = await self._request(ref, away)
        made = await together(self._convert(want, ref, cause) for want in rest)
        if away:
            await self.facts.record(
                Materialized(
                    ref=ref.id, bytes=sum(bytes_ for _, bytes_ in made), whole=False,
                    seconds=round(self.clock.monotonic() - started, 6),
                ),
                cause=cause,
            )  # fmt: skip
        known |= {want.blob.digest: packed for want, (packed, _) in zip(rest, made, strict=True)}
        return tuple(
            self._layer(layer, todo[layer.blob.digest], ref, known[layer.blob.digest])
            if layer.blob and layer.blob.digest in known
            else layer
            for layer in layers
        )

    async def again(self, blob: Descriptor) -> bool:
        """Is `blob`, which was converted for this build and found damaged, here again?"""
        if blob.digest not in self._made:
            return False
        want, ref = self._made[blob.digest]
        cause = 0 if await self._here(want) else await self._request(ref, [want])
        await self._convert(want, ref, cause)
        return self.blobs.size(blob.digest) is not None

    def _layer(self, layer: Layer, want: _Wanted, ref: Ref, packed: PackedBlob) -> Layer:
        """As the export names it: who has the blob it was made of has this one only if that is known of it."""
        if packed.blob.digest == want.blob.digest:
            return layer
        self._made[packed.blob.digest] = want, ref
        providers = self.catalog.providers(packed.blob.digest)
        return replace(layer, diff_id=packed.diff_id, blob=packed.blob, providers=providers)

    def _known(self, want: _Wanted) -> PackedBlob | None:
        """What it was converted into before, if that can be read."""
        found = self._done.get(want.key) or self.catalog.packed(*want.key)
        if found is None:
            return None
        digest = found.blob.digest
        if digest == want.blob.digest or self.blobs.size(digest) is not None or self.catalog.providers(digest):
            return found
        return None

    async def _here(self, want: _Wanted) -> bool:
        """Can it be made of what is here?"""
        return await in_thread(lambda: self.blobs.sound(want.blob.digest)) or await self._laid_out(want.layer)

    async def _laid_out(self, layer: Layer) -> bool:
        assert layer.diff_id is not None
        return self.tars.has(layer.diff_id) and await self.here.usable(Layer(layer.diff_id))

    async def _request(self, ref: Ref, away: Sequence[_Wanted]) -> int:
        return await self.facts.record(
            MaterializationRequested(
                ref=ref.id, reason="export", layers=tuple(str(want.blob.digest) for want in away),
                bytes=sum(want.blob.size for want in away), snapshotter="",
            )
        )  # fmt: skip

    async def _convert(self, want: _Wanted, ref: Ref, cause: int) -> tuple[PackedBlob, int]:
        """The blob, and the bytes that came for it; `cause` is the request for those that must come, or 0."""
        async with self._slots, locked(self.locks, f"convert-{want.blob.digest}"):
            if (known := self._known(want)) is not None:
                return known, 0
            came = 0

            async def make() -> PackedBlob | None:
                nonlocal came
                done, packed = await self._of_what_is_here(want)
                if not done:
                    packed, more = await self._fetched(want, ref, cause or await self._request(ref, [want]))
                    came += more
                return packed

            made = await made_and_told(
                self.locks,
                make,
                lambda packed: packed is None or self.blobs.size(packed.blob.digest) is not None,
                lambda packed: self._tell(packed or want.unchanged, want, ref),
            )
            self._done[want.key] = made or want.unchanged
            return self._done[want.key], came

    async def _of_what_is_here(self, want: _Wanted) -> tuple[bool, PackedBlob | None]:
        blob, diff_id = want.blob, want.layer.diff_id
        assert diff_id is not None

        def stored() -> PackedBlob | None:
            with self.blobs.open(blob.digest) as file:
                return self._write(want, file, blob.media_type)

        def laid_out() -> PackedBlob | None:
            with self.tars.open(diff_id) as tar:
                return self._write(want, tar, None)

        if await in_thread(lambda: self.blobs.sound(blob.digest)):
            return True, await in_thread(stored)
        if await self._laid_out(want.layer):
            try:
                return True, await in_thread(laid_out)
            except VerificationError as error:
                await self.here.lose(Layer(diff_id), "layer", str(diff_id), error.what)
        return False, None

    async def _fetched(self, want: _Wanted, ref: Ref, cause: int) -> tuple[PackedBlob | None, int]:
        made: list[PackedBlob | None] = []

        def use(source: ByteSource) -> int:
            made.append(self._write(want, source, want.blob.media_type))
            return 0

        came = await self.fetcher.read(ref, want.layer, use, vertex=None, cause=cause)
        return made[-1], came

    def _write(self, want: _Wanted, source: ByteSource, media_type: str | None) -> PackedBlob | None:
        assert want.layer.diff_id is not None
        return self.converter.convert(
            source, media_type, want.layer.diff_id, want.compression, want.epoch, even_if_same=not want.as_is
        )

    async def _tell(self, packed: PackedBlob, want: _Wanted, ref: Ref) -> None:
        await self.facts.record(
            BlobCreated(
                ref=ref.id, diff_id=str(packed.diff_id), digest=str(packed.blob.digest), bytes=packed.blob.size,
                media_type=packed.blob.media_type, compressor=packed.compressor, epoch=want.epoch,
                compression=want.compression.written, source=str(want.blob.digest),
                annotations=dict(packed.blob.annotations) or None,
            )
        )  # fmt: skip
