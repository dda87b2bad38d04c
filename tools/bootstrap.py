"""Puts an engine together, of concrete classes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.build import Engine
from engine.events import LocalLost, RuntimeChosen
from engine.grants import Grants
from engine.images.read import ImageReader
from engine.images.resolver import Bases, ImageResolver, Resolver
from engine.ledger import Facts, Ledger, Silent
from engine.ops.executor import Executor, Outcome, Task
from engine.refs.materializer import Clock, Materializer
from engine.refs.places import Places, tried
from engine.refs.presence import HeadPresence
from engine.refs.ref import Layer
from engine.request import BuildRequest
from engine.solver.answers import Presence
from projections.cache_index import CacheIndex
from projections.history import History
from projections.names import Names
from storage.blobs import DirectoryBlobs, WithMore
from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.images import Provider
from storage.interfaces.layers import CheckedLayers, SnapshotStore
from storage.interfaces.locks import Locks
from storage.interfaces.packing import LayerTars
from storage.interfaces.registry import RegistrySource, RegistryTarget
from storage.layers.directory import LAYER_LIMIT, ChosenLayers, DirectoryLayers
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.snapshots import OverlaySnapshots
from storage.layout.listing import WithLayoutListing
from storage.layout.source import WithLayouts
from storage.partial import DirectoryPartials
from storage.registry import RegistryClient
from tools.bases import LogBases
from tools.connecting import USER_AGENT, known_registries, registry_client
from tools.known import LogAnswers, Past
from tools.policing import make_gate
from tools.roots import Root, read_blobs, read_root, root_directory
from tools.sensitive import sensitive_args

if TYPE_CHECKING:
    from engine.attest.attester import Attester
    from engine.cache.export import CacheExporter
    from engine.cache.imports import CacheImports
    from engine.exporters.exporters import Exporters
    from engine.exporters.move import Mover
    from engine.exporters.reading import BlobReader
    from engine.exporters.transfer import Transfer
    from engine.graph import Graph
    from engine.images.intake import LayerFiles
    from engine.offline.needs import Needs
    from engine.offline.nobody import NoRegistry
    from engine.ops.attend import Attend
    from engine.ops.emulation import Emulation
    from engine.ops.sources import SourceFetcher
    from engine.policy.gate import Gate
    from engine.refs.asked import AskedPaths
    from engine.solver.answers import Imports, Solution


def engine(
    root: Root, build: str, runtime: str | None, ambient: Mapping[str, str], snapshotter: str, grants: Grants, *,
    offline: bool = False, more: BlobStore | None = None, attend: Attend | None = None, policies: Sequence[str] = (),
) -> tuple[Engine, AsyncExitStack]:  # fmt: skip
    """The engine of one build, and its connections, to be closed by the caller. `ambient`, `attend`: see LocalExecutor;
    `snapshotter`: how layers are laid out, one of SNAPSHOTTERS; `offline`: nobody is asked; `more`: blobs that lie
    elsewhere; `policies`: files of rules that hold beside this machine's. Raises InputError, DiskError."""
    closing = AsyncExitStack()
    log, locks, tmp = root.log, root.locks, root.tmp
    clock = Clock(time.time_ns, time.monotonic)
    ledger = Ledger(log, build, sensitive_args(root.path))
    own = DirectoryBlobs(
        root.path,
        owner=build,
        lost=lambda digest, detail: ledger.post(LocalLost(kind="blob", name=digest, problem="corrupt", detail=detail)),
    )
    blobs: BlobStore = own if more is None else WithMore(own, more)
    mounts = ErofsMounts(tmp, build)
    layers = _layers(root, build, mounts, snapshotter)
    snapshots = OverlaySnapshots(
        root.path / "snapshots", tmp, build, mounts=mounts, as_images=lambda: layers.name == ErofsLayers.name
    )
    client, tars = _client(closing, ledger, offline=offline), _tars(root)
    registry, places = WithLayouts(client), Places() if offline else _places()
    cache, names = LogAnswers(CacheIndex(root.views)), Names(root.views)
    listing = WithLayoutListing(client) if isinstance(client, RegistryClient) else None
    gate = make_gate(policies, log, ledger, ImageReader(registry, blobs, places), listing)
    partials = DirectoryPartials(root.path / "partial")
    materializer = Materializer(
        layers, snapshots, blobs, partials, registry, locks, ledger, clock, parallel=max(2, os.cpu_count() or 1),
        known=cache, places=places,
    )  # fmt: skip

    def asked() -> AskedPaths:
        from engine.refs.asked import AskedPaths
        from storage.parts.trees import DirectoryParts

        return AskedPaths(materializer, DirectoryParts(tmp, build), registry, ledger, clock)

    @lru_cache(maxsize=1)
    def reader() -> BlobReader:
        from engine.exporters.reading import BlobReader

        return BlobReader(blobs, registry, ledger, clock, places)

    @lru_cache(maxsize=1)
    def movers() -> Mover:
        from engine.exporters.move import Mover
        from storage.layout.target import WithLayoutTargets

        return Mover(registry, WithLayoutTargets(client, build), reader(), locks)

    @lru_cache(maxsize=1)
    def transfer() -> Transfer:
        return _transfer(reader(), materializer, cache, ledger, tars, offline=offline)

    @lru_cache(maxsize=1)
    def sources() -> SourceFetcher:
        from engine.ops.sources import SourceFetcher
        from storage.git import GitClient
        from storage.layers.compose import TreeWriter
        from storage.layers.trees import SnapshotTrees

        trees, write = SnapshotTrees(snapshots, tmp, build), partial(TreeWriter, empty=True)
        if offline:
            from engine.offline.nobody import NoRepositories, NoWeb
            from engine.offline.sources import OfflineSources

            return OfflineSources(
                NoWeb(), NoRepositories(), trees, write, blobs, cache, locks, ledger, clock, commits=names
            )
        from storage.web import WebClient

        web = WebClient(USER_AGENT, redirected=gate.redirected if gate else None)
        closing.push_async_callback(web.aclose)
        return SourceFetcher(
            web, GitClient(tmp, build, os.environ), trees, write, blobs, cache, locks, ledger, clock
        )

    @lru_cache(maxsize=1)
    def emulation() -> Emulation:
        from engine.ops.emulation import Emulation

        return Emulation()

    importing: list[CacheImports] = []

    def imports(request: BuildRequest, contexts: Mapping[Digest, Path]) -> Imports:
        from engine.buildkit.keys import BuildKitKeys
        from engine.cache.imports import CacheImports

        names, naming = BuildKitKeys(contexts), bool(request.cache_to)
        importing.append(CacheImports(request.cache_from, registry, blobs, ledger, names, naming, places))
        return importing[-1]

    def caching(graph: Graph, solution: Solution, epoch: int | None) -> CacheExporter:
        from engine.cache.export import CacheExporter

        root.views.catch_up(root.log)
        mover = movers()
        past, named = Past(History(root.views), blobs, importing), importing[-1].named
        return CacheExporter(build, transfer(), mover, mover.target, ledger, past, graph, solution, epoch, named)

    made = Engine(
        ledger=ledger,
        blobs=blobs,
        resolver=_resolver(
            registry, blobs, ledger, names, places, LogBases(log, root.views, blobs), offline=offline, gate=gate
        ),
        executor=_OnDemand(
            lambda: _executor(root, build, runtime, asked(), snapshots, sources, ledger, clock, ambient, grants, attend)
        ),
        materializer=materializer,
        cache=cache,
        presence=_presence(registry, ledger, places, offline=offline),
        sources=sources,
        exporters=lambda: _exporters(transfer(), movers(), client, materializer, snapshots, ledger, clock),
        emulation=emulation,
        needs=lambda: _needs(root, build, materializer, registry, cache, sources, tars),
        files=lambda: _files(blobs, locks, ledger, clock),
        imports=imports,
        caching=caching,
        attester=lambda: _attester(root, build, ledger, blobs, materializer),
        gate=gate,
    )
    return made, closing


