"""Puts an engine together, of concrete classes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.build import Engine
from engine.events import LocalLost, RuntimeChosen
from engine.grants import Grants
from engine.images.read import ImageReader
from engine.images.resolver import ImageResolver, Resolver
from engine.ledger import Ledger
from engine.ops.executor import Executor, Outcome, Task
from engine.refs.materializer import Clock, Materializer
from engine.refs.places import Places, tried
from engine.refs.presence import HeadPresence
from engine.request import BuildRequest
from engine.solver.answers import Presence
from projections.cache_index import CacheIndex
from projections.history import History
from projections.names import Names
from storage.blobs import DirectoryBlobs, WithMore
from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.blobs import BlobStore
from storage.interfaces.layers import CheckedLayers, SnapshotStore
from storage.interfaces.packing import LayerTars
from storage.interfaces.registry import RegistrySource
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
from tools.roots import Root
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
    from storage.parts.trees import DirectoryParts


def engine(
    root: Root, build: str, runtime: str | None, ambient: Mapping[str, str], snapshotter: str, grants: Grants, *,
    offline: bool = False, more: BlobStore | None = None, attend: Attend | None = None, policies: Sequence[str] = (),
) -> tuple[Engine, AsyncExitStack]:  # fmt: skip
    """The engine of one build, and its connections, to be closed by the caller. `ambient`, `attend`: see LocalExecutor;
    `snapshotter`: how layers are laid out, one of SNAPSHOTTERS; `offline`: nobody is asked; `more`: blobs that lie
    elsewhere; `policies`: files of rules that hold beside this machine's. Raises InputError, DiskError."""
    parts = _Parts(root, build, runtime, ambient, snapshotter, grants, offline, more, attend, policies)
    return parts.engine(), parts.closing


