"""A whole world from a scenario: machines with their roots, registries, and processes that build at once.

What a process runs is what `refledger build` runs: tools.roots opens and mends the root, tools.bootstrap puts the
engine together, tools.collecting prunes. Simulated are the kernel's part (disk.py, threads.py, loop.py), the
registries, and what RUN does (executor.py).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from engine.cache.spec import CacheSource, CacheTarget
from engine.errors import Cancelled, RefledgerError
from engine.events import BuildStarted
from engine.frontend.compile import FrontendOptions
from engine.grants import Grants
from engine.images.copy import Copier, CopyRequest
from engine.ledger import Ledger
from engine.operation import operate
from engine.ops.sources import SourceFetcher
from engine.output import Form, Output
from engine.refs.asked import AskedPaths
from engine.refs.fill import FetchLimits
from engine.refs.materializer import Clock
from engine.request import BuildRequest
from engine.together import in_thread
from projections.collect import Policy
from projections.runner import Views
from storage.interfaces.images import Compression, Mirror, Provider, Reference
from storage.interfaces.layers import Snapshot, SnapshotStore
from storage.interfaces.log import Event
from storage.platform import host_platform
from storage.reference import parse_reference
from tests.simulation import model, oracle
from tests.simulation.chance import Chance, Crashed
from tests.simulation.disk import Disk
from tests.simulation.executor import ScriptedExecutor, no_sandbox
from tests.simulation.loop import Livelock, SimLoop, simulated_threads
from tests.simulation.machine import Doing, Machine, current, disk_problems, reader_of, view_problems
from tests.simulation.mounting import SimulatedMounts, merged_content
from tests.simulation.oracle import Ended
from tests.simulation.paths import DiskPath, simulated_files
from tests.simulation.points import Points
from tests.simulation.registry import MemoryRegistries
from tests.simulation.scenarios import BASES, MIRROR, TARGETS, Act, Scenario, Stage
from tests.simulation.stock import stock
from tests.simulation.threads import Deadlock
from tests.simulation.watching import Watching
from tools import bootstrap, collecting, connecting, imaging, roots

MOST_TURNS = 200_000
LIMITS = FetchLimits(range_bytes=900, parallel_bytes=1500, connections=3)
"""So that layers of a few KiB are fetched in ranges, and several at once."""
MACHINES = 2
EXIT_OF_FAULTS = frozenset({3, 4})


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run. `offered`: the points at which faults could strike, with the kinds; `trace`: the same for the
    same interleaving; `crashes`: processes that died, by the last event before."""

    problems: tuple[str, ...]
    offered: list[tuple[str, tuple[str, ...]]]
    struck: list[tuple[int, str, str]]
    trace: str
    crashes: Counter[str]
    events: Counter[str]
    story: list[str]


_warm: list[bool] = []


def simulate(scenario: Scenario, planned: Mapping[int, int]) -> Report:
    """Do what `scenario` says, while faults strike as `planned`."""
    if not _warm:
        _warm.append(True)
        gc.collect()
        gc.freeze()  # what is loaded stays: each run ends with a collection, which need not look at that
    world = World(scenario, Points(planned))
    try:
        with quiet(), simulated_files(), simulated_threads(world.loop), world.patched():
            world.begin()
            try:
                world.loop.run(world.main())
            except (Deadlock, Livelock) as error:
                world.problems.append(f"hangs: {error}")
            return world.report()
    finally:
        world.end()


