"""Puts together what work on images in registries needs: no engine, no layers, no mounts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.exporters.move import Mover
from engine.exporters.transfer import Catalog, Transfer
from engine.images.place import Placer
from engine.images.read import ImageReader
from engine.ledger import Facts, Ledger, Silent
from engine.refs.materializer import Clock
from engine.refs.places import Places, tried
from engine.refs.ref import Layer
from projections.cache_index import CacheIndex
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.interfaces import BlobStore, Locks, PackedBlob, Provider, RegistryListing
from storage.layout import WithLayouts
from storage.layout_listing import WithLayoutListing
from storage.layout_target import WithLayoutTargets
from storage.locks import FileLocks
from storage.uploads import UploadSessions
from tools.connecting import known_registries, registry_client
from tools.known import LogAnswers
from tools.roots import Root


@dataclass(frozen=True, slots=True)
class Imaging:
    """The collaborators of one operation on images. `facts` go into the log; `placer` reads, moves and puts."""

    facts: Facts
    images: ImageReader
    placer: Placer
    listing: RegistryListing


@asynccontextmanager
async def imaging(root: Root, build: str) -> AsyncIterator[tuple[Ledger, Imaging]]:
    """For a build that is recorded in `root`, with its ledger."""
    ledger = Ledger(root.log, build)
    blobs = DirectoryBlobs(root.path, owner=build)
    uploads = UploadSessions(root.path / "uploads")
    uploads.sweep()
    async with _imaging(ledger, blobs, LogAnswers(CacheIndex(root.views)), root.locks, build, uploads) as made:
        yield ledger, made


@asynccontextmanager
async def passing_imaging() -> AsyncIterator[Imaging]:
    """For those who only look: nothing is recorded, nothing stays."""
    with tempfile.TemporaryDirectory(prefix="refledger-") as name:
        path = Path(name)
        blobs, locks = DirectoryBlobs(path, owner="look"), FileLocks(path / "locks")
        async with _imaging(Silent(), blobs, _NothingKnown(), locks, "look") as made:
            yield made


@asynccontextmanager
async def _imaging(
    facts: Facts, blobs: BlobStore, catalog: Catalog, locks: Locks, owner: str, uploads: UploadSessions | None = None
) -> AsyncIterator[Imaging]:
    client = registry_client(observe=lambda attempt: facts.post(tried(attempt)), uploads=uploads)
    try:
        registry, nothing = WithLayouts(client), _NoSnapshots()
        clock = Clock(time.time_ns, time.monotonic)
        places = Places(known_registries().mirrors)
        transfer = Transfer(blobs, registry, nothing, catalog, locks, facts, clock, nothing, places=places)
        images = ImageReader(registry, blobs, places)
        placer = Placer(images, Mover(registry, WithLayoutTargets(client, owner), transfer))
        yield Imaging(facts, images, placer, WithLayoutListing(client))
    finally:
        await client.aclose()


class _NoSnapshots:
    """Here and LayerPacker where no step made a layer: blobs are all there is."""

    async def usable(self, _layer: Layer, _vertex: str | None = None) -> bool:
        """See Here.usable."""
        return False

    async def lose(
        self, layer: Layer, kind: str, name: str, problem: str = "", *, vertex: str | None = None
    ) -> None:
        """See Here.lose."""

    def miss(self, layer: Layer) -> None:
        """See Here.miss."""

    def pack(self, snapshot: str, _clamp_mtime: int | None) -> PackedBlob:
        """See LayerPacker.pack."""
        raise AssertionError(f"no step of this operation made a layer: {snapshot}")


class _NothingKnown:
    """A Catalog without a log."""

    def packed(self, _snapshot: str, _epoch: int | None) -> PackedBlob | None:
        """See Catalog.packed."""
        return None

    def providers(self, _digest: Digest) -> tuple[Provider, ...]:
        """See Catalog.providers."""
        return ()

    def let_go(self, _name: str) -> bool:
        """See Catalog.let_go."""
        return False