@dataclass(eq=False)
class _Parts:
    """The parts of one build's engine, each made once, when it is first asked for: most builds do without most of them,
    and what they do not need is not imported."""

    root: Root
    build: str
    runtime: str | None
    ambient: Mapping[str, str]
    snapshotter: str
    grants: Grants
    offline: bool
    more: BlobStore | None
    attend: Attend | None
    policies: Sequence[str]
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    clock: Clock = field(default_factory=lambda: Clock(time.time_ns, time.monotonic))
    _importing: list[CacheImports] = field(default_factory=list)

    def engine(self) -> Engine:
        """All of it. Raises InputError, DiskError."""
        gate = self.gate  # reason for the first: what a policy refuses, nobody begins
        return Engine(
            ledger=self.ledger,
            blobs=self.blobs,
            resolver=self._resolver(),
            executor=_OnDemand(self._executor),
            materializer=self.materializer,
            cache=self.cache,
            presence=self._presence(),
            sources=lambda: self.sources,
            exporters=self._exporters,
            emulation=lambda: self.emulation,
            needs=self._needs,
            files=self._files,
            imports=self._imports,
            caching=self._caching,
            attester=self._attester,
            gate=gate,
        )

    # ---------------------------------------------------------------- what is here

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.root.log, self.build, sensitive_args(self.root.path))

    @cached_property
    def blobs(self) -> BlobStore:
        def lost(digest: str, detail: str) -> None:
            self.ledger.post(LocalLost(kind="blob", name=digest, problem="corrupt", detail=detail))

        own = DirectoryBlobs(self.root.path, owner=self.build, lost=lost)
        return own if self.more is None else WithMore(own, self.more)

    @cached_property
    def cache(self) -> LogAnswers:
        return LogAnswers(CacheIndex(self.root.views))

    @cached_property
    def names(self) -> Names:
        return Names(self.root.views)

    @cached_property
    def mounts(self) -> ErofsMounts:
        return ErofsMounts(self.root.tmp, self.build)

    @cached_property
    def layers(self) -> CheckedLayers:
        """With a way that is forced, layers laid out in the other count as not here."""
        where, limit = self.root.path / "layers", _layer_limit()
        images = ErofsLayers(where, self.root.tmp, self.build, self.mounts, limit=limit)
        directories = DirectoryLayers(where, self.root.tmp, self.build, limit=limit)
        if self.snapshotter == "directory":
            return directories
        if self.snapshotter == "erofs":
            if not self.mounts.works:
                raise InputError(
                    "--snapshotter erofs: this kernel mounts no EROFS images on the disk of the root",
                    where=str(self.root.path),
                    hint="--snapshotter directory works everywhere",
                )
            return images
        return ChosenLayers((images, directories), lambda: images if self.mounts.works else directories)

    @cached_property
    def snapshots(self) -> OverlaySnapshots:
        return OverlaySnapshots(
            self.root.path / "snapshots", self.root.tmp, self.build, mounts=self.mounts,
            as_images=lambda: self.layers.name == ErofsLayers.name,
        )  # fmt: skip

    @cached_property
    def tars(self) -> LayerTars:
        from storage.layers.erofs.tars import ImageTars

        return ImageTars(self.root.path / "layers")

    @cached_property
    def parts(self) -> DirectoryParts:
        from storage.parts.trees import DirectoryParts

        return DirectoryParts(self.root.tmp, self.build, limit=_layer_limit())

    # ---------------------------------------------------------------- what is elsewhere

    @cached_property
    def client(self) -> RegistryClient | NoRegistry:
        if self.offline:
            from engine.offline.nobody import NoRegistry

            return NoRegistry()
        client = registry_client(observe=lambda attempt: self.ledger.post(tried(attempt)))
        self.closing.push_async_callback(client.aclose)
        return client

    @cached_property
    def registry(self) -> RegistrySource:
        return WithLayouts(self.client)

    @cached_property
    def places(self) -> Places:
        """What this machine's mirrors are asked before. Raises InputError."""
        return Places() if self.offline else Places(known_registries().mirrors)

    @cached_property
    def gate(self) -> Gate | None:
        listing = WithLayoutListing(self.client) if isinstance(self.client, RegistryClient) else None
        images = ImageReader(self.registry, self.blobs, self.places)
        return make_gate(self.policies, self.root.log, self.ledger, images, listing)

    def _resolver(self) -> Resolver:
        bases = LogBases(self.root.log, self.root.views, self.blobs)
        resolver = partial(ImageResolver, self.registry, self.blobs, self.ledger, places=self.places, bases=bases)
        if not self.offline:
            return resolver(gate=self.gate)
        from engine.offline.names import OfflineResolver, RecalledNames

        return OfflineResolver(resolver(RecalledNames(self.names, self.registry), gate=self.gate))

    def _presence(self) -> Presence:
        if not self.offline:
            return HeadPresence(self.registry, self.ledger, self.places)
        from engine.offline.nobody import Believed

        return Believed()

    # ---------------------------------------------------------------- steps

    @cached_property
    def materializer(self) -> Materializer:
        return Materializer(
            self.layers, self.snapshots, self.blobs, DirectoryPartials(self.root.path / "partial"), self.registry,
            self.root.locks, self.ledger, self.clock, parallel=max(2, os.cpu_count() or 1), known=self.cache,
            places=self.places,
        )  # fmt: skip

    @cached_property
    def sources(self) -> SourceFetcher:
        from engine.ops.sources import SourceFetcher
        from storage.layers.compose import TreeWriter
        from storage.layers.trees import SnapshotTrees

        trees, write = SnapshotTrees(self.snapshots, self.root.tmp, self.build), partial(TreeWriter, empty=True)
        here = (trees, write, self.blobs, self.cache, self.root.locks, self.ledger, self.clock)
        if self.offline:
            from engine.offline.nobody import NoRepositories, NoWeb
            from engine.offline.sources import OfflineSources

            return OfflineSources(NoWeb(), NoRepositories(), *here, commits=self.names)
        from storage.git import GitClient
        from storage.web import WebClient

        web = WebClient(USER_AGENT, redirected=self.gate.redirected if self.gate else None)
        self.closing.push_async_callback(web.aclose)
        return SourceFetcher(web, GitClient(self.root.tmp, self.build, os.environ), *here)

    @cached_property
    def emulation(self) -> Emulation:
        from engine.ops.emulation import Emulation, run_in_empty_root
        from storage.scratch import Scratch

        return Emulation(partial(run_in_empty_root, Scratch(self.root.tmp, self.build).directory))

    def _executor(self) -> Executor:
        from engine.refs.asked import AskedPaths

        asked = AskedPaths(self.materializer, self.parts, self.registry, self.ledger, self.clock)
        return _executor(
            self.root, self.build, self.runtime, asked, self.snapshots, lambda: self.sources, self.ledger, self.clock,
            self.ambient, self.grants, self.attend,
        )  # fmt: skip

    def _needs(self) -> Needs:
        from engine.offline.needs import Needs

        return Needs(self.materializer, self.registry, self.cache, self.parts, lambda: self.sources, self.tars)

    def _files(self) -> LayerFiles:
        from engine.images.intake import LayerFiles
        from storage.layers.layerfile import BlobIntake

        return LayerFiles(BlobIntake(self.blobs, _layer_limit()), self.root.locks, self.ledger, self.clock)

    # ---------------------------------------------------------------- results

    @cached_property
    def reader(self) -> BlobReader:
        from engine.exporters.reading import BlobReader

        return BlobReader(self.blobs, self.registry, self.ledger, self.clock, self.places)

    @cached_property
    def mover(self) -> Mover:
        from engine.exporters.move import Mover
        from storage.layout.target import WithLayoutTargets

        return Mover(self.registry, WithLayoutTargets(self.client, self.build), self.reader, self.root.locks)

    @cached_property
    def transfer(self) -> Transfer:
        from engine.exporters.conversion import Conversion
        from engine.exporters.transfer import Transfer
        from storage.packing import BlobConverter, BlobPacker

        materializer, locks = self.materializer, self.root.locks
        conversion = Conversion(
            self.blobs, BlobConverter(self.blobs), self.tars, materializer, self.cache, locks, self.ledger, self.clock,
            materializer.kept,
        )  # fmt: skip
        packer = BlobPacker(self.snapshots, self.blobs)
        return Transfer(
            self.reader, packer, self.cache, locks, self.ledger, materializer.kept, conversion, repack=self.offline
        )

    def _exporters(self) -> Exporters:
        from engine.exporters.archive import ArchiveExporter
        from engine.exporters.exporters import Exporters
        from engine.exporters.layout import LayoutExporter
        from engine.exporters.local import LocalExporter
        from engine.exporters.push import Pusher
        from engine.exporters.tar import TarExporter
        from storage.archive import DestFile, TarArchive
        from storage.durable import FileSystemSync
        from storage.layers.compose import TreeWriter
        from storage.layout.target import enter
        from storage.tar.pack import write_tree

        materializer, ledger = self.materializer, self.ledger
        return Exporters(
            transfer=self.transfer,
            pusher=Pusher(self.registry, self.client, self.mover, ledger),
            archiver=ArchiveExporter(self.reader, ledger, TarArchive),
            layout=LayoutExporter(self.mover, ledger, enter),
            local=LocalExporter(
                materializer, self.snapshots, ledger, self.clock, lambda to, latest: TreeWriter(to, latest=latest),
                lambda to: FileSystemSync(to).watched(),
            ),
            tar=TarExporter(materializer, self.snapshots, ledger, DestFile, write_tree),
            clock=self.clock,
        )  # fmt: skip

    def _imports(self, request: BuildRequest, contexts: Mapping[Digest, Path]) -> Imports:
        from engine.buildkit.keys import BuildKitKeys
        from engine.cache.imports import CacheImports

        names, naming = BuildKitKeys(contexts), bool(request.cache_to)
        imports = CacheImports(
            request.cache_from, self.registry, self.blobs, self.ledger, names, naming, self.places
        )
        self._importing.append(imports)
        return imports

    def _caching(self, graph: Graph, solution: Solution, epoch: int | None) -> CacheExporter:
        from engine.cache.export import CacheExporter

        self.root.views.catch_up(self.root.log)
        past, named = Past(History(self.root.views), self.blobs, self._importing), self._importing[-1].named
        return CacheExporter(
            self.build, self.transfer, self.mover, self.mover.target, self.ledger, past, graph, solution, epoch, named
        )

    def _attester(self) -> Attester:
        from engine.attest.attester import Attester
        from tools import __version__
        from tools.auditing.attesting import LogFacts
        from tools.auditing.keys import find_signer

        facts, signer = LogFacts(self.root, self.blobs), find_signer(self.root.path)
        return Attester(self.ledger, self.blobs, self.materializer, self.parts.tree, facts, signer, __version__)


def _layer_limit() -> int:
    limit = os.environ.get("REFLEDGER_LAYER_LIMIT") or str(LAYER_LIMIT)
    if not limit.isdecimal() or len(limit) > 18:
        raise InputError(f"REFLEDGER_LAYER_LIMIT={limit[:40]}: not a number of bytes", hint="write digits only")
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
