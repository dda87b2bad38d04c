"""Layers on their way, alone: builds in several processes that want some of the same layers, of which some are
cancelled, from places that have them, have them wrong, have lost them, or show them to some only. No graphs, no steps:
so more runs a second than whole builds have, and more of what can go wrong between the waiters of one layer.
"""

from __future__ import annotations

import asyncio
import gzip
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache

from engine.errors import RefledgerError
from engine.exporters.move import Mover
from engine.exporters.reading import BlobReader
from engine.ledger import Ledger
from engine.refs import fetch, fill, kept, materializer, pull, spool
from engine.refs.fetch import Fetcher
from engine.refs.fill import FetchLimits
from engine.refs.materializer import Materializer
from engine.refs.places import Places
from engine.refs.ref import Layer, Local, Remote
from engine.together import together
from storage import durable, locks, partial, scratch
from storage.digest import sha256
from storage.interfaces.images import Descriptor, Mirror, Provider
from storage.layers import checked, readahead
from storage.layers.erofs import layers as erofs_layers
from storage.layers.erofs import mount as erofs_mount
from tests.registry_fixture import OCI_LAYER, layer_tar
from tests.simulation.chance import Chance, Crashed, Faults, Process
from tests.simulation.disk import Disk, DiskProcess
from tests.simulation.interleaving import interleaved
from tests.simulation.loop import Livelock, SimLoop, simulated_threads
from tests.simulation.mounting import content
from tests.simulation.paths import simulated_files
from tests.simulation.registry import MemoryRegistries
from tests.simulation.threads import Deadlock
from tests.storage.registry.kit import noise

LAYERS = 3
HOSTS = ("one.test", "two.test", "mirror.test")
TARGETS = (Provider.of("one.test", "pushed"), Provider.of("target.test", "pushed"))
FRIEND, STRANGER = "friend", "stranger"
STATES = ("good", "good", "good", "lost", "wrong", "friends only")
LIMITS = FetchLimits(range_bytes=700, parallel_bytes=1500, connections=3)
"""So that layers of a few KiB come in ranges, and the larger ones over several connections."""


