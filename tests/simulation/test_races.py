"""Processes that share a root, switched at every system call: what storage/ does for each of them holds for all, also
when one is killed anywhere. The code is the real one, without an engine around it."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.events import BuildCompleted, BuildStarted, to_data
from engine.ledger import Ledger
from storage.cachemounts import DirectoryCacheMounts
from storage.digest import sha256
from storage.errors import RefledgerError
from storage.interfaces.images import Descriptor
from storage.interfaces.log import NewEvent
from storage.layout.source import layout_entries
from storage.layout.target import REF_NAME, try_enter
from storage.media_types import MANIFEST
from storage.partial import lock_name
from storage.scratch import Scratch
from storage.sweep import sweep
from storage.usage import DiskItems, measure
from tests.simulation.chance import Chance, Crashed, Faults
from tests.simulation.disk import Disk, DiskProcess
from tests.simulation.loop import SimLoop, simulated_threads
from tests.simulation.paths import simulated_files
from tests.simulation.recovery import open_root
from tests.storage.layers.trees import TAR, diff_id, file, make_tar
from tools import collecting, roots

SEEDS = 40 * (50 if os.environ.get("REFLEDGER_LONG") else 1)
LAYER = make_tar(file("etc/name", b"base"))
BLOBS = (b"one blob", b"another blob")
CRASH = -1

LOADED = (Ledger,)
"""The modules whose threads are simulated are those that are loaded."""


@pytest.fixture(autouse=True, scope="module")
def _files() -> Iterator[None]:
    with simulated_files():
        yield


def _furnish(tree: Path) -> None:
    (tree / "furniture").write_bytes(b"abc")


@dataclass
class Race:
    """One run: what came of each process, by name; the disk, to look at afterwards."""

    seed: int
    disk: Disk
    ended: dict[str, Any] = field(default_factory=dict)

    @property
    def after(self) -> DiskProcess:
        """A process that comes when all others are gone."""
        return self.disk.process("after")

    def survivors(self) -> list[str]:
        """Who was not killed; whatever else went wrong is raised."""
        for outcome in self.ended.values():
            if isinstance(outcome, BaseException) and not isinstance(outcome, Crashed):
                raise outcome
        return [name for name, outcome in self.ended.items() if not isinstance(outcome, Crashed)]


Work = Callable[[DiskProcess], Any]


class _Kills(Faults):
    """Those that end a process: what can but refuse, or wait, is no point here."""

    def at(self, point: str, *kinds: str) -> str:
        return super().at(point, *kinds) if not self.planned or kinds[CRASH] == "crash" else ""


def race(seed: int, works: dict[str, Work], prepare: Work | None = None) -> Race:
    """Run `works`, each in a process of its own; in two of three seeds, a process is killed at some point."""
    draws, faults = Chance(seed), _Kills()
    loop = SimLoop(draws)
    race = Race(seed, Disk(draws, faults, loop.clock().now, loop.threads))

    async def begin(name: str, work: Work) -> Any:
        return await asyncio.to_thread(work, race.disk.process(name))

    async def main() -> None:
        if prepare is not None:
            with open_root(process := race.disk.process("before")):
                prepare(process)
        if seed % 3:
            faults.planned = {faults.points + 1 + draws.below(40): CRASH}
        futures = {name: loop.spawn(name, begin(name, work))[1] for name, work in works.items()}
        for name, future in futures.items():
            try:
                race.ended[name] = await future
            except (Crashed, RefledgerError, OSError, AssertionError) as outcome:
                race.ended[name] = outcome
        faults.planned = {}

    with simulated_threads(loop):
        loop.run(main())
    return race


@contextmanager
def racing(seed: int, works: dict[str, Work], prepare: Work | None = None) -> Iterator[Race]:
    """As `race`; a failure says which seed it is of."""
    found = race(seed, works, prepare)
    try:
        yield found
    except (AssertionError, RefledgerError, OSError) as error:
        raise AssertionError(f"seed {seed}: {error!r}, ended {found.ended}") from error
    finally:
        found.disk.end()


def nothing(_process: DiskProcess) -> None:
    """The root is there."""


# ---------------------------------------------------------------- locks


def test_I4_a_lock_has_one_holder_or_some_that_share_it() -> None:
    for seed in range(SEEDS):
        inside: dict[str, bool] = {}
        taken: list[str] = []

        def work(process: DiskProcess, inside: dict[str, bool] = inside, taken: list[str] = taken) -> None:
            for number in range(4):
                shared = (number + len(process.name)) % 2 == 0
                lock = process.locks.try_acquire("x", shared=shared)
                if lock is None:
                    process.calls.pause()
                    continue
                with lock:
                    inside[process.name] = shared
                    living = [shared for name, shared in inside.items() if process.disk.process(name).alive]
                    assert len(living) == 1 or all(living)
                    taken.append(process.name)
                    process.calls.pause()
                    del inside[process.name]

        with racing(seed, {"a": work, "bb": work, "ccc": work}, nothing) as found:
            found.survivors()
            assert taken
            lock = found.after.locks.try_acquire("x")
            assert lock is not None
            lock.release()
            assert found.after.leftovers() == []


# ---------------------------------------------------------------- roots


def test_a_new_root_can_be_opened_by_several_at_once() -> None:
    def work(process: DiskProcess) -> None:
        with open_root(process):
            pass

    for seed in range(SEEDS):
        with racing(seed, {"a": work, "b": work, "c": work}) as found:
            found.survivors()
            work(found.after)
            assert (found.after.path / "format").read_bytes() == b"1\n"


def test_I12_recovery_takes_nothing_from_a_build_that_begins_or_ends() -> None:
    def build(process: DiskProcess) -> None:
        with open_root(process) as root, roots.owning(root, process.name):
            roots.recover(root, process.name)
            blobs = process.blobs(process.name)
            for data in BLOBS:
                writer = blobs.writer()
                writer.write(data)
                writer.commit()
            process.layers(process.name).unpack(diff_id(LAYER), TAR, io.BytesIO(LAYER))

    def twice(process: DiskProcess) -> None:
        build(process)
        build(process)  # looks for the dead while others write

    for seed in range(SEEDS):
        with racing(seed, {"a": twice, "b": twice, "c": build}) as found:
            if found.survivors():
                assert set(found.after.stored().blobs) >= set(map(sha256, BLOBS))
                assert found.after.layers("after").check(diff_id(LAYER)) == ""
            build(found.after)
            assert found.after.leftovers() == []


def test_I12_a_build_ends_once_in_the_log_however_many_find_it_dead() -> None:
    """And one that ends while somebody looks is not said to have died."""

    def build(process: DiskProcess) -> None:
        name = process.name
        with open_root(process) as root, roots.owning(root, name):
            roots.recover(root, name)
            started = BuildStarted("dockerfile.v0", str(sha256(b"")), {}, None, "1", {})
            root.log.append(NewEvent(f"build/{name}", "BuildStarted", to_data(started), name))
            for _ in range(10):
                process.calls.pause()
            root.log.append(NewEvent(f"build/{name}", "BuildCompleted", to_data(BuildCompleted(())), name))

    for seed in range(2 * SEEDS):
        with racing(seed, {"a": build, "b": build, "c": build, "d": build}) as found:
            survivors = found.survivors()
            build(found.after)
            ends: dict[str, list[str]] = {}
            for event in found.after.log.read():
                if event.type != "BuildStarted":
                    ends.setdefault(event.build or "", []).append(event.type)
            for name in (*survivors, "after"):
                assert ends.pop(name) == ["BuildCompleted"]
            assert all(len(types) == 1 for types in ends.values())
            assert found.after.leftovers() == []


# ---------------------------------------------------------------- what is stored


@pytest.mark.parametrize("damaged", [False, True])
def test_I6_a_blob_that_was_put_is_here(damaged: bool) -> None:
    def prepare(process: DiskProcess) -> None:
        digest = process.blobs("before").put(BLOBS[0])
        if damaged:
            process.damage(process.blobs("before").path(digest))

    def work(process: DiskProcess) -> None:
        blobs = process.blobs(process.name, lost=lambda digest, problem: None)
        for data in BLOBS:
            blobs.put(data)
        for data in BLOBS:
            assert blobs.get(sha256(data)) == data

    def check(process: DiskProcess) -> None:
        blobs = process.blobs(process.name, lost=lambda digest, problem: None)
        for data in BLOBS:
            blobs.sound(sha256(data))

    for seed in range(SEEDS):
        with racing(seed, {"a": work, "b": work, "c": check}, prepare) as found:
            if {"a", "b"} & set(found.survivors()):
                for data in BLOBS:
                    assert found.after.blobs("after").get(sha256(data)) == data


def test_I4_layers_that_several_lay_out_are_whole() -> None:
    """Without the lock that the engine holds: publishing is safe by itself."""

    def work(process: DiskProcess) -> None:
        layers = process.layers(process.name)
        layers.unpack(diff_id(LAYER), TAR, io.BytesIO(LAYER))
        assert layers.check(diff_id(LAYER)) == ""

    for seed in range(SEEDS):
        with racing(seed, {"a": work, "b": work, "c": work}, nothing) as found:
            if found.survivors():
                assert found.after.stored().layers == [diff_id(LAYER)]
                assert found.after.layers("after").check(diff_id(LAYER)) == ""


def test_I4_what_came_of_a_pull_is_one_process_s_at_a_time() -> None:
    data = bytes(range(100))
    blob = Descriptor(TAR, sha256(data), len(data))

    def pull(process: DiskProcess) -> bool:
        for _ in range(3):
            lock = process.locks.try_acquire(lock_name(blob.digest))
            if lock is None:
                process.calls.pause()
                continue
            with lock:
                partial = process.partials.open(blob)
                for start, end in partial.gaps():
                    for at in range(start, end, 30):
                        partial.write(at, data[at : min(end, at + 30)])
                assert partial.read(0, 100) == data
                if process.name == "a":
                    partial.discard()
                partial.close()
                return True
        return False

    def sweep(process: DiskProcess) -> None:
        process.partials.sweep(process.disk.now() / 1e9 + 1, process.locks)

    for seed in range(SEEDS):
        with racing(seed, {"a": pull, "b": pull, "c": sweep}, nothing) as found:
            found.survivors()
            assert pull(found.after)


def test_several_builds_that_begin_at_once_remove_what_a_dead_one_left() -> None:
    def leave(process: DiskProcess) -> None:
        for _ in range(2):
            left = Scratch(process.path / "tmp", "dead").directory()
            (left / "d/e").mkdir(parents=True)
            (left / "d/f").write_bytes(b"x")
            (left / "d/e/f").write_bytes(b"y")

    def begin(process: DiskProcess) -> list[str]:
        return sweep(process.path / "tmp", lambda owner: owner != "dead", process.name)

    def prune(process: DiskProcess) -> list[str]:
        with open_root(process) as root, collecting.collector(root) as owner:
            roots.recover(root, owner)
        return []

    def build(process: DiskProcess) -> list[str]:
        with open_root(process) as root, roots.owning(root, process.name):
            roots.recover(root, process.name)
        return []

    for seed in range(SEEDS):
        with racing(seed, {"a": prune, "b": build, "c": prune}, leave) as found:
            found.survivors()
        with racing(seed, {"a": begin, "b": begin, "c": begin}, leave) as found:
            told = [name for one in found.survivors() for name in found.ended[one]]
            assert len(told) == len(set(told)), "one of them removed it"
            sweep(found.after.path / "tmp", lambda _owner: False, "after")
            assert found.after.leftovers() == []


def test_a_cache_mount_stays_what_it_is_while_a_step_has_it() -> None:
    cache = sha256(b"cache")

    def step(process: DiskProcess) -> None:
        owner = process.name
        mounts = DirectoryCacheMounts(process.path / "cache", process.path / "tmp", owner, process.locks)
        for _ in range(3):
            held = mounts.try_acquire(cache, "shared")
            if held is None:
                process.calls.pause()
                continue
            try:
                if not held.exists():
                    held.fill(_furnish)
                assert (held.path / "furniture").read_bytes() == b"abc"
                process.calls.pause()
                assert (held.path / "furniture").read_bytes() == b"abc"
            finally:
                held.release()

    def collect(process: DiskProcess) -> None:
        items = DiskItems(process.path, process.name)
        for _ in range(4):
            lock = process.locks.try_acquire(f"cache-{cache.hex}-0")
            if lock is not None:
                with lock:
                    taken = items.take(f"cachemount/{cache.hex}/0")
                items.discard(taken)

    for seed in range(SEEDS):
        with racing(seed, {"a": step, "b": step, "c": collect}, nothing) as found:
            found.survivors()
            step(found.after)


def test_tags_that_several_write_into_a_layout_are_all_there() -> None:
    def tag(process: DiskProcess) -> None:
        layout = process.path.parent / "layout"
        blobs = type(process.blobs("x"))(layout, owner=process.name)
        data = b'{"of": "%s"}' % process.name.encode()
        entry = {
            "mediaType": MANIFEST, "digest": blobs.put(data), "size": len(data), "annotations": {REF_NAME: process.name}
        }
        while not try_enter(layout, [entry]):
            pass  # each look is a system call, and lets others go on

    for seed in range(SEEDS):
        with racing(seed, {"a": tag, "b": tag, "c": tag}, nothing) as found:
            survivors = found.survivors()
            tag(found.after)
            layout = found.after.path.parent / "layout"
            entries = {entry.annotations[REF_NAME]: entry.digest for entry in layout_entries(layout, str(layout))}
            assert entries.keys() >= {*survivors, "after"}
            for name, digest in entries.items():
                blobs = type(found.after.blobs("x"))(layout, owner="after")
                assert blobs.get(digest) == b'{"of": "%s"}' % name.encode()
            assert [path.name for path in layout.iterdir() if path.name.endswith(".part")] == []


def test_a_root_can_be_measured_while_it_changes() -> None:
    def work(process: DiskProcess) -> None:
        process.blobs(process.name).put(BLOBS[0])
        process.layers(process.name).unpack(diff_id(LAYER), TAR, io.BytesIO(LAYER))
        items = DiskItems(process.path, process.name)
        items.discard(items.take(f"layer/{diff_id(LAYER)}"))

    def look(process: DiskProcess) -> None:
        for _ in range(3):
            measured = measure(process.path)
            assert measured.total > 0
            process.calls.pause()

    for seed in range(SEEDS):
        with racing(seed, {"a": work, "b": look}, nothing) as found:
            found.survivors()
