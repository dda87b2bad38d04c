"""What executes the steps of a build, of concrete classes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from engine.clock import Clock
from engine.events import RuntimeChosen
from engine.grants import Grants
from engine.ops.executor import Executor, Outcome, Task
from engine.refs.fetch import Fetcher
from engine.refs.materializer import Materializer
from storage.digest import Digest
from tools.bootstrap.elsewhere import Elsewhere
from tools.bootstrap.here import Here, layer_limit
from tools.connecting import USER_AGENT

if TYPE_CHECKING:
    from engine.images.intake import LayerFiles
    from engine.offline.needs import Needs
    from engine.ops.attend import Attend
    from engine.ops.emulation import Emulation
    from engine.ops.sandbox import Sandbox
    from engine.ops.sources import SourceFetcher
    from engine.refs.asked import AskedPaths


@dataclass(eq=False)
class Steps:
    """Each part is made once, when it is first asked for. Implements Executor by one that is made when the first step
    runs: a build that is all cached does not load what steps need. `ambient`, `attend`: see LocalExecutor."""

    here: Here
    elsewhere: Elsewhere
    runtime: str | None
    ambient: Mapping[str, str]
    grants: Grants
    attend: Attend | None
    clock: Clock = field(default_factory=lambda: Clock(time.time_ns, time.monotonic))

    async def content(self, task: Task) -> Digest | None:
        """See Executor.content."""
        return await self._executor.content(task)

    async def execute(self, task: Task) -> Outcome:
        """See Executor.execute."""
        return await self._executor.execute(task)

    @cached_property
    def materializer(self) -> Materializer:
        """The only door to the bytes of layers. Raises InputError."""
        here = self.here
        fetcher = Fetcher(
            here.blobs, here.partials, self.elsewhere.registry, here.root.locks, here.ledger, self.clock,
            parallel=max(2, os.cpu_count() or 1), known=here.cache, places=self.elsewhere.places,
        )  # fmt: skip
        made = Materializer(here.layers, here.snapshots, fetcher, here.root.locks, here.ledger, self.clock)
        self.elsewhere.closing.callback(made.close)
        return made

    @cached_property
    def sources(self) -> SourceFetcher:
        """Who fetches what `ADD` names, and contexts that are elsewhere."""
        from engine.ops.sources import SourceFetcher
        from storage.layers.compose import TreeWriter
        from storage.layers.trees import SnapshotTrees

        here, root = self.here, self.here.root
        trees, write = SnapshotTrees(here.snapshots), partial(TreeWriter, empty=True)
        kept = (trees, write, here.blobs, here.cache, root.locks, here.ledger, self.clock)
        if self.elsewhere.offline:
            from engine.offline.nobody import NoRepositories, NoWeb
            from engine.offline.sources import OfflineSources

            return OfflineSources(NoWeb(), NoRepositories(), *kept, commits=here.names)
        from storage.git import GitClient
        from storage.web import WebClient

        gate = self.elsewhere.gate
        web = WebClient(USER_AGENT, redirected=gate.redirected if gate else None)
        self.elsewhere.closing.push_async_callback(web.aclose)
        return SourceFetcher(web, GitClient(root.tmp, here.build, os.environ), *kept)

    @cached_property
    def emulation(self) -> Emulation:
        """What of other machines this one runs."""
        from engine.ops.emulation import Emulation, run_in_empty_root
        from storage.scratch import Scratch

        return Emulation(partial(run_in_empty_root, Scratch(self.here.root.tmp, self.here.build).directory))

    def needs(self) -> Needs:
        """Who says what a build offline would have to ask for."""
        from engine.offline.needs import Needs

        here = self.here
        return Needs(
            self.materializer, self.elsewhere.registry, here.cache, here.parts, lambda: self.sources, here.tars
        )

    def files(self) -> LayerFiles:
        """Who takes layers in that come as files."""
        from engine.images.intake import LayerFiles
        from storage.layers.layerfile import BlobIntake

        here = self.here
        return LayerFiles(BlobIntake(here.blobs, layer_limit()), here.root.locks, here.ledger, self.clock)

    @cached_property
    def asked(self) -> AskedPaths:
        """The door for steps that need only some paths."""
        from engine.refs.asked import AskedPaths

        here = self.here
        return AskedPaths(self.materializer, here.parts, self.elsewhere.registry, here.ledger, self.clock)

    @cached_property
    def _executor(self) -> Executor:
        return self.local()

    def local(self) -> Executor:
        """The executor in this process."""
        from engine.ops.local import LocalExecutor
        from engine.ops.run_mounts import RunMounts
        from storage.cachemounts import DirectoryCacheMounts, MemoryPlaces
        from storage.layers.compose import TreeWriter

        here, root, clock = self.here, self.here.root, self.clock
        caches = DirectoryCacheMounts(root.path / "cache", root.tmp, here.build, root.locks)
        mounts = RunMounts(
            here.snapshots, caches, MemoryPlaces(root.tmp, here.build), self.grants, here.ledger, clock,
            partial(TreeWriter, empty=True),
        )  # fmt: skip
        return LocalExecutor(
            self.materializer, self.asked, here.snapshots, lambda: self.sources, self._sandbox, here.ledger, clock,
            mounts, self.ambient, self.attend,
        )  # fmt: skip

    async def _sandbox(self) -> tuple[Sandbox, RuntimeChosen]:
        from engine.ops.sandbox import OciSandbox, choose_runtime

        run, build = self.here.root.run, self.here.build
        choice = await choose_runtime(self.runtime, run, build)
        chosen = RuntimeChosen(runtime=choice.runtime, version=choice.version, rejected=dict(choice.rejected))
        return OciSandbox(choice.runtime, run, build), chosen
