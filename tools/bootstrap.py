"""The only place that names concrete classes: opens a root and puts an engine together."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.build import BuildRequest, Engine
from engine.events import BuildInterrupted, Fact, LocalLost, RuntimeChosen, to_data
from engine.executor import Executor, Outcome, Task
from engine.grants import Grants
from engine.ledger import Facts, Ledger
from engine.refs.materializer import Clock, Materializer
from engine.refs.presence import HeadPresence
from engine.refs.ref import Layer, Remote, layers_from_json
from engine.resolver import ImageResolver, Resolver
from engine.solver.answers import Found, Presence
from projections.cache_index import CacheIndex, Page
from projections.history import History
from projections.moments import Moments
from projections.names import Names
from projections.runner import Views
from projections.standard import STANDARD, TRAVELLED
from storage.blobs import DirectoryBlobs, WithMore
from storage.credentials import DockerCredentials
from storage.digest import Digest, parse_json
from storage.erofs.layers import ErofsLayers
from storage.erofs.mount import ErofsMounts
from storage.errors import DiskError, InputError, RefledgerError, RegistryError, VerificationError
from storage.eventlog import SqliteEventLog, follow
from storage.interfaces import (
    BlobStore,
    CheckedLayers,
    Descriptor,
    Event,
    EventLog,
    LayerRepacker,
    NewEvent,
    PackedBlob,
    Provider,
    RegistrySource,
    SecretPlaces,
    SnapshotStore,
)
from storage.layers import LAYER_LIMIT, ChosenLayers, DirectoryLayers
from storage.layout import WithLayouts
from storage.locks import FileLocks
from storage.overlay import private_mounts
from storage.partial import KEPT_SECONDS, DirectoryPartials
from storage.registry import RegistryClient
from storage.snapshots import OverlaySnapshots
from storage.sweep import sweep
from tools import __version__

if TYPE_CHECKING:
    from engine.cache.export import CacheExporter
    from engine.cache.imports import CacheImports
    from engine.exporters.exporters import Exporters
    from engine.exporters.move import Mover
    from engine.graph import Graph
    from engine.offline.needs import Needs
    from engine.offline.nobody import NoRegistry
    from engine.ops.attend import Attend
    from engine.ops.emulation import Emulation
    from engine.ops.sources import SourceFetcher
    from engine.refs.asked import AskedPaths
    from engine.solver.answers import Imports, Solution
    from engine.solver.cache import Component
    from storage.tars import StoredTars

FORMAT = "1"
"""The layout of a root (DESIGN section 5); a root of another format is refused, not guessed at."""


def root_directory() -> Path:
    """`$REFLEDGER_ROOT`, default `~/.local/share/refledger`."""
    return Path(os.environ.get("REFLEDGER_ROOT") or Path.home() / ".local/share/refledger").absolute()


@dataclass(frozen=True, slots=True)
class Root:
    """An open root: `log` to append to, `views` caught up when opened, `locks` of all its processes."""

    path: Path
    log: EventLog
    views: Views
    locks: FileLocks

    @property
    def tmp(self) -> Path:
        """Where unfinished things lie, named after the build that owns them."""
        return self.path / "tmp"

    @property
    def run(self) -> Path:
        """Where the OCI runtime keeps bundles and state of running containers."""
        return self.path / "run"


@contextmanager
def open_root(path: Path, *, folded: bool = True) -> Iterator[Root]:
    """Open a root for building, making it when it is not there; `folded`: with its views caught up.
    Raises DiskError, LogError, InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("layers", "snapshots", "locks", "tmp", "run"):
            (path / name).mkdir(exist_ok=True, mode=0o700)
        _check_format(path)
    except OSError as error:
        raise DiskError.of(error, "opening the root") from error
    with ExitStack() as stack:
        log = SqliteEventLog(path / "log.db")
        stack.callback(log.close)
        views = stack.enter_context(Views(path / "views.db", STANDARD))
        if folded:
            views.catch_up(log)
        stack.callback(_leave, path, log, views)
        yield Root(path, log, views, FileLocks(path / "locks"))


def _leave(path: Path, log: EventLog, views: Views) -> None:
    """Fold what was appended, so that whoever reads next need not."""
    with suppress(RefledgerError):  # reason: views may always be behind, or gone; what was to be done is done
        views.catch_up(log)
        past(path).extend(log)


