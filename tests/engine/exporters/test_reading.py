"""Layers on this disk, read to be handed on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from engine.clock import Clock
from engine.errors import DiskError, MaterializationError
from engine.exporters.reading import BlobReader, drain
from engine.ledger import Silent
from engine.offline.nobody import NoRegistry
from engine.refs.ref import Layer
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider


class Nobody:
    """There is no registry."""


def test_a_disk_that_refuses_to_be_read_is_told_and_is_no_bug(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path, owner="b1")
    digest = blobs.put(b"layer")
    reader = BlobReader(blobs, Nobody(), Silent(), Clock(time.time_ns, time.monotonic))  # type: ignore[arg-type]
    blobs.path(digest).unlink()
    blobs.path(digest).symlink_to("/proc/self/mem")  # whose first byte is an EIO
    with pytest.raises(DiskError, match="reading a blob: Input/output error"):
        asyncio.run(drain(reader.read(Layer(digest, Descriptor("m", digest, 5)), lambda _: None), lambda _: None))


class LetGo(DirectoryBlobs):
    """Somebody lets go of a blob right after it was looked at."""

    def sound(self, digest: Digest) -> bool:
        there = super().sound(digest)
        self.path(digest).unlink()
        return there


def test_a_blob_that_is_let_go_of_before_it_is_read_is_said_to_be_missing(tmp_path: Path) -> None:
    blobs = LetGo(tmp_path, owner="b1")
    digest = blobs.put(b"layer")
    reader = BlobReader(blobs, Nobody(), Silent(), Clock(time.time_ns, time.monotonic))  # type: ignore[arg-type]
    with pytest.raises(MaterializationError, match="cannot be had: no provider is known"):
        asyncio.run(drain(reader.read(Layer(digest, Descriptor("m", digest, 5)), lambda _: None), lambda _: None))


@pytest.mark.parametrize(("providers", "remade"), [((), True), ((Provider.of("h.example", "a"),), False)])
def test_only_what_nobody_else_has_is_made_again_before_it_is_read(
    tmp_path: Path, providers: tuple[Provider, ...], remade: bool
) -> None:
    blobs = DirectoryBlobs(tmp_path, owner="b1")
    asked: list[Descriptor] = []

    async def again(_layer: Layer, blob: Descriptor) -> bool:
        asked.append(blob)
        return blobs.put(b"layer") == blob.digest

    clock, blob = Clock(time.time_ns, time.monotonic), Descriptor("m", sha256(b"layer"), 5)
    reader = BlobReader(blobs, NoRegistry(), Silent(), clock, again=again)
    reading = drain(reader.read(Layer(sha256(b"tar"), blob, providers=providers), lambda _: None), lambda _: None)
    if remade:
        assert asyncio.run(reading) == 5
    else:
        with pytest.raises(MaterializationError, match="offline"):
            asyncio.run(reading)
    assert asked == ([blob] if remade else [])