def _places() -> Places:
    """What this machine's mirrors are asked before. Raises InputError."""
    return Places(known_registries().mirrors)


def _exporters(
    transfer: Transfer, mover: Mover, target: RegistryTarget, materializer: Materializer, snapshots: SnapshotStore,
    ledger: Ledger, clock: Clock,
) -> Exporters:  # fmt: skip
    from engine.exporters.archive import ArchiveExporter
    from engine.exporters.exporters import Exporters
    from engine.exporters.layout import LayoutExporter
    from engine.exporters.local import LocalExporter
    from engine.exporters.push import Pusher
    from engine.exporters.tar import TarExporter
    from storage.archive import DestFile, TarArchive
    from storage.durable import flush_file_system
    from storage.layers.compose import TreeWriter
    from storage.layout.target import enter
    from storage.tar.pack import write_tree

    return Exporters(
        transfer=transfer,
        pusher=Pusher(mover.source, target, mover, ledger),
        archiver=ArchiveExporter(mover.reader, ledger, TarArchive),
        layout=LayoutExporter(mover, ledger, enter),
        local=LocalExporter(
            materializer, snapshots, ledger, clock, lambda to, latest: TreeWriter(to, latest=latest), flush_file_system
        ),
        tar=TarExporter(materializer, snapshots, ledger, DestFile, write_tree),
        clock=clock,
    )