@contextmanager
def read_root(path: Path) -> Iterator[tuple[EventLog, Views]]:
    """Open a root for reading only: nothing below it changes, also when it is on a read-only disk (I13). Of a damaged
    log what lies before the damage can be read; then LogDamaged is raised at the end. Raises LogError, InputError."""
    if not (path / "log.db").exists():
        raise InputError(
            "nothing was built here yet", where=str(path), hint="run refledger build, or set REFLEDGER_ROOT"
        )
    log = SqliteEventLog(path / "log.db", read_only=True)
    try:
        if not log.last_seq() and log.damage:
            raise log.damage
        log.end_before_damage()
        with Views.read_only(path / "views.db", log, STANDARD) as views:
            yield log, views
        if log.damage:
            raise log.damage
    finally:
        log.close()


def past(path: Path) -> Moments:
    """The views of a root as they were."""
    return Moments(path / "moments", TRAVELLED)


def follow_log(log: EventLog, after: int, types: frozenset[str] | None) -> Iterator[Event]:
    """Events later than `after`, for ever."""
    return follow(log, after, lambda: False, types=types)


def read_blobs(path: Path) -> DirectoryBlobs:
    """The blobs of a root, for reading."""
    return DirectoryBlobs(path, owner="reader")


def scratch_blobs(path: Path, owner: str) -> BlobStore:
    """A store of its own in the directory `path`."""
    return DirectoryBlobs(path, owner=owner)


def stored_tars(path: Path, scratch: Path) -> StoredTars:
    """The layers of a root as tars, for reading; `scratch` is a directory elsewhere."""
    from storage.tars import StoredTars

    snapshots = OverlaySnapshots(path / "snapshots", scratch, "reader")
    return StoredTars(path / "layers", path / "snapshots", snapshots, read_blobs(path))


def known_providers(views: Views, digest: Digest) -> tuple[Provider, ...]:
    """Everyone known to have blob `digest`."""
    return _Cache(CacheIndex(views)).providers(digest)


def fetch_blob(layer: Layer, write: Callable[[bytes], object]) -> None:
    """Bring the blob of `layer` from the first provider that gives it, uncompressed and verified. Blocking. Raises
    RegistryError, VerificationError."""
    import asyncio
    import tempfile

    from storage.compression import decompress

    blob = layer.blob
    assert blob is not None
    with tempfile.TemporaryFile() as file:

        async def fetch() -> None:
            client = RegistryClient(DockerCredentials(), user_agent=f"refledger/{__version__}")
            failure: RefledgerError | None = None
            try:
                for provider in layer.providers:
                    file.seek(0)
                    file.truncate()
                    try:
                        async with WithLayouts(client).blob(provider, blob) as stream:
                            async for chunk in stream:
                                file.write(chunk)
                    except (RegistryError, VerificationError) as error:
                        failure = error
                    else:
                        return
            finally:
                await client.aclose()
            raise failure or RegistryError(f"nobody is known to have {blob.digest}", kind="missing")

        asyncio.run(fetch())
        file.seek(0)
        source = decompress(file, blob.media_type)
        while data := source.read(1 << 20):
            write(data)


def stored_text(path: Path, digest: str) -> str:
    """A stored definition. Raises FileNotFoundError, VerificationError, InputError."""
    return read_blobs(path).get(Digest(digest)).decode("utf-8", "replace")


def _check_format(path: Path) -> None:
    file = path / "format"
    if not file.exists():
        file.write_text(FORMAT + "\n")
    elif (found := file.read_text(errors="replace").strip()) != FORMAT:
        raise InputError(
            f"this root has format {found[:20]!r}, this Refledger knows {FORMAT}",
            where=str(path),
            hint="use the Refledger that made it, or another REFLEDGER_ROOT",
        )


# ---------------------------------------------------------------- recovery


def new_build_id() -> str:
    """Twelve hexadecimal digits."""
    return secrets.token_hex(6)


@contextmanager
def owning(root: Root, build: str) -> Iterator[None]:
    """Hold the lock that says `build` is alive: its death, however sudden, lets go of it."""
    lock = root.locks.try_acquire(_owner_lock(build))
    assert lock is not None, "build ids are unique"
    with lock:
        yield


