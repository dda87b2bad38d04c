"""Layers that steps made, on their way out."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DiskError, MaterializationError
from engine.exporters.transfer import Transfer
from engine.refs.ref import Layer, Remote
from storage.digest import Digest, sha256
from storage.interfaces.images import Compression, Descriptor
from storage.interfaces.layers import Look
from storage.interfaces.log import EventLog
from storage.interfaces.packing import LayerConverter, LayerPacker, PackedBlob
from tests.engine.exporters.kit import NothingKnown, transfer_in
from tests.engine.refs.kit import Kit, kit
from tests.storage.layers.trees import file, make_tar


class _Raced:
    """Packs, and has a collection let go of the blob right after it was found to be here already."""

    def __init__(self, packer: LayerPacker, blobs: Path) -> None:
        self._packer, self._blobs, self.times = packer, blobs, 0

    def pack(self, snapshot: str, clamp_mtime: int | None, compression: Compression) -> PackedBlob:
        packed = self._packer.pack(snapshot, clamp_mtime, compression)
        self.times += 1
        if self.times == 1:
            (self._blobs / "sha256" / packed.blob.digest.hex).unlink()
        return packed


def test_I6_a_packed_blob_that_is_let_go_of_before_its_event_is_packed_again(tmp_path: Path) -> None:
    with kit(tmp_path) as parts:
        writer = parts.snapshots.compose("b1-step-1")
        writer.file(b"a", Look(0o644, 0, 0, 0), 1, [b"a"])
        writer.commit()
        transfer: Transfer = transfer_in(parts, NothingKnown())
        raced = transfer.packer = _Raced(transfer.packer, parts.root.path / "blobs")
        made = Remote("b1-step-1", (Layer(snapshot="b1-step-1", created=1),))
        (layer,) = asyncio.run(transfer.pack(made, None, None))
        events = list(parts.root.log.read(types=frozenset({"BlobCreated"})))
        assert raced.times == 2
        assert [event.data["digest"] for event in events] == [layer.blob and layer.blob.digest]
        assert layer.blob is not None
        assert parts.materializer.blobs.size(layer.blob.digest) == layer.blob.size


class _RacedConverter:
    """The same for conversions."""

    def __init__(self, converter: LayerConverter, blobs: Path) -> None:
        self._converter, self._blobs, self.times = converter, blobs, 0

    def convert(self, *given: Any, **options: Any) -> PackedBlob | None:
        packed = self._converter.convert(*given, **options)
        self.times += 1
        if self.times == 1 and packed is not None:
            (self._blobs / "sha256" / packed.blob.digest.hex).unlink()
        return packed


def test_I6_a_converted_blob_that_is_let_go_of_before_its_event_is_converted_again(tmp_path: Path) -> None:
    with kit(tmp_path) as parts:
        tar = make_tar(file("a", b"a"))
        blobs = parts.materializer.blobs
        digest = blobs.put(gzip.compress(tar, mtime=0))
        size = blobs.size(digest)
        assert size is not None
        layer = Layer(sha256(tar), Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, size))
        transfer: Transfer = transfer_in(parts, NothingKnown())
        raced = transfer.conversion.converter = _RacedConverter(
            transfer.conversion.converter, parts.root.path / "blobs"
        )
        asyncio.run(transfer.pack(Remote("a", (layer,)), None, None, Compression("zstd", force=True)))
        (event,) = parts.root.log.read(types=frozenset({"BlobCreated"}))
        assert raced.times == 2
        assert blobs.size(Digest(event.data["digest"])) == event.data["bytes"]


def test_I6_a_base_layer_made_anew_that_is_let_go_of_before_its_event_is_made_once_more(tmp_path: Path) -> None:
    with kit(tmp_path) as parts:
        if parts.materializer.layers.name != "erofs":
            pytest.skip("a blob is made of what is laid out of image files only")
        tar = make_tar(file("a", b"a"))
        blobs = parts.materializer.blobs
        digest = blobs.put(gzip.compress(tar, 1, mtime=0))
        layer = Layer(sha256(tar), Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, 1))
        transfer: Transfer = transfer_in(parts, NothingKnown(), repack=True)
        raced = transfer.conversion.converter = _RacedConverter(
            transfer.conversion.converter, parts.root.path / "blobs"
        )

        async def run() -> Layer:
            await parts.materializer.materialize(Remote("a", (layer,)), vertex=None, reason="run")
            (parts.root.path / "blobs" / "sha256" / digest.hex).unlink()
            (packed,) = await transfer.pack(Remote("a", (layer,)), None, None)
            return packed

        packed = asyncio.run(run())
        (event,) = parts.root.log.read(types=frozenset({"BlobCreated"}))
        assert packed.blob is not None
        assert raced.times == 2
        assert blobs.size(packed.blob.digest) == event.data["bytes"]


def test_I8_a_packed_blob_that_is_let_go_of_before_it_is_read_is_packed_again(tmp_path: Path) -> None:
    with kit(tmp_path) as parts:
        writer = parts.snapshots.compose("b1-step-1")
        writer.file(b"a", Look(0o644, 0, 0, 0), 1, [b"a"])
        writer.commit()
        transfer: Transfer = transfer_in(parts, NothingKnown())

        async def run() -> tuple[Layer, bytes]:
            made = Remote("b1-step-1", (Layer(snapshot="b1-step-1", created=1),))
            (layer,) = await transfer.pack(made, None, None)
            assert layer.blob is not None
            (parts.root.path / "blobs" / "sha256" / layer.blob.digest.hex).unlink()
            return layer, b"".join([chunk async for chunk in transfer.reader.read(layer, lambda _: None)])

        layer, data = asyncio.run(run())
        assert layer.blob is not None
        assert sha256(data) == layer.blob.digest


class _Known(NothingKnown):
    """A catalog that has one packed layer."""

    known: PackedBlob | None = None

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedBlob | None:
        return self.known


class _Packing:
    """Packs, counts, and fails with `error`, before which `lose` is called."""

    def __init__(
        self, packer: LayerPacker, error: Exception | None = None, lose: Callable[[], None] = lambda: None
    ) -> None:
        self._packer, self._error, self._lose, self.times = packer, error, lose, 0

    def pack(self, snapshot: str, clamp_mtime: int | None, compression: Compression) -> PackedBlob:
        self.times += 1
        self._lose()
        if self._error is not None:
            raise self._error
        return self._packer.pack(snapshot, clamp_mtime, compression)


STEP = Layer(snapshot="b1-step-1", created=1)
FULL = DiskError("packing: No space left on device")


def composed(parts: Kit) -> None:
    writer = parts.snapshots.compose("b1-step-1")
    writer.file(b"a", Look(0o644, 0, 0, 0), 1, [b"a"])
    writer.commit()


def test_what_was_packed_before_is_not_packed_again_and_is_had_without_its_snapshot(tmp_path: Path) -> None:
    catalog = _Known()
    with kit(tmp_path) as parts:
        composed(parts)
        transfer = transfer_in(parts, catalog)
        catalog.known = transfer.packer.pack("b1-step-1", None, Compression())
        packing = transfer.packer = _Packing(transfer.packer)
        parts.snapshots.discard("b1-step-1")
        (layer,) = asyncio.run(transfer.pack(Remote("r", (STEP,)), None, None))
        assert (layer.blob, packing.times) == (catalog.known.blob, 0)
        elsewhere = transfer_in(parts, NothingKnown())
        (same,) = asyncio.run(elsewhere.pack(Remote("r", (layer,)), None, None))
        assert same.blob == layer.blob, "it cannot be packed here: what another machine packed is what it is"


@pytest.mark.parametrize("lost", [False, True])
def test_a_full_disk_is_told_apart_from_a_snapshot_that_went(tmp_path: Path, lost: bool) -> None:
    with kit(tmp_path) as parts:
        composed(parts)
        transfer = transfer_in(parts, NothingKnown())
        gone = (lambda: parts.snapshots.discard("b1-step-1")) if lost else (lambda: None)
        transfer.packer = _Packing(transfer.packer, FULL, gone)
        with pytest.raises(MaterializationError if lost else DiskError):
            asyncio.run(transfer.pack(Remote("r", (STEP,)), None, None))


class _Logged(NothingKnown):
    """A catalog that knows what the log says by now."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def packed(self, name: str, epoch: int | None, compression: str) -> PackedBlob | None:
        for event in self._log.read(types=frozenset({"BlobCreated"})):
            if (event.data["snapshot"], event.data["compression"]) == (name, compression):
                digest, said = Digest(event.data["digest"]), event.data
                blob = Descriptor(said["media_type"], digest, said["bytes"])
                return PackedBlob(Digest(said["diff_id"]), blob, said["compressor"])
        return None


def test_exports_that_want_a_layer_at_the_same_time_have_it_packed_once(tmp_path: Path) -> None:
    with kit(tmp_path) as parts:
        composed(parts)
        transfer = transfer_in(parts, _Logged(parts.root.log))
        packing = transfer.packer = _Packing(transfer.packer)
        made = Remote("b1-step-1", (STEP,))

        async def both() -> list[tuple[Layer, ...]]:
            return await asyncio.gather(*(transfer.pack(made, None, None) for _ in range(2)))

        (first,), (second,) = asyncio.run(both())
        assert (packing.times, first.blob) == (1, second.blob)
        assert len(list(parts.root.log.read(types=frozenset({"BlobCreated"})))) == 1


def test_a_base_layer_that_nothing_is_left_of_stays_what_it_is(tmp_path: Path) -> None:
    with kit(tmp_path) as parts:
        blob = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", sha256(b"gone"), 4)
        layer = Layer(sha256(b"tar"), blob)
        assert asyncio.run(transfer_in(parts, NothingKnown(), repack=True).pack(Remote("a", (layer,)), None, None)) == (
            layer,
        )
        assert list(parts.root.log.read()) == []
