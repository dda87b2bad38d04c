"""What takes a build's results out of the root, of concrete classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import ExportDelayed
from engine.request import BuildRequest
from projections.history import History
from storage.digest import Digest
from tools.bootstrap.elsewhere import Elsewhere
from tools.bootstrap.here import Here
from tools.bootstrap.steps import Steps
from tools.known import Past

if TYPE_CHECKING:
    from engine.attest.attester import Attester
    from engine.cache.export import CacheExporter
    from engine.cache.imports import CacheImports
    from engine.exporters.exporters import Exporters
    from engine.exporters.move import Mover
    from engine.exporters.reading import BlobReader
    from engine.exporters.transfer import Transfer
    from engine.graph import Graph
    from engine.solver.answers import Imports, Solution
    from storage.layout.target import WithLayoutTargets


@dataclass(eq=False)
class Results:
    """Each part is made once, when it is first asked for: most builds do without most of them, and what they do not
    need is not imported."""

    here: Here
    elsewhere: Elsewhere
    steps: Steps
    _importing: list[CacheImports] = field(default_factory=list)

    @cached_property
    def reader(self) -> BlobReader:
        """Who reads blobs, wherever they are."""
        from engine.exporters.reading import BlobReader

        here, elsewhere = self.here, self.elsewhere
        return BlobReader(here.blobs, elsewhere.registry, here.ledger, self.steps.clock, elsewhere.places)

    @cached_property
    def target(self) -> WithLayoutTargets:
        """Where blobs and manifests go."""
        from storage.layout.target import WithLayoutTargets

        def delayed(file: str) -> None:
            self.here.ledger.post(ExportDelayed(file=file))

        return WithLayoutTargets(self.elsewhere.client, self.here.build, delayed)

    @cached_property
    def mover(self) -> Mover:
        """Who brings blobs to where an image goes."""
        from engine.exporters.move import Mover

        return Mover(self.elsewhere.registry, self.target, self.reader, self.here.root.locks)

    @cached_property
    def transfer(self) -> Transfer:
        """Who brings layers there, packed and in the form that is wanted."""
        from engine.exporters.conversion import Conversion
        from engine.exporters.transfer import Transfer
        from storage.packing import BlobConverter, BlobPacker

        here, materializer, locks = self.here, self.steps.materializer, self.here.root.locks
        conversion = Conversion(
            here.blobs, BlobConverter(here.blobs), here.tars, materializer, here.cache, locks, here.ledger,
            self.steps.clock, materializer.kept,
        )  # fmt: skip
        packer = BlobPacker(here.snapshots, here.blobs)
        return Transfer(
            self.reader, packer, here.cache, locks, here.ledger, materializer.kept, conversion,
            repack=self.elsewhere.offline,
        )  # fmt: skip

    def exporters(self) -> Exporters:
        """All kinds of them."""
        from engine.exporters.archive import ArchiveExporter
        from engine.exporters.exporters import Exporters
        from engine.exporters.layout import LayoutExporter
        from engine.exporters.local import LocalExporter
        from engine.exporters.push import Pusher
        from engine.exporters.tar import TarExporter
        from storage.archive import DestFile, TarArchive
        from storage.durable import FileSystemSync
        from storage.layers.compose import TreeWriter
        from storage.tar.pack import write_tree

        here, elsewhere, clock = self.here, self.elsewhere, self.steps.clock
        materializer, ledger = self.steps.materializer, self.here.ledger
        return Exporters(
            transfer=self.transfer,
            pusher=Pusher(elsewhere.registry, elsewhere.client, self.mover, ledger),
            archiver=ArchiveExporter(self.reader, ledger, TarArchive),
            layout=LayoutExporter(self.mover, ledger, self.target.enter),
            local=LocalExporter(
                materializer, here.snapshots, ledger, clock, lambda to, latest: TreeWriter(to, latest=latest),
                lambda to: FileSystemSync(to).watched(),
            ),
            tar=TarExporter(materializer, here.snapshots, ledger, DestFile, write_tree),
            clock=clock,
        )  # fmt: skip

    def imports(self, request: BuildRequest, contexts: Mapping[Digest, Path]) -> Imports:
        """The caches that `request` names."""
        from engine.buildkit.keys import BuildKitKeys
        from engine.cache.imports import CacheImports

        here, elsewhere = self.here, self.elsewhere
        names, naming = BuildKitKeys(contexts), bool(request.cache_to)
        imports = CacheImports(
            request.cache_from, elsewhere.registry, here.blobs, here.ledger, names, naming, elsewhere.places
        )
        self._importing.append(imports)
        return imports

    def caching(self, graph: Graph, solution: Solution, epoch: int | None) -> CacheExporter:
        """Who writes the caches of a build that has asked its `imports`."""
        from engine.cache.export import CacheExporter

        here, mover = self.here, self.mover
        here.root.views.catch_up(here.root.log)
        past, named = Past(History(here.root.views), here.blobs, self._importing), self._importing[-1].named
        return CacheExporter(
            here.build, self.transfer, mover, mover.target, here.ledger, past, graph, solution, epoch, named
        )

    def attester(self) -> Attester:
        """Who says what an image holds and where it comes from."""
        from engine.attest.attester import Attester
        from tools import __version__
        from tools.auditing.attesting import LogFacts
        from tools.auditing.keys import find_signer

        here = self.here
        facts, signer = LogFacts(here.root, here.blobs), find_signer(here.root.path)
        return Attester(here.ledger, here.blobs, self.steps.materializer, here.parts.tree, facts, signer, __version__)