def recover(root: Root, found_by: str) -> list[str]:
    """Say in the log which builds died without a word, and remove what they left; returns their ids."""
    dead = [
        record
        for record in History(root.views).list(status="running")
        if not root.locks.held(_owner_lock(record.id))
    ]

    def is_alive(owner: str) -> bool:
        return owner == found_by or root.locks.held(_owner_lock(owner))

    removed = sweep(root.tmp, is_alive)
    DirectoryPartials(root.path / "partial").sweep(time.time() - KEPT_SECONDS, root.locks)
    if any(root.run.glob("*/*")):
        from engine.ops.leftovers import sweep_containers

        removed += sweep_containers(root.run, is_alive)
    for record in dead:
        fact = BuildInterrupted(
            error="its process ended without a word (killed, or the machine went down)",
            found_by=found_by,
            removed=tuple(item for item in removed if record.id in item)[:50],
        )
        root.log.append(NewEvent(f"build/{record.id}", "BuildInterrupted", to_data(fact), record.id))
    return [record.id for record in dead]


def is_running(path: Path, build: str) -> bool:
    """Is a process building `build` in the root at `path`?"""
    try:
        return FileLocks(path / "locks").held(_owner_lock(build))
    except DiskError:
        return False  # reason: nobody builds in a root that cannot be written to


def _owner_lock(build: str) -> str:
    return f"build-{build}"


# ---------------------------------------------------------------- the engine


@dataclass(frozen=True, slots=True)
class _Cache:
    """What the solver and the exporters ask of the log, answered by the cache index."""

    index: CacheIndex
    _providers: dict[Digest, tuple[Provider, ...]] = field(default_factory=dict)

    def lookup(self, key: Digest) -> Found | None:
        """See CacheLookup."""
        entry = self.index.lookup(str(key))
        if entry is None:
            return None
        layers = tuple(map(self._known, layers_from_json(entry.layers)))
        return Found(Remote(entry.ref, layers), entry.origin_build or "", entry.resolved, entry.importer)

    def _known(self, layer: Layer) -> Layer:
        """`layer` with all that the log has of it: the blob it was packed into, and who has that."""
        packed = self.index.blob_of(layer.snapshot) if layer.snapshot else None
        if packed is not None:
            blob = Descriptor(packed.media_type, Digest(packed.digest), packed.bytes)
            layer = replace(layer, diff_id=Digest(packed.diff_id), blob=blob)
        if layer.blob is None:
            return layer
        known = self.providers(layer.blob.digest)
        return replace(layer, providers=tuple(dict.fromkeys((*layer.providers, *known))))

    def let_go(self, name: str) -> bool:
        """See CacheLookup, Known and Catalog."""
        return self.index.let_go(name)

    def keeps(self, listing: Digest) -> bool:
        """See CacheLookup."""
        return self.index.kept_of(str(listing)) is not None

    def packs(self) -> list[Digest]:
        """See CacheLookup."""
        return [Digest(pack) for pack in self.index.packs()]

    def page(self, url: str) -> Page | None:
        """See Pages."""
        return self.index.page_of(url)

    def packed(self, snapshot: str, epoch: int | None) -> PackedBlob | None:
        """See Catalog."""
        found = self.index.packed(snapshot, epoch)
        if found is None:
            return None
        return PackedBlob(
            Digest(found.diff_id), Descriptor(found.media_type, Digest(found.digest), found.bytes), "recorded"
        )

    def providers(self, digest: Digest) -> tuple[Provider, ...]:
        """See Catalog."""
        if digest not in self._providers:  # the same base is below hundreds of records
            self._providers[digest] = tuple(self.index.providers_of(str(digest)))
        return self._providers[digest]


def prepare_process() -> None:
    """Give this process mounts of its own, before it has threads: they vanish with it, also at kill -9."""
    if os.geteuid() != 0:
        raise InputError("refledger build needs root, for mounts and ownership", hint="run it with sudo")
    private_mounts()


def secret_places(root: Root, build: str) -> SecretPlaces:
    """Where secrets of `build` may lie."""
    from storage.cachemounts import MemoryPlaces

    return MemoryPlaces(root.tmp, build)


SNAPSHOTTERS = ("auto", "erofs", "directory")


