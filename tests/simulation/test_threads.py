"""Simulated threads: they take turns by the seed, what cannot go on is found, and none is left."""

from __future__ import annotations

import asyncio
import threading as real_threading
from pathlib import Path
from typing import Any

import pytest

import storage.durable
from engine.refs.spool import Abandoned, Spool
from storage.digest import Hasher, sha256
from storage.durable import FileSystemSync
from storage.errors import VerificationError
from storage.interfaces.images import Descriptor
from storage.layers.readahead import ReadAhead
from tests.simulation.chance import Chance, Crashed
from tests.simulation.loop import SimLoop, simulated_threads
from tests.simulation.threads import Deadlock, Threads

DATA = bytes(range(256)) * 20
BLOB = Descriptor("application/octet-stream", sha256(DATA), len(DATA))


class Partial:
    """PartialBlob in memory, as far as a spool needs it."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, offset: int, data: bytes) -> None:
        assert offset == len(self.data)
        self.data += data

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def gaps(self) -> list[tuple[int, int]]:
        return [(len(self.data), len(DATA))]

    def discard(self) -> None:
        self.data = b""

    def close(self) -> None:
        pass


def read_all(spool: Spool, loop: SimLoop) -> list[int]:
    sizes = []
    while chunk := spool.read():
        sizes.append(len(chunk))
        loop.threads.pause()
    return sizes


async def stream(loop: SimLoop, spool: Spool, upto: int = len(DATA)) -> list[int]:
    """What the reading thread got, piece by piece, while the loop and its threads wrote."""
    reading = asyncio.ensure_future(asyncio.to_thread(read_all, spool, loop))
    for start in range(0, upto, 1000):
        await asyncio.to_thread(spool.write, start, DATA[start : min(start + 1000, upto)])
        await asyncio.sleep(0)
    return await reading


def spooled(seed: int) -> tuple[int, ...]:
    loop = SimLoop(Chance(seed))
    with simulated_threads(loop):
        return tuple(loop.run(stream(loop, Spool(Partial(), BLOB))))


def test_the_same_seed_gives_the_same_order_of_turns() -> None:
    for seed in range(20):
        assert spooled(seed) == spooled(seed)


def test_other_seeds_give_other_orders() -> None:
    assert len({spooled(seed) for seed in range(100)}) > 6
    assert {sum(spooled(seed)) for seed in range(100)} == {len(DATA)}


def test_no_thread_of_the_operating_system_is_made() -> None:
    before = real_threading.active_count()
    spooled(1)
    assert real_threading.active_count() == before
    assert vars(storage.durable)["threading"] is real_threading


def test_a_lost_wakeup_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Any, offset: int, data: bytes) -> None:
        self._partial.write(offset, data)
        with self._news:
            self._written += 1  # and nobody is told

    monkeypatch.setattr(Spool, "write", forgetful)
    with pytest.raises(Deadlock, match=r"spool\.py:\d+ read"):
        for seed in range(20):
            spooled(seed)


def test_a_wakeup_lost_between_looking_and_waiting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Any, size: int = -1, /) -> bytes:
        while self._hasher.size < self._blob.size:
            if data := self._partial.read(self._hasher.size, size if size >= 0 else 1 << 20):
                self._hasher.update(data)
                return bytes(data)
            with self._news:  # what was written since is not looked at again
                if self._abandoned:
                    raise Abandoned
                self._news.wait()
        return b""

    monkeypatch.setattr(Spool, "read", hasty)
    found = 0
    for seed in range(50):
        try:
            spooled(seed)
        except Deadlock:
            found += 1
    assert 0 < found < 50, "it depends on the order"


def test_wrong_bytes_and_abandoning_end_the_reader() -> None:
    async def give_up(loop: SimLoop) -> None:
        spool = Spool(Partial(), BLOB)
        reading = asyncio.ensure_future(asyncio.to_thread(read_all, spool, loop))
        await asyncio.to_thread(spool.write, 0, DATA[:1000])
        await asyncio.sleep(1)
        spool.abandon()
        with pytest.raises(Abandoned):
            await reading

    async def wrong(loop: SimLoop) -> None:
        other = Descriptor(BLOB.media_type, sha256(b"other"), BLOB.size)
        with pytest.raises(VerificationError):
            await stream(loop, Spool(Partial(), other))

    for main in (give_up, wrong):
        for seed in range(20):
            loop = SimLoop(Chance(seed))
            with simulated_threads(loop):
                loop.run(main(loop))


def test_reading_ahead_ends_with_its_thread() -> None:
    """The thread that decompresses is stopped by whoever reads, at whatever point it is."""

    class Source:
        def __init__(self) -> None:
            self.left = 20

        def read(self, size: int = -1, /) -> bytes:
            self.left -= 1
            return b"x" * 1000 if self.left > 0 else b""

    def read_some(threads: Threads, chunks: int) -> int:
        with ReadAhead(Source(), "application/vnd.oci.image.layer.v1.tar", Hasher(), 1 << 30) as ahead:
            return sum(len(ahead.read()) for _ in range(chunks))

    for seed in range(30):
        loop = SimLoop(Chance(seed))
        with simulated_threads(loop) as threads:

            async def main(threads: Threads = threads, chunks: int = seed % 4) -> int:
                return await asyncio.to_thread(read_some, threads, chunks)

            loop.run(main())
            assert threads.waiting() == []


def test_one_flush_serves_all_who_wait_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def flushes(seed: int) -> int:
        loop = SimLoop(Chance(seed))
        with simulated_threads(loop) as threads:
            written: list[int] = []
            durable: list[int] = []

            def sync(_fd: object) -> None:
                seen = list(written)
                threads.pause()
                durable.extend(seen)

            monkeypatch.setattr("storage.durable.flush_file_system", sync)
            flushing = FileSystemSync(tmp_path)

            def write(number: int) -> None:
                with flushing.watched() as flush:
                    written.append(number)
                    flush()
                assert number in durable

            async def main() -> None:
                await asyncio.gather(*(asyncio.to_thread(write, number) for number in range(5)))

            loop.run(main())
            return flushing.flushes

    assert {flushes(seed) for seed in range(50)} >= {2, 3}


def test_a_crash_unwinds_threads_wherever_they_wait() -> None:
    async def main(loop: SimLoop) -> None:
        spool = Spool(Partial(), BLOB)

        async def die() -> None:
            await asyncio.sleep(loop.turns % 7 / 100)
            raise Crashed

        await asyncio.gather(stream(loop, spool, upto=4000), die())

    for seed in range(50):
        loop = SimLoop(Chance(seed))
        with simulated_threads(loop) as threads, pytest.raises(Crashed):
            loop.run(main(loop))
        assert threads.waiting() == []


def test_a_thread_pool_does_all_and_its_futures_can_be_waited_for() -> None:
    def work(threads: Threads) -> list[int]:
        from tests.simulation.threads import ThreadPoolExecutor

        with ThreadPoolExecutor(threads, 2) as pool:
            futures = [pool.submit(lambda number=number: number * number) for number in range(10)]
            return [future.result() for future in futures]

    loop = SimLoop(Chance(3))

    async def main() -> list[int]:
        return await asyncio.to_thread(work, loop.threads)

    assert loop.run(main()) == [number * number for number in range(10)]