def _of_the_dead(error: BaseException | None) -> bool:
    return isinstance(error, Crashed) or "GeneratorExit" in str(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing of coroutines of dead processes that are thrown away: nobody awaits them, or ever lets them end."""
    before = sys.unraisablehook
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
        sys.unraisablehook = lambda told: None if _of_the_dead(told.exc_value) else before(told)
        try:
            yield
        finally:
            sys.unraisablehook = before


class World:
    """One run of `scenario`."""

    def __init__(self, scenario: Scenario, faults: Points) -> None:
        self.scenario = scenario
        self.faults = faults
        self.chance = Chance(scenario.seed ^ 0x5EED)
        self.loop = SimLoop(self.chance, max_turns=MOST_TURNS)
        self.clock = self.loop.clock()
        self.problems: list[str] = []
        self.ended: list[Ended] = []
        self.living: dict[str, Doing] = {}
        self.dead: set[str] = set()
        self.lost_bases: set[str] = set()
        self.tried: set[tuple[int, int]] = set()
        self.crashes: Counter[str] = Counter()
        self.count = 0
        self.machines: tuple[Machine, ...] = ()
        faults.crashed = self._note_crash

    def begin(self) -> None:
        """Make what outlives processes."""
        self.registries = MemoryRegistries(self.chance, self.faults)
        self.machines = tuple(
            Machine(Disk(self.chance, self.faults, self.clock.now)) for _ in range(MACHINES)
        )

    def end(self) -> None:
        """Let go of everything."""
        for machine in self.machines:
            machine.disk.end()
            Views.close(machine.views)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Have tools/ find this world where it would find the machine that it runs on."""
        time = SimpleNamespace(
            time=lambda: self.clock.now() / 1e9, time_ns=self.clock.now, monotonic=self.clock.monotonic,
            sleep=lambda seconds: self.loop.threads.wait(lambda: False, "time to pass", seconds),
        )  # fmt: skip
        known = SimpleNamespace(mirrors=self._mirrors)
        with ExitStack() as stack:
            for module in (bootstrap, roots, collecting, imaging):
                stack.enter_context(patch.object(module, "time", time))
            for module in (bootstrap, connecting, imaging):
                stack.enter_context(patch.object(module, "registry_client", self._client))
                stack.enter_context(patch.object(module, "known_registries", lambda: known))
            stack.enter_context(patch.object(bootstrap, "ErofsMounts", SimulatedMounts))
            stack.enter_context(patch.object(bootstrap, "_executor", _executor))
            stack.enter_context(patch.object(roots, "SqliteEventLog", lambda _path: current.get().process.log))
            stack.enter_context(patch.object(roots, "Views", lambda *_: current.get().machine.views))
            stack.enter_context(patch.object(roots, "past", lambda _path: SimpleNamespace(extend=lambda _log: None)))
            yield

    def _note_crash(self) -> None:
        rows = [machine.disk.log.rows[-1] for machine in self.machines if machine.disk.log.rows]
        last = max(rows, key=lambda row: row[0], default=None)
        self.crashes[last[3] if last is not None else "nothing"] += 1

    # ------------------------------------------------------------ the course of things

    async def main(self) -> None:
        """All rounds, then what must be possible after them, undisturbed."""
        stock(self.registries, self.scenario)
        for acts in self.scenario.rounds:
            await self._at_once(acts)
        self.faults.planned = {}
        await self._again()
        self._check_end()

    async def _at_once(self, acts: Sequence[Act]) -> None:
        lossy = any(act.kind == "lose" for act in acts)
        futures = [self._start(act, lossy=lossy) for act in acts]
        await asyncio.gather(*futures, return_exceptions=True)
        await asyncio.sleep(1)

    def _start(self, act: Act, *, lossy: bool = False) -> asyncio.Future[Ended]:
        self.count += 1
        build = f"{self.count:012x}"
        machine = self.machines[act.machine % len(self.machines)]
        doing = Doing(act, build, machine, self._allowed(act, lossy=lossy), len(self.faults.struck))
        self.living[build] = doing
        doing.owner, future = self.loop.spawn(build, self._process(doing))
        future.add_done_callback(lambda future: self._over(doing, future))
        return future

    def _over(self, doing: Doing, future: asyncio.Future[Ended]) -> None:
        """The process of `doing` has ended, or died."""
        if self.living.pop(doing.build, None) is None:
            return
        error = None if future.cancelled() else future.exception()
        doing.process.calls.die()  # what it still holds goes with it
        for fetching in doing.machine.fetching.values():
            fetching[:] = [build for build in fetching if build != doing.build]
        if isinstance(error, Crashed):
            self.dead.add(doing.build)
            if self.faults.power_lost:
                self.faults.power_lost = False
                self._lose_power(doing.machine)
        elif error is not None:
            story = "".join(traceback.format_exception(error))[-1500:]
            self.problems.append(f"a bug: {doing.act.kind} {doing.build} ended with {error!r}\n{story}")
        elif not future.cancelled():
            self._check_ended(doing, future.result())

    def _lose_power(self, machine: Machine) -> None:
        for other in [one for one in self.living.values() if one.machine is machine]:
            self.dead.add(other.build)
            assert other.owner is not None
            self.loop.kill(other.owner)
        machine.disk.power_loss()
        self._check_disk(machine)

    async def _process(self, doing: Doing) -> Ended:
        current.set(doing)
        await asyncio.sleep(doing.act.delay)
        try:
            await self._do(doing)
        except RefledgerError as error:
            return Ended(doing.build, error.exit_code, f"{type(error).__name__}: {error}")
        return Ended(doing.build, 0)

    async def _interruptible(self, doing: Doing, work: Coroutine[Any, Any, object]) -> None:
        """As tools.cli.running: interrupted by a signal from where it begins to where it ends."""
        task = asyncio.ensure_future(work)
        if doing.act.cancel:
            self.loop.call_later(doing.act.cancel, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            raise Cancelled("interrupted") from None

    async def _do(self, doing: Doing) -> None:
        match doing.act.kind:
            case "build":
                await self._build(doing)
            case "copy":
                await self._copy(doing)
            case "lose":
                self._lose(doing.act)
            case "begin":
                async with self._running(doing):
                    pass
            case _:
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
            await self._interruptible(doing, self._build_in(root, doing))

    async def _build_in(self, root: roots.Root, doing: Doing) -> None:
        engine, connections = bootstrap.engine(root, doing.build, None, {}, "auto", Grants())
        engine.materializer.fetching = LIMITS
        try:
            await engine.build(self.request(doing.act))
        finally:
            engine.materializer.close()
            await connections.aclose()

    def request(self, act: Act) -> BuildRequest:
        """What the command line would make of it."""
        names = (self.name(act),) if act.target >= 0 else ()
        form = Form(compression=Compression("zstd" if act.zstd else "gzip"))
        cache = f"{TARGETS[0]}/cache{act.subject}:c"
        sources = (cache, f"{TARGETS[0]}/out{act.subject}:t") if act.cache_from else ()
        targets: tuple[CacheTarget, ...] = ()
        if act.cache_to == "inline":
            targets = (CacheTarget("type=inline", "inline"),)
        elif act.cache_to:
            targets = (CacheTarget(f"type=registry,ref={cache}", "registry", parse_reference(cache), act.cache_to),)
        return BuildRequest(
            dockerfile=model.dockerfile(self.program(act), self.scenario.images),
            frontend=FrontendOptions(),
            directories={},
            names=names,
            outputs=(Output("image", form=form, names=names),) if names else (),
            no_cache=act.no_cache,
            cache_from=tuple(CacheSource(source, parse_reference(source)) for source in sources),
            cache_to=targets,
        )

    def program(self, act: Act) -> tuple[Stage, ...]:
        """The Dockerfile that `act` is about."""
        return self.scenario.programs[act.subject % len(self.scenario.programs)]

    def name(self, act: Act) -> Reference:
        """What a build is pushed as."""
        return parse_reference(f"{TARGETS[act.target % len(TARGETS)]}/out{act.subject % len(self.scenario.programs)}:t")

    async def _copy(self, doing: Doing) -> None:
        source = self.name(doing.act)
        dest = parse_reference(f"{TARGETS[(doing.act.target + 1) % len(TARGETS)]}/{source.repository}:copied")
        request = CopyRequest(source, dest)
        async with self._running(doing) as root, imaging.imaging(root, doing.build) as (ledger, made):
            copier = Copier(made.placer, made.listing, ledger, host_platform(), made.gate)

            async def work() -> list[dict[str, Any]]:
                return [{"ref": "", "digest": str(one.digest)} for one in await copier.copy(request)]

            started = BuildStarted(
                frontend="copy.v0", definition="", options=request.options, context=None, engine_version="0", host={}
            )
            await operate(ledger, started, work())

    async def _prune(self, doing: Doing) -> None:
        policy = Policy(name="prune", by="somebody", everything=doing.act.kind == "prune")
        path = doing.process.path
        with ExitStack() as stack:
            root = await in_thread(lambda: stack.enter_context(roots.open_root(path)))
            plan = await collecting.plan_collection(root, policy, dry_run=False)
            await in_thread(lambda: collecting.carry_out(root, plan, policy))

    def _lose(self, act: Act) -> None:
        """A registry loses a blob, or has it damaged: of a base image's layers now and then, else what was pushed."""
        host = self.registries.host(BASES if act.pick == 0 else TARGETS[act.target % len(TARGETS)])
        layers = sorted(digest for digest, data in host.content.items() if not data.startswith(b"{"))
        if layers:
            (host.damage if act.pick % 2 else host.lose)(layers[act.pick % len(layers)])
            if act.pick == 0:
                self.lost_bases.add(layers[0])

    # ------------------------------------------------------------ what processes are given

    def _client(self, *_: object, **options: Any) -> Any:
        doing = current.get()
        logins = {} if doing.act.stranger else {TARGETS[-1]: "builder"}
        client = self.registries.client(logins, observe=options.get("observe"))
        return Watching(client, doing, self.registries, self.problems)

    def _mirrors(self, provider: Provider) -> tuple[Mirror, ...]:
        if provider.registry != BASES or not self.scenario.mirror:
            return ()
        return (Mirror(Provider.of(MIRROR, provider.repository)),)

    # ------------------------------------------------------------ what must hold

    def _allowed(self, act: Act, *, lossy: bool) -> set[int]:
        """The exits that `act` may have as long as no fault strikes."""
        if act.kind == "lose":
            return {0}
        if act.kind == "copy":
            return {0, 3, 4}  # what it copies need not be there, or not be whole
        if act.kind != "build":
            return {0}
        made = self.made(act)
        allowed = {1} if made.fails else {0}
        if act.cancel:
            allowed.add(130)
        if lossy or self.lost_bases:
            allowed |= {3, 4}
        if self._lied_to(made):
            allowed |= {0, 4}
        if act.stranger and not made.fails:
            allowed |= {3} if self._needs_login(act) else set()
            if act.target % len(TARGETS) == len(TARGETS) - 1 and act.target >= 0:
                allowed.discard(0)
        return allowed

    def _lied_to(self, made: model.Made) -> bool:
        """Is it made of an image whose config lies?"""
        return self.scenario.lies >= 0 and self.scenario.lies % len(self.scenario.images) in made.images

    def _needs_login(self, act: Act) -> bool:
        return act.target >= 0 and act.target % len(TARGETS) == len(TARGETS) - 1

    def made(self, act: Act) -> model.Made:
        """What the build that `act` is must come to."""
        return model.evaluate(self.program(act), self.scenario.images)[-1]

    def _check_ended(self, doing: Doing, ended: Ended) -> None:
        if "event log" in ended.error:
            self.dead.add(doing.build)  # its log could not be told how it ended
        else:
            self.ended.append(ended)
        allowed = doing.allowed | (EXIT_OF_FAULTS if len(self.faults.struck) > doing.struck else set())
        if ended.exit not in allowed:
            told = f"{doing.act.kind} {doing.build} ended with {ended.exit} ({ended.error})"
            self.problems.append(f"I12 {told}, not one of {sorted(allowed)}")
        if doing.act.kind == "build" and ended.exit == 0 and doing.act.target >= 0:
            self._check_image(doing)

    def _check_image(self, doing: Doing) -> None:
        name = self.name(doing.act)
        host = self.registries.host(name.registry)
        completed: dict[str, str] = {}
        for machine in self.machines:
            completed |= oracle.completed_in(machine.events)

        def read(wanted: str) -> bytes | None:
            status, data, _ = host.manifest(name.repository, wanted)
            if status != 200:
                status, data = host.blob(name.repository, wanted)  # type: ignore[arg-type]  # a digest is a str
            return data if status == 200 else None

        if set(oracle.blobs_of(read, name.tag)) & host.lost:
            return  # taken away from outside, after it was there
        made = self.made(doing.act)
        if not self._lied_to(made):
            self.problems += oracle.image_problems(read, name.tag, made, completed)

    async def _again(self) -> None:
        """I12, I5: whatever happened, the same builds end as they should now, in processes that begin with nothing."""
        done: set[tuple[int, int, int]] = set()
        acts = [act for acts in self.scenario.rounds for act in acts if act.kind == "build"]
        for act in acts:
            what = (act.subject % len(self.scenario.programs), max(act.target, 0) % len(TARGETS), act.machine)
            if what not in done:
                done.add(what)
                await self._at_once([Act("build", what[0], what[1], machine=act.machine)])
        for number in {act.machine for acts in self.scenario.rounds for act in acts}:
            await self._at_once([Act("begin", machine=number)])

    def _check_end(self) -> None:
        for host in self.registries.hosts.values():
            self.problems += [f"I11 {hole}" for hole in host.holes()]
        for machine in self.machines:
            left = reader_of(machine.disk).leftovers()
            # an interrupted pull waits to be gone on with; a file that nobody has locked is no lock
            unlocked = ("partial/", "locks/")
            self.problems += [f"I12 {name} is left over" for name in left if not name.startswith(unlocked)]
            machine.disk.power_loss(strict=True)
            self.problems += oracle.log_problems(machine.events, self.ended, self.dead)
            self.problems += view_problems(machine, reader_of(machine.disk))
            self._check_disk(machine)
        self.problems += [f"a bug: {failure}" for failure in (*self.loop.complaints, *self.loop.threads.failures)]

    def _check_disk(self, machine: Machine) -> None:
        """After a lost power: what the log names is there, and as it should be."""
        reader = reader_of(machine.disk)
        here = reader.stored()
        kinds = {"blobs": here.blobs, "layers": here.layers, "snapshots": here.snapshots}
        self.problems += oracle.content_problems(machine.events, kinds)
        self.problems += disk_problems(machine, reader)

    def report(self) -> Report:
        """What came of it."""
        return Report(
            problems=tuple(self.problems),
            offered=self.faults.offered,
            struck=self.faults.struck,
            trace=self.faults.traced.hexdigest(),
            crashes=self.crashes,
            events=Counter(event.type for machine in self.machines for event in machine.events),
            story=[line for number, machine in enumerate(self.machines) for line in _story(number, machine.events)],
        )


def _story(number: int, events: Sequence[Event]) -> Iterator[str]:
    for event in events:
        shown = {key: value for key, value in event.data.items() if value not in ("", (), [], None)}
        vertex = (event.vertex or "")[7:15]
        yield f"{number} {event.time} {event.seq} {event.build} {event.type} {vertex} {str(shown)[:300]}"


def _executor(
    _root: roots.Root, _build: str, _runtime: str | None, asked: AskedPaths, snapshots: SnapshotStore,
    sources: Callable[[], SourceFetcher], ledger: Ledger, clock: Clock, *_: object,
) -> ScriptedExecutor:  # fmt: skip
    """In the place of bootstrap's."""
    made = ScriptedExecutor(
        asked.materializer, asked, snapshots, sources, no_sandbox, ledger, clock, mounts=None  # type: ignore[arg-type]
    )
    made.tree_of, made.put = tree_of, put
    return made


def tree_of(lowers: Sequence[Path]) -> model.Tree:
    """All files of some lowers."""
    return merged_content(lowers)


def put(snapshot: Snapshot, path: str, data: bytes) -> None:
    """Have a file appear in a snapshot."""
    DiskPath(snapshot.root / path).write_bytes(data)