def engine(
    root: Root, build: str, runtime: str | None, ambient: Mapping[str, str], snapshotter: str, grants: Grants, *,
    offline: bool = False, more: BlobStore | None = None, attend: Attend | None = None,
) -> tuple[Engine, AsyncExitStack]:  # fmt: skip
    """The engine of one build, and its connections, to be closed by the caller. `ambient`, `attend`: see LocalExecutor;
    `snapshotter`: how layers are laid out, one of SNAPSHOTTERS; `offline`: nobody is asked; `more`: blobs that lie
    elsewhere. Raises InputError."""
    closing = AsyncExitStack()
    log, locks, tmp = root.log, root.locks, root.tmp
    clock = Clock(time.time_ns, time.monotonic)
    ledger = Ledger(log, build)
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
    client, repacker = _client(closing, offline=offline), _repacker(root, blobs, offline=offline)
    registry = WithLayouts(client)
    cache, names = _Cache(CacheIndex(root.views)), Names(root.views)
    partials = DirectoryPartials(root.path / "partial")
    materializer = Materializer(
        layers, snapshots, blobs, partials, registry, locks, ledger, clock, parallel=max(2, os.cpu_count() or 1),
        known=cache,
    )  # fmt: skip

    def asked() -> AskedPaths:
        from engine.refs.asked import AskedPaths
        from storage.parts import DirectoryParts

        return AskedPaths(materializer, DirectoryParts(tmp, build), registry, ledger, clock)

    @lru_cache(maxsize=1)
    def movers() -> Mover:
        from engine.exporters.move import Mover
        from engine.exporters.transfer import Transfer
        from storage.layout_target import WithLayoutTargets
        from storage.packing import BlobPacker

        packer = BlobPacker(snapshots, blobs)
        transfer = Transfer(blobs, registry, packer, cache, locks, ledger, clock, materializer.kept, repacker)
        return Mover(registry, WithLayoutTargets(client, build), transfer)

    def exporters() -> Exporters:
        from engine.exporters.archive import ArchiveExporter
        from engine.exporters.exporters import Exporters
        from engine.exporters.local import LocalExporter
        from engine.exporters.push import Pusher
        from storage.archive import TarArchive
        from storage.compose import TreeWriter

        mover = movers()
        return Exporters(
            transfer=mover.transfer,
            pusher=Pusher(registry, client, mover, ledger),
            archiver=ArchiveExporter(mover.transfer, ledger, TarArchive),
            local=LocalExporter(materializer, snapshots, ledger, clock, TreeWriter),
            clock=clock,
        )

    @lru_cache(maxsize=1)
    def sources() -> SourceFetcher:
        from engine.ops.sources import SourceFetcher
        from storage.compose import TreeWriter
        from storage.git import GitClient
        from storage.trees import SnapshotTrees

        trees, write = SnapshotTrees(snapshots, tmp, build), partial(TreeWriter, empty=True)
        if offline:
            from engine.offline.nobody import NoRepositories, NoWeb
            from engine.offline.sources import OfflineSources

            return OfflineSources(
                NoWeb(), NoRepositories(), trees, write, blobs, cache, locks, ledger, clock, commits=names
            )
        from storage.web import WebClient

        web = WebClient(f"refledger/{__version__}")
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
        importing.append(CacheImports(request.cache_from, registry, blobs, ledger, names, naming))
        return importing[-1]

    def caching(graph: Graph, solution: Solution, epoch: int | None) -> CacheExporter:
        from engine.cache.export import CacheExporter

        root.views.catch_up(root.log)
        mover = movers()
        past, named = _Past(History(root.views), blobs, importing), importing[-1].named
        return CacheExporter(build, mover.transfer, mover, mover.target, ledger, past, graph, solution, epoch, named)

    made = Engine(
        ledger=ledger,
        blobs=blobs,
        resolver=_resolver(registry, blobs, ledger, names, offline=offline),
        executor=_OnDemand(
            lambda: _executor(root, build, runtime, asked(), snapshots, sources, ledger, clock, ambient, grants, attend)
        ),
        materializer=materializer,
        cache=cache,
        presence=_presence(registry, ledger, offline=offline),
        sources=sources,
        exporters=exporters,
        emulation=emulation,
        needs=lambda: _needs(root, build, materializer, registry, cache, sources, repacker),
        imports=imports,
        caching=caching,
    )
    return made, closing