def _attester(root: Root, build: str, ledger: Ledger, blobs: BlobStore, materializer: Materializer) -> Attester:
    from engine.attest.attester import Attester
    from storage.parts.trees import DirectoryParts
    from tools import __version__
    from tools.auditing.attesting import LogFacts
    from tools.auditing.keys import find_signer

    tree = DirectoryParts(root.tmp, build).tree
    return Attester(
        ledger, blobs, materializer, tree, LogFacts(root, blobs), find_signer(root.path), __version__
    )


def _client(closing: AsyncExitStack, facts: Facts, *, offline: bool) -> RegistryClient | NoRegistry:
    if offline:
        from engine.offline.nobody import NoRegistry

        return NoRegistry()
    client = registry_client(observe=lambda attempt: facts.post(tried(attempt)))
    closing.push_async_callback(client.aclose)
    return client


def _transfer(
    reader: BlobReader, materializer: Materializer, cache: LogAnswers, ledger: Ledger, tars: LayerTars, *, offline: bool
) -> Transfer:
    from engine.exporters.conversion import Conversion
    from engine.exporters.transfer import Transfer
    from storage.packing import BlobConverter, BlobPacker

    blobs, locks, clock, kept = materializer.blobs, materializer.locks, materializer.clock, materializer.kept
    conversion = Conversion(blobs, BlobConverter(blobs), tars, materializer, cache, locks, ledger, clock, kept)
    packer = BlobPacker(materializer.snapshots, blobs)
    return Transfer(reader, packer, cache, locks, ledger, kept, conversion, repack=offline)


def _tars(root: Root) -> LayerTars:
    from storage.layers.erofs.tars import ImageTars

    return ImageTars(root.path / "layers")


def _needs(
    root: Root, build: str, materializer: Materializer, registry: RegistrySource, cache: LogAnswers,
    sources: Callable[[], SourceFetcher], tars: LayerTars,
) -> Needs:  # fmt: skip
    from engine.offline.needs import Needs
    from storage.parts.trees import DirectoryParts

    return Needs(materializer, registry, cache, DirectoryParts(root.tmp, build), sources, tars)


def _presence(registry: RegistrySource, facts: Facts, places: Places, *, offline: bool) -> Presence:
    if not offline:
        return HeadPresence(registry, facts, places)
    from engine.offline.nobody import Believed

    return Believed()


def _resolver(
    registry: RegistrySource, blobs: BlobStore, facts: Facts, names: Names, places: Places, bases: Bases | None = None,
    *, offline: bool, gate: Gate | None = None,
) -> Resolver:  # fmt: skip
    if not offline:
        return ImageResolver(registry, blobs, facts, places=places, bases=bases, gate=gate)
    from engine.offline.names import OfflineResolver, RecalledNames

    return OfflineResolver(ImageResolver(registry, blobs, facts, RecalledNames(names, registry), places, bases, gate))


@asynccontextmanager
async def passing_resolver(*, offline: bool) -> AsyncIterator[Resolver]:
    """A resolver for those who only look: it logs nothing and leaves nothing in the root. `offline`: it knows what the
    root knows. Raises InputError."""
    if offline:
        from engine.offline.nobody import NoRegistry

        with read_root(path := root_directory()) as (_, views):
            yield _resolver(NoRegistry(), read_blobs(path), Silent(), Names(views), Places(), offline=True)
        return

    from storage.temporary import TemporaryPlace

    with TemporaryPlace() as directory:
        registry = registry_client()
        try:
            yield ImageResolver(
                registry, DirectoryBlobs(directory, owner="check"), Silent(), places=_places()
            )
        finally:
            await registry.aclose()


