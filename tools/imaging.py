"""Puts together what work on images in registries needs: no engine, no layers, no mounts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.clock import Clock
from engine.events import ExportDelayed
from engine.exporters.move import Mover
from engine.exporters.reading import BlobReader
from engine.images.place import Placer
from engine.images.read import ImageReader
from engine.ledger import Facts, Ledger, Silent
from engine.refs.kept import Known, NothingKnown
from engine.refs.places import Places, tried
from projections.cache_index import CacheIndex
from storage.blobs import DirectoryBlobs
from storage.interfaces.blobs import BlobStore
from storage.interfaces.locks import Locks
from storage.interfaces.registry import RegistryListing
from storage.layout.listing import WithLayoutListing
from storage.layout.source import WithLayouts
from storage.layout.target import WithLayoutTargets
from storage.locks import FileLocks
from storage.temporary import TemporaryPlace
from storage.uploads import UploadSessions
from tools.connecting import known_registries, registry_client
from tools.known import LogAnswers
from tools.policing import make_gate
from tools.roots import Root
from tools.sensitive import sensitive_args

if TYPE_CHECKING:
    from engine.policy.gate import Gate


@dataclass(frozen=True, slots=True)
class Imaging:
    """The collaborators of one operation on images. `facts` go into the log; `placer` reads, moves and puts; `gate`
    keeps it to its policies, if there are any."""

    facts: Facts
    images: ImageReader
    placer: Placer
    listing: RegistryListing
    gate: Gate | None = None


@asynccontextmanager
async def imaging(root: Root, build: str, policies: Sequence[str] = ()) -> AsyncIterator[tuple[Ledger, Imaging]]:
    """For a build that is recorded in `root`, with its ledger; `policies`: files of rules that hold beside this
    machine's. Raises InputError, DiskError."""
    ledger = Ledger(root.log, build, sensitive_args(root.path))
    blobs = DirectoryBlobs(root.path, owner=build)
    uploads = UploadSessions(root.path / "uploads")
    uploads.sweep()
    async with _imaging(ledger, blobs, LogAnswers(CacheIndex(root.views)), root.locks, build, uploads) as made:
        gate = make_gate(policies, root.log, ledger, made.images, made.listing)
        yield ledger, replace(made, gate=gate)


@asynccontextmanager
async def passing_imaging() -> AsyncIterator[Imaging]:
    """For those who only look: nothing is recorded, nothing stays."""
    with TemporaryPlace() as path:
        blobs, locks = DirectoryBlobs(path, owner="look"), FileLocks(path / "locks")
        async with _imaging(Silent(), blobs, NothingKnown(), locks, "look") as made:
            yield made


@asynccontextmanager
async def _imaging(
    facts: Facts, blobs: BlobStore, known: Known, locks: Locks, owner: str, uploads: UploadSessions | None = None
) -> AsyncIterator[Imaging]:
    client = registry_client(observe=lambda attempt: facts.post(tried(attempt)), uploads=uploads)
    try:
        registry = WithLayouts(client)
        clock = Clock(time.time_ns, time.monotonic)
        places = Places(known_registries().mirrors)
        reader = BlobReader(blobs, registry, facts, clock, places)
        images = ImageReader(registry, blobs, places)
        target = WithLayoutTargets(client, owner, lambda file: facts.post(ExportDelayed(file=file)))
        placer = Placer(images, Mover(registry, target, reader, locks), known)
        yield Imaging(facts, images, placer, WithLayoutListing(client))
    finally:
        await client.aclose()
