"""A whole world from a scenario: machines with their roots, registries, and processes that build at once.

Simulated are the kernel's part (disk.py, threads.py, loop.py), the registries, and what RUN does (executor.py); what
processes do is in acts.py, and what must come of it in verdict.py.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import dockerfile

from engine.errors import RefledgerError
from engine.frontend.instructions import parse_dockerfile
from engine.frontend.source import Source
from projections.runner import Views
from storage.interfaces.images import Descriptor, Mirror, Provider
from storage.layout import source
from tests.simulation import model, paths
from tests.simulation.acts import Acts, scripted
from tests.simulation.chance import Chance, Crashed
from tests.simulation.disk import Disk
from tests.simulation.loop import Livelock, SimLoop, simulated_threads
from tests.simulation.machine import Doing, Machine, current
from tests.simulation.oracle import Ended
from tests.simulation.paths import simulated_files
from tests.simulation.points import Points
from tests.simulation.registry import MemoryRegistries
from tests.simulation.report import Report, story
from tests.simulation.scenarios import BASES, MIRROR, TARGETS, Act, Scenario
from tests.simulation.stock import lay_out, stock
from tests.simulation.threads import Deadlock
from tests.simulation.verdict import Verdict
from tests.simulation.wanted import Wanted
from tests.simulation.watching import Watching, check_asked
from tools import collecting, connecting, imaging, roots
from tools.bootstrap import elsewhere, steps

MOST_TURNS = 200_000
MACHINES = 2


def simulate(scenario: Scenario, points: Points, *, told: bool = False) -> Report:
    """Do what `scenario` says, while faults strike as `points` has them; `told`: its story is wanted in any case."""
    with quiet(), simulated_files():
        world = World(scenario, points)
        try:
            with simulated_threads(world.loop), world.patched():
                try:
                    world.loop.run(world.main())
                except (Deadlock, Livelock) as error:
                    world.verdict.problems.append(f"hangs: {error}")
                return world.report(told=told)
        finally:
            world.end()


parsed = lru_cache(maxsize=1000)(dockerfile.parse_string)
"""Go parses Dockerfiles, whose runtime does not survive a fork: what a run needs is parsed before the first one."""


def _interrupt() -> None:
    """Have whoever runs be interrupted."""
    current.get().interrupt()


def _seen(opens: Callable[..., AbstractAsyncContextManager[Any]]) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """`opens`, which opens a blob of a layout, looked at over the shoulder."""

    def opened(provider: Provider, blob: Descriptor, *part: Any) -> AbstractAsyncContextManager[Any]:
        check_asked(current.get(), blob)
        return opens(provider, blob, *part)

    return opened


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

    def __init__(self, scenario: Scenario, points: Points) -> None:
        self._scenario = scenario
        self._points = points
        self._chance = Chance(scenario.seed ^ 0x5EED)
        self.loop = SimLoop(self._chance, max_turns=MOST_TURNS)
        self._clock = self.loop.clock()
        self._registries = MemoryRegistries(self._chance, points)
        now, threads = self._clock.now, self.loop.threads
        self._machines = tuple(Machine(Disk(self._chance, points, now, threads)) for _ in range(MACHINES))
        self._wanted = Wanted(scenario)
        self._acts = Acts(self._wanted, self._registries)
        self.verdict = Verdict(self._wanted, self._registries, self._machines, lambda: points.harm)
        self._living: dict[str, Doing] = {}
        self._crashes: Counter[str] = Counter()
        self._count = 0
        points.crashed = self._note_crash
        points.interrupted = _interrupt

    def end(self) -> None:
        """Let go of everything."""
        for machine in self._machines:
            machine.disk.end()
            Views.close(machine.views)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Have tools/ find this world where it would find the machine that it runs on."""
        time = SimpleNamespace(
            time=lambda: self._clock.now() / 1e9, time_ns=self._clock.now, monotonic=self._clock.monotonic,
            sleep=lambda seconds: self.loop.threads.wait(lambda: False, "time to pass", seconds),
        )  # fmt: skip
        known = SimpleNamespace(mirrors=self._mirrors)
        with ExitStack() as stack:
            stack.enter_context(patch.object(dockerfile, "parse_string", parsed))
            for program in self._scenario.programs:
                parse_dockerfile(Source("Dockerfile", model.dockerfile(program, self._scenario.images)))
            for module in (steps, roots, collecting, imaging):
                stack.enter_context(patch.object(module, "time", time))
            for module in (elsewhere, connecting, imaging):
                stack.enter_context(patch.object(module, "registry_client", self._client))
                stack.enter_context(patch.object(module, "known_registries", lambda: known))
            stack.enter_context(patch.object(steps.Steps, "local", scripted))
            stack.enter_context(patch.object(source, "_open", _seen(source._open)))
            stack.enter_context(patch.object(roots, "Views", paths.SharedViews(lambda: current.get().machine.views)))
            yield

    def _note_crash(self) -> None:
        rows = [machine.disk.log.rows[-1] for machine in self._machines if machine.disk.log.rows]
        last = max(rows, key=lambda row: row[0], default=None)
        self._crashes[last[3] if last is not None else "nothing"] += 1

    # ------------------------------------------------------------ the course of things

    async def main(self) -> None:
        """All rounds, then what must be possible after them, undisturbed."""
        stock(self._registries, self._scenario)
        for machine in self._machines:
            lay_out(machine.disk.files, self._registries, self._scenario)
        for acts in self._scenario.rounds:
            await self._at_once(acts)
            for machine in self._machines:
                self.verdict.quiet(machine)
        self._points.over = True
        await self._again()
        self.verdict.end()
        await self._let_go()
        failed = (*self.loop.complaints, *self.loop.threads.failures)
        self.verdict.problems += [f"a bug: {failure}" for failure in failed]

    async def _at_once(self, acts: Sequence[Act]) -> None:
        lossy = any(act.kind == "lose" for act in acts)
        pushed = Counter(self._wanted.subject(act) for act in acts if act.kind == "build" and act.target == 0)
        futures = [self._start(act, lossy=lossy, cached=self._is_cached(act, pushed)) for act in acts]
        await asyncio.gather(*futures, return_exceptions=True)
        self.verdict.inline -= {subject for subject, count in pushed.items() if count > 1}
        await asyncio.sleep(1)

    async def _again(self) -> None:
        """I12, I5: whatever happened, the same builds end as they should now, in processes that begin with nothing."""
        acts = [act for acts in self._scenario.rounds for act in acts]
        built = {(self._wanted.subject(act), act.machine): max(act.target, 0) for act in acts if act.kind == "build"}
        for (subject, machine), target in built.items():
            await self._at_once([Act("build", subject, target, machine=machine)])
        for machine in dict.fromkeys(act.machine for act in acts):
            await self._at_once([Act("begin", machine=machine)])

    async def _let_go(self) -> None:
        """Whatever happened, nothing lies on a disk that nobody can let go of."""
        for number, machine in enumerate(self._machines):
            if machine.disk.log.rows:
                await self._at_once([Act("prune", machine=number)])
                self.verdict.emptied(machine)

    def _has_lost(self) -> bool:
        """Did anybody lose something of the images that were made, or of what they were made of?"""
        return bool(self._acts.lost_bases) or any(self._registries.host(name).lost for name in TARGETS)

    def _is_cached(self, act: Act, pushed: Mapping[int, int]) -> bool:
        """Has the image that `act` is given as a cache all that it makes? `pushed`: by Dockerfile, how many of those
        that begin now may replace it."""
        subject = self._wanted.subject(act)
        given = act.kind == "build" and act.cache_from and not act.no_cache and subject in self.verdict.inline
        others = pushed.get(subject, 0) - int(act.target == 0)
        return given and not others and not self._has_lost() and not self._wanted.is_lied_to(self._wanted.made(act))

    def _start(self, act: Act, *, lossy: bool, cached: bool) -> asyncio.Future[Ended]:
        self._count += 1
        build = f"{self._count:012x}"
        machine = self._machines[act.machine % len(self._machines)]
        there = self.verdict.has_source(machine, act) and not self._has_lost()
        allowed = self._wanted.exits(act, lossy=lossy or bool(self._acts.lost_bases), there=there)
        doing = Doing(act, build, machine, allowed, self._points.harm, self.verdict.problems, cached)
        self._living[build] = doing
        doing.owner, future = self.loop.spawn(build, self._process(doing))
        future.add_done_callback(lambda future: self._over(doing, future))
        return future

    async def _process(self, doing: Doing) -> Ended:
        current.set(doing)
        await asyncio.sleep(doing.act.delay)
        try:
            await self._acts.do(doing)
        except RefledgerError as error:
            return Ended(doing.build, error.exit_code, f"{type(error).__name__}: {error}")
        return Ended(doing.build, 0)

    def _over(self, doing: Doing, future: asyncio.Future[Ended]) -> None:
        """The process of `doing` has ended, or died."""
        if self._living.pop(doing.build, None) is None:
            return
        error = None if future.cancelled() else future.exception()
        doing.process.calls.die()  # what it still holds goes with it
        if isinstance(error, Crashed):
            self.verdict.dead.add(doing.build)
            if self._points.power_lost:
                self._points.power_lost = False
                self._lose_power(doing.machine)
        elif error is not None:
            shown = "".join(traceback.format_exception(error))[-1500:]
            self.verdict.problems.append(f"a bug: {doing.act.kind} {doing.build} ended with {error!r}\n{shown}")
        elif not future.cancelled():
            doing.cached &= not self._points.struck
            self.verdict.process(doing, future.result())

    def _lose_power(self, machine: Machine) -> None:
        for other in [one for one in self._living.values() if one.machine is machine]:
            self.verdict.dead.add(other.build)
            assert other.owner is not None
            self.loop.kill(other.owner)
        machine.disk.power_loss()
        self.verdict.power_lost(machine)

    # ------------------------------------------------------------ what processes are given

    def _client(self, *_: object, **options: Any) -> Watching:
        doing = current.get()
        if doing.act.kind == "look":
            doing.problems.append(f"I13 {doing.build} only looks, and asks a registry")
        logins = {} if doing.act.stranger else {TARGETS[-1]: "builder"}
        client = self._registries.client(logins, observe=options.get("observe"))
        return Watching(client, doing, self._registries)

    def _mirrors(self, provider: Provider) -> tuple[Mirror, ...]:
        if provider.registry != BASES or not self._scenario.mirror:
            return ()
        return (Mirror(Provider.of(MIRROR, provider.repository)),)

    # ------------------------------------------------------------ what came of it

    def report(self, *, told: bool) -> Report:
        """See Report."""
        problems = tuple(self.verdict.problems)
        logs = enumerate(machine.events for machine in self._machines)
        return Report(
            problems=problems,
            points=self._points.points,
            offered=tuple(self._points.offered),
            struck=tuple(self._points.struck),
            trace=self._points.trace,
            crashes=self._crashes,
            events=Counter(event.type for machine in self._machines for event in machine.events),
            story=tuple(line for number, log in logs for line in story(number, log)) if problems or told else (),
        )
