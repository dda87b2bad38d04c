"""What simulated processes do: what the commands of `refledger` do between the command line and the end of the process.

tools.roots opens and mends the root, tools.bootstrap puts the engine together, tools.collecting prunes, tools.imaging
copies, and projections read; only what RUN does is scripted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from engine.errors import Cancelled
from engine.events import BuildStarted
from engine.grants import Grants
from engine.images.copy import Copier
from engine.operation import operate
from engine.refs.fill import FetchLimits
from projections.collect import Policy
from projections.history import History
from storage.platform import host_platform
from storage.threads import in_thread
from tests.simulation.disk import rot
from tests.simulation.executor import ScriptedExecutor, no_sandbox
from tests.simulation.machine import SECRET, Doing
from tests.simulation.registry import MemoryRegistries
from tests.simulation.scenarios import BASES, TARGETS
from tests.simulation.stock import lose_near
from tests.simulation.wanted import SECRET_ID, Wanted
from tools import bootstrap, collecting, imaging, roots
from tools.bootstrap.steps import Steps

LIMITS = FetchLimits(range_bytes=900, parallel_bytes=1500, connections=3)
"""So that layers of a few KiB are fetched in ranges, and several at once."""
SMALL = 100
"""Bytes of layers that are read whole, though they could be read by range."""
GRANTS = Grants(secrets={SECRET_ID: SECRET.encode()})


class Acts:
    """Does what is `wanted`, with `registries` at hand. `lost_bases`: blobs of base images that a registry lost."""

    def __init__(self, wanted: Wanted, registries: MemoryRegistries) -> None:
        self._wanted = wanted
        self._registries = registries
        self.lost_bases: set[str] = set()

    async def do(self, doing: Doing) -> None:
        """What `doing` is. Raises RefledgerError."""
        match doing.act.kind:
            case "build":
                await self._build(doing)
            case "copy":
                await self._copy(doing)
            case "lose":
                self._lose(doing)
            case "rot":
                doing.machine.rotten |= rot(doing.machine.disk, doing.act.pick)
            case "begin":
                async with self._running(doing):
                    pass
            case "look":
                await in_thread(lambda: _look(doing))
            case "prune" | "demote":
                await self._prune(doing)

    @asynccontextmanager
    async def _running(self, doing: Doing) -> AsyncIterator[roots.Root]:
        """As tools.cli.running: the root, opened and mended, while other processes go on."""
        path, stack = doing.process.path, ExitStack()

        def enter() -> roots.Root:
            root = stack.enter_context(roots.open_root(path))
            stack.enter_context(roots.owning(root, doing.build))
            roots.recover(root, doing.build)
            return root

        try:
            yield await in_thread(enter)
        finally:
            await in_thread(stack.close)

    async def _build(self, doing: Doing) -> None:
        async with self._running(doing) as root:
            await _interruptible(doing, self._build_in(root, doing))

    async def _build_in(self, root: roots.Root, doing: Doing) -> None:
        engine, connections = bootstrap.engine(root, doing.build, None, {}, "auto", GRANTS)
        engine.materializer.fetcher.limits = LIMITS
        async with connections:
            await engine.build(self._wanted.request(doing.act, doing.disk))

    async def _copy(self, doing: Doing) -> None:
        request = self._wanted.copy(doing.act, doing.disk)
        async with self._running(doing) as root, imaging.imaging(root, doing.build) as (ledger, made):
            copier = Copier(made.placer, made.listing, ledger, host_platform(), made.gate)

            async def work() -> list[dict[str, Any]]:
                return [{"ref": "", "digest": str(one.digest)} for one in await copier.copy(request)]

            started = BuildStarted(
                frontend="copy.v0", definition="", options=request.options, context=None, engine_version="0", host={}
            )
            await _interruptible(doing, operate(ledger, started, work()))

    async def _prune(self, doing: Doing) -> None:
        policy = Policy(name="prune", by="somebody", everything=doing.act.kind == "prune")
        path = doing.process.path
        with ExitStack() as stack:
            root = await in_thread(lambda: stack.enter_context(roots.open_root(path)))
            plan = await collecting.plan_collection(root, policy, dry_run=False)
            await in_thread(lambda: collecting.carry_out(root, plan, policy))

    def _lose(self, doing: Doing) -> None:
        """A registry loses a blob, or has it damaged: of a base image's layers now and then, else what was pushed; or
        the layout that the builds of a machine take an image from loses one."""
        act = doing.act
        if act.file:
            self.lost_bases |= lose_near(doing.machine.disk.files, act.pick)
            return
        host = self._registries.host(BASES if act.pick == 0 else TARGETS[act.target % len(TARGETS)])
        layers = sorted(digest for digest, data in host.content.items() if not data.startswith(b"{"))
        if layers:
            (host.damage if act.pick % 2 else host.lose)(layers[act.pick % len(layers)])
            if act.pick == 0:
                self.lost_bases.add(layers[0])


async def _interruptible(doing: Doing, work: Coroutine[Any, Any, object]) -> None:
    """As tools.cli.running: interrupted by a signal from where it begins to where it ends."""
    doing.work = asyncio.ensure_future(work)
    if doing.act.cancel:
        asyncio.get_running_loop().call_later(doing.act.cancel, doing.work.cancel)
    try:
        await doing.work
    except asyncio.CancelledError:
        raise Cancelled("interrupted") from None


def _look(doing: Doing) -> None:
    """`refledger history`, `du`, and `show` of what was built."""
    doing.process.calls.reads_only = True
    path = doing.process.path
    with roots.read_root(path) as (log, views):
        history = History(views)
        for build in history.list():
            history.get(build.id)
        collecting.survey(path, views)
        list(log.read())


def scripted(steps: Steps) -> ScriptedExecutor:
    """In the place of `Steps.local`."""
    here, asked = steps.here, steps.asked
    asked.small = SMALL
    return ScriptedExecutor(asked, here.snapshots, lambda: steps.sources, no_sandbox, here.ledger, steps.clock, GRANTS)


__all__: Sequence[str] = ("GRANTS", "LIMITS", "Acts", "scripted")