def _layers(root: Root, build: str, mounts: ErofsMounts, snapshotter: str) -> CheckedLayers:
    """With a way that is forced, layers laid out in the other count as not here."""
    limit = _layer_limit()
    images = ErofsLayers(root.path / "layers", root.tmp, build, mounts, limit=limit)
    directories = DirectoryLayers(root.path / "layers", root.tmp, build, limit=limit)
    if snapshotter == "directory":
        return directories
    if snapshotter == "erofs":
        if not mounts.works:
            raise InputError(
                "--snapshotter erofs: this kernel mounts no EROFS images on the disk of the root",
                where=str(root.path),
                hint="--snapshotter directory works everywhere",
            )
        return images
    return ChosenLayers((images, directories), lambda: images if mounts.works else directories)


def _files(blobs: BlobStore, locks: Locks, facts: Facts, clock: Clock) -> LayerFiles:
    from engine.images.intake import LayerFiles
    from storage.layers.layerfile import BlobIntake

    return LayerFiles(BlobIntake(blobs, _layer_limit()), locks, facts, clock)


def _layer_limit() -> int:
    limit = os.environ.get("REFLEDGER_LAYER_LIMIT") or str(LAYER_LIMIT)
    if not limit.isdecimal():
        raise InputError(f"REFLEDGER_LAYER_LIMIT={limit}: not a number of bytes", hint="write digits only")
    return int(limit)


@dataclass(slots=True)
class _OnDemand:
    """An executor that is made when the first step runs: a build that is all cached does not load what steps need."""

    make: Callable[[], Executor]
    made: Executor | None = None

    async def content(self, task: Task) -> Digest | None:
        """See Executor.content."""
        return await self._executor().content(task)

    async def execute(self, task: Task) -> Outcome:
        """See Executor.execute."""
        return await self._executor().execute(task)

    def _executor(self) -> Executor:
        if self.made is None:
            self.made = self.make()
        return self.made


def _executor(
    root: Root,
    build: str,
    runtime: str | None,
    asked: AskedPaths,
    snapshots: SnapshotStore,
    sources: Callable[[], SourceFetcher],
    ledger: Ledger,
    clock: Clock,
    ambient: Mapping[str, str],
    grants: Grants,
    attend: Attend | None,
) -> Executor:
    from engine.ops.local import LocalExecutor
    from engine.ops.run_mounts import RunMounts
    from engine.ops.sandbox import OciSandbox, Sandbox, choose_runtime
    from storage.cachemounts import DirectoryCacheMounts, MemoryPlaces
    from storage.layers.compose import TreeWriter

    async def make_sandbox() -> tuple[Sandbox, RuntimeChosen]:
        choice = await choose_runtime(runtime, root.run, build)
        chosen = RuntimeChosen(runtime=choice.runtime, version=choice.version, rejected=dict(choice.rejected))
        return OciSandbox(choice.runtime, root.run, build), chosen

    caches = DirectoryCacheMounts(root.path / "cache", root.tmp, build, root.locks)
    mounts = RunMounts(
        snapshots, caches, MemoryPlaces(root.tmp, build), grants, ledger, clock, partial(TreeWriter, empty=True)
    )
    return LocalExecutor(
        asked.materializer, asked, snapshots, sources, make_sandbox, ledger, clock, mounts, ambient, attend
    )


def fetch_blob(layer: Layer, write: Callable[[bytes], object]) -> None:
    """Bring the blob of `layer` from the first provider that gives it, uncompressed and verified. Blocking. Raises
    RegistryError, VerificationError."""
    import asyncio
    import tempfile

    from storage.decompression import decompress

    blob = layer.blob
    assert blob is not None
    with tempfile.TemporaryFile() as file:

        async def fetch() -> None:
            client = registry_client()
            source = WithLayouts(client)

            async def copy(place: Provider) -> None:
                file.seek(0)
                file.truncate()
                async with source.blob(place, blob) as stream:
                    async for chunk in stream:
                        file.write(chunk)

            try:
                await _places().first(layer.providers, blob.digest, copy)
            finally:
                await client.aclose()

        asyncio.run(fetch())
        file.seek(0)
        source = decompress(file, blob.media_type)
        while data := source.read(1 << 20):
            write(data)