DENSE = (
    spool, fill, pull, fetch, kept, materializer, partial, readahead, durable, locks, scratch, checked, erofs_layers,
    erofs_mount,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """A build in process `process` wants `layers` after `delay` seconds: mountable here, or at a target (`push`, -1 for
    here). Somebody cancels it after `cancel` seconds, 0 for never."""

    process: int
    layers: tuple[int, ...]
    delay: float
    cancel: float
    push: int = -1


@dataclass(frozen=True, slots=True)
class Case:
    """One run: what a place has of a layer by (host, layer), who asks as `FRIEND`, and what is wanted."""

    seed: int
    states: Mapping[tuple[int, int], str]
    friends: tuple[bool, ...]
    wishes: tuple[Wish, ...]
    mirrored: bool


@dataclass(slots=True)
class Run:
    """What came of a case: by wish, `ok`, `cancelled`, `crashed` or the error; and what should not be."""

    faults: Faults
    ends: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bytes: int = 0


def case(seed: int) -> Case:
    """The case of `seed`."""
    draw = Chance(seed)
    states = {(host, layer): draw.pick(STATES) for host in range(len(HOSTS)) for layer in range(LAYERS)}
    processes = 1 + draw.below(2)
    wishes = tuple(
        Wish(
            draw.below(processes),
            tuple(layer for layer in range(LAYERS) if draw.maybe(60)) or (0,),
            draw.below(20) / 100,
            (1 + draw.below(40)) / 100 if draw.maybe(25) else 0.0,
            draw.below(len(TARGETS)) if draw.maybe(25) else -1,
        )
        for _ in range(2 + draw.below(4))
    )
    return Case(seed, states, tuple(draw.maybe(60) for _ in range(processes)), wishes, draw.maybe(50))


@cache
def files(layer: int) -> dict[str, bytes]:
    """What the layer holds: from a hundred bytes to some KiB."""
    return {f"f{layer}": noise((100, 1000, 3000)[layer], seed=layer), "d/": b""}


@cache
def blob(layer: int) -> bytes:
    """The layer, compressed."""
    return gzip.compress(layer_tar(files(layer)), mtime=0)


@cache
def layers(mirrored: bool) -> tuple[Layer, ...]:
    """As an image's manifest and its providers tell of them; the last host is a mirror of the first, if it is asked."""
    providers = tuple(Provider.of(host, "images") for host in (HOSTS[:2] if mirrored else HOSTS))
    return tuple(
        Layer(sha256(layer_tar(files(one))), Descriptor(OCI_LAYER, sha256(blob(one)), len(blob(one))), providers)
        for one in range(LAYERS)
    )


def simulate(given: Case, planned: Mapping[int, int], *, dense: bool = False) -> Run:
    """Do what `given` says, while faults strike as `planned`, and look at what came of it. `dense`: threads take turns
    between any two statements of the modules in DENSE, not just where they wait or call the system."""
    draws, run = Chance(given.seed ^ 0xBEEF), Run(Faults(planned))
    loop = SimLoop(draws, max_turns=100_000)
    disk = Disk(draws, run.faults, loop.clock().now, loop.threads.pause)
    try:
        turns = interleaved(loop.threads.give_way, *DENSE) if dense else nullcontext()
        with simulated_files(), simulated_threads(loop), turns:
            try:
                loop.run(_World(given, run, loop, disk).main())
            except (Deadlock, Livelock) as error:
                run.problems.append(f"hangs: {error}")
    finally:
        disk.end()
    run.problems += [f"a bug: {what}" for what in (*loop.complaints, *loop.threads.failures)]
    return run


class _World:
    def __init__(self, given: Case, run: Run, loop: SimLoop, disk: Disk) -> None:
        self.case = given
        self.run = run
        self.loop = loop
        self.disk = disk
        self.layers = layers(given.mirrored)
        self.registries = MemoryRegistries(disk.chance, run.faults)
        self.pushed = {sha256(blob(one)) for wish in given.wishes if wish.push >= 0 for one in wish.layers}
        for name in (*HOSTS, TARGETS[1].registry):
            self.registries.host(name)
        for (number, layer), state in given.states.items():
            self._stock(number, layer, state)

    def _stock(self, number: int, layer: int, state: str) -> None:
        host = self.registries.host(HOSTS[number])
        digest = host.put_blob("images", blob(layer))
        if state == "lost":
            host.lose(digest)
        if state == "wrong":
            host.damage(digest)
        if state == "friends only":  # of the whole repository
            host.readers["images"] = frozenset({FRIEND})

    async def main(self) -> None:
        """All wishes, then what must be possible after them."""
        outcomes = await asyncio.gather(*map(self._start, range(len(self.case.friends))), return_exceptions=True)
        ends: dict[int, str] = {}
        for process, outcome in enumerate(outcomes):
            if isinstance(outcome, dict):
                ends |= outcome
            elif isinstance(outcome, RefledgerError):  # of the log
                ends |= {n: str(outcome) for n, wish in enumerate(self.case.wishes) if wish.process == process}
            elif isinstance(outcome, Crashed):
                ends |= {n: "crashed" for n, wish in enumerate(self.case.wishes) if wish.process == process}
            else:
                self.run.problems.append("a bug: " + "".join(traceback.format_exception(outcome))[-3000:])
        self.run.ends = [ends.get(number, "nothing") for number in range(len(self.case.wishes))]
        self._judge()
        self.run.faults.planned = {}
        await self._afterwards()

    def _start(self, number: int) -> asyncio.Future[dict[int, str]]:
        return self.loop.spawn(f"p{number}", self._process(f"p{number}", number))[1]

    async def _process(self, name: str, number: int) -> dict[int, str]:
        process = self.disk.process(name)
        ledger = Ledger(process.log, name)
        login = FRIEND if self.case.friends[number] else STRANGER
        client = self.registries.client(dict.fromkeys(HOSTS, login))
        places = Places(self._mirrors)
        mounts = process.mounts(name)
        fetcher = Fetcher(
            process.blobs(name), process.partials, client, process.locks, ledger, self.loop.clock(), parallel=2,
            limits=LIMITS, places=places,
        )  # fmt: skip
        materializer = Materializer(
            process.layers(name, mounts), process.snapshots(name, mounts), fetcher, process.locks, ledger,
            self.loop.clock(),
        )  # fmt: skip
        reader = BlobReader(materializer.blobs, client, ledger, self.loop.clock(), places)
        mover = Mover(client, client, reader, process.locks)
        mine = [(one, wish) for one, wish in enumerate(self.case.wishes) if wish.process == number]
        ends = await asyncio.gather(*(self._wish(one, wish, materializer, mover) for one, wish in mine))
        await ledger.flush()
        materializer.close()
        return {one: end for (one, _), end in zip(mine, ends, strict=True)}

    def _mirrors(self, provider: Provider) -> list[Mirror]:
        return [Mirror(Provider.of(HOSTS[2], "images"))] if self.case.mirrored and provider.registry == HOSTS[0] else []

    async def _wish(self, number: int, wish: Wish, materializer: Materializer, mover: Mover) -> str:
        await asyncio.sleep(wish.delay)
        task = asyncio.ensure_future(self._fulfil(number, wish, materializer, mover))
        if wish.cancel:
            self.loop.call_later(wish.cancel, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        except RefledgerError as error:
            return f"{type(error).__name__}: {error}"
        return "ok"

    async def _fulfil(self, number: int, wish: Wish, materializer: Materializer, mover: Mover) -> None:
        wanted = [self.layers[one] for one in wish.layers]
        if wish.push >= 0:
            target = TARGETS[wish.push]
            await together(mover.move(layer, target, f"wish {number}") for layer in wanted)
            host = self.registries.host(target.registry)
            for one, layer in zip(wish.layers, wanted, strict=True):
                assert layer.blob is not None
                if host.blob(target.repository, layer.blob.digest)[1] != blob(one) and self._may_be_wrong(wish, one):
                    continue
                if host.blob(target.repository, layer.blob.digest) != (200, blob(one)):
                    self.run.problems.append(f"I3 wish {number}: layer {one} at {target} is not what it should be")
            return
        ref = Remote("ref", tuple(wanted))
        local = await materializer.materialize(ref, vertex=f"v{number}", reason="run")
        self._look(f"wish {number}", wish.layers, local)

    def _may_be_wrong(self, wish: Wish, layer: int) -> bool:
        """Was the blob that the target is said to have damaged there from the start?"""
        return wish.push == 0 and self.case.states[0, layer] == "wrong"

    def _look(self, who: str, wanted: tuple[int, ...], local: Local) -> None:
        for one, lower in zip(wanted, local.lowers, strict=True):
            expected = {name.rstrip("/"): data for name, data in files(one).items() if not name.endswith("/")}
            if {name: data for name, data in content(lower).items() if name in expected} != expected:
                self.run.problems.append(f"I3 {who}: layer {one} is not what it should be")

    # ------------------------------------------------------------ what must be so

    def _judge(self) -> None:
        for number, (wish, end) in enumerate(zip(self.case.wishes, self.run.ends, strict=True)):
            if end == "ok" or (end == "cancelled" and wish.cancel) or self.run.faults.struck:
                continue
            if not all(self._obtainable(wish, layer) for layer in wish.layers):
                continue
            self.run.problems.append(f"wish {number} ended: {end}")
        self.run.problems += [*self._asked_too_early(), *self._asked_at_once()]
        self.run.bytes = sum(line.bytes for line in self.registries.layer_gets())

    def _obtainable(self, wish: Wish, layer: int) -> bool:
        """Has a place the layer that this wish's process may read?"""
        friend = self.case.friends[wish.process]
        private = {host for (host, _), state in self.case.states.items() if state == "friends only"}
        return any(
            state in {"good", "friends only"} and (friend or host not in private)
            for (host, one), state in self.case.states.items() if one == layer
        )  # fmt: skip

    def _asked_too_early(self) -> Iterator[str]:
        """I2: a layer's bytes are asked for after the event that says so is durable (a push has another one)."""
        log = self.disk.process("reader", Process("reader")).log
        requested = {
            digest: event.time
            for event in reversed(list(log.read(types=frozenset({"MaterializationRequested"}))))
            for digest in event.data["layers"]
        }
        zero = self.loop.clock().now() / 1e9 - self.loop.time()
        for line in self.registries.layer_gets():
            if line.name in self.pushed:
                continue
            if line.name not in requested or requested[line.name] / 1e9 - zero > line.began:
                yield f"I2 {line} came before it was asked for"

    def _asked_at_once(self) -> Iterator[str]:
        """I4: no two processes read one blob at a time, but to push it."""
        reads = [line for line in self.registries.layer_gets() if line.name not in self.pushed]
        for number, one in enumerate(reads):
            for other in reads[number + 1 :]:
                if one.name == other.name and one.process != other.process and other.began < one.ended:
                    yield f"I4 {one} while {other}"

    async def _afterwards(self) -> None:
        """Another process, undisturbed, has all layers that somebody has; and nothing is left of those before."""
        for number in range(len(HOSTS)):
            self.registries.host(HOSTS[number]).readers.clear()
        _, ended = self.loop.spawn("afterwards", self._again())
        try:
            await ended
        except Exception as error:
            self.run.problems.append("a bug: " + "".join(traceback.format_exception(error))[-3000:])

    async def _again(self) -> None:
        process = self.disk.process("afterwards")
        ledger, mounts = Ledger(process.log, "afterwards"), process.mounts("afterwards")
        fetcher = Fetcher(
            process.blobs("afterwards"), process.partials, self.registries.client(), process.locks, ledger,
            self.loop.clock(), limits=LIMITS,
        )  # fmt: skip
        materializer = Materializer(
            process.layers("afterwards", mounts), process.snapshots("afterwards", mounts), fetcher, process.locks,
            ledger, self.loop.clock(),
        )  # fmt: skip
        for one, layer in enumerate(self.layers):
            if not any(state in {"good", "friends only"} for (_, n), state in self.case.states.items() if n == one):
                continue
            if self.case.mirrored and all(self.case.states[host, one] in {"lost", "wrong"} for host in (0, 1)):
                continue
            mark = len(self.registries.log)
            try:
                local = await materializer.materialize(Remote("again", (layer,)), vertex=None, reason="run")
            except RefledgerError as error:
                self.run.problems.append(f"I5 afterwards: layer {one} cannot be had: {error}")
                continue
            self._look("afterwards", (one,), local)
            came = sum(line.bytes for line in self.registries.log[mark:])
            if came > 5 * len(blob(one)):  # what is left may be wrong, and two of three places
                self.run.problems.append(f"afterwards: {came} bytes came for layer {one} of {len(blob(one))}")
        materializer.close()
        self._check_leavings(process)

    def _check_leavings(self, process: DiskProcess) -> None:
        left = [name for name in process.leftovers() if not name.startswith("partial/") and "/p" not in name]
        if not self.run.faults.struck and left:
            self.run.problems.append(f"left behind: {left}")