def _client(closing: AsyncExitStack, *, offline: bool) -> RegistryClient | NoRegistry:
    if offline:
        from engine.offline.nobody import NoRegistry

        return NoRegistry()
    client = RegistryClient(DockerCredentials(), user_agent=f"refledger/{__version__}")
    closing.push_async_callback(client.aclose)
    return client


def _repacker(root: Root, blobs: BlobStore, *, offline: bool) -> LayerRepacker | None:
    if not offline:
        return None
    from storage.erofs.tars import TarPacker

    return TarPacker(root.path / "layers", blobs)


def _needs(
    root: Root, build: str, materializer: Materializer, registry: RegistrySource, cache: _Cache,
    sources: Callable[[], SourceFetcher], repacker: LayerRepacker | None,
) -> Needs:  # fmt: skip
    from engine.offline.needs import Needs
    from storage.parts import DirectoryParts

    return Needs(materializer, registry, cache, DirectoryParts(root.tmp, build), sources, repacker)


def _presence(registry: RegistrySource, facts: Facts, *, offline: bool) -> Presence:
    if not offline:
        return HeadPresence(registry, facts)
    from engine.offline.nobody import Believed

    return Believed()


def _resolver(
    registry: RegistrySource, blobs: BlobStore, facts: Facts, names: Names, *, offline: bool
) -> Resolver:
    if not offline:
        return ImageResolver(registry, blobs, facts)
    from engine.offline.names import OfflineResolver, RecalledNames

    return OfflineResolver(ImageResolver(registry, blobs, facts, RecalledNames(names, registry)))


@dataclass(frozen=True, slots=True)
class _Past:
    """What is known of earlier builds: here by the log, elsewhere by the caches that were read."""

    history: History
    blobs: BlobStore
    imports: Sequence[CacheImports]

    def started(self, build: str) -> int:
        """See Past."""
        with suppress(InputError):
            record = self.history.get(build)
            if record.id == build:
                return record.started
        return next((time for one in self.imports if (time := one.started(build))), 0)

    def components(self, key: Digest) -> tuple[Component, ...]:
        """See Past."""
        with suppress(FileNotFoundError, VerificationError):
            return tuple((name, value) for name, value in parse_json(self.blobs.get(key)))
        return next((found for one in self.imports if (found := one.components(key))), ())


class _Silent:
    """Facts that nobody keeps."""

    async def record(self, _fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> int:  # noqa: ARG002
        """See Facts."""
        return 0

    def post(self, _fact: Fact, *, vertex: str | None = None, cause: int | None = None) -> None:
        """See Facts."""


@asynccontextmanager
async def passing_resolver(*, offline: bool) -> AsyncIterator[Resolver]:
    """A resolver for those who only look: it logs nothing and leaves nothing in the root. `offline`: it knows what the
    root knows. Raises InputError."""
    import tempfile

    if offline:
        from engine.offline.nobody import NoRegistry

        with read_root(path := root_directory()) as (_, views):
            yield _resolver(NoRegistry(), read_blobs(path), _Silent(), Names(views), offline=True)
        return

    with tempfile.TemporaryDirectory(prefix="refledger-") as directory:
        registry = RegistryClient(DockerCredentials(), user_agent=f"refledger/{__version__}")
        try:
            yield ImageResolver(registry, DirectoryBlobs(Path(directory), owner="check"), _Silent())
        finally:
            await registry.aclose()


def _layers(root: Root, build: str, mounts: ErofsMounts, snapshotter: str) -> CheckedLayers:
    """With a way that is forced, layers laid out in the other count as not here."""
    limit = os.environ.get("REFLEDGER_LAYER_LIMIT") or str(LAYER_LIMIT)
    if not limit.isdecimal():
        raise InputError(f"REFLEDGER_LAYER_LIMIT={limit}: not a number of bytes", hint="write digits only")
    images = ErofsLayers(root.path / "layers", root.tmp, build, mounts, limit=int(limit))
    directories = DirectoryLayers(root.path / "layers", root.tmp, build, limit=int(limit))
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
    from storage.compose import TreeWriter

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


def host_facts() -> dict[str, object]:
    """What BuildStarted says of this machine."""
    uname = os.uname()
    return {
        "hostname": uname.nodename, "kernel": uname.release, "machine": uname.machine, "pid": os.getpid(),
        "cpus": os.cpu_count() or 1,
    }  # fmt: skip

