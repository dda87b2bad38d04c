"""Interrupted pulls go on where they stopped, whoever interrupted them and whoever goes on; wrong bytes never count."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import MaterializationError, RegistryError
from engine.refs.fill import FetchLimits
from engine.refs.ref import Layer, Remote
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.interfaces.blobs import ByteSource
from storage.interfaces.images import Descriptor
from storage.interfaces.registry import BlobStream
from storage.layers.directory import DirectoryLayers
from storage.locks import FileLocks
from storage.registry import RegistryClient
from tests.engine.refs.machine import KIB, SMALL, Machine, layer_of, open_files, threads
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_image
from tests.storage.layers.trees import file, make_tar
from tests.storage.registry.kit import noise
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

ONE_PIECE = FetchLimits()
IN_TURN = FetchLimits(range_bytes=256 * KIB, parallel_bytes=1 << 30)
CONTENT = noise(3 << 20, seed=7)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "root")
    yield made
    made.log.close()


@pytest.fixture
def image(registry: RegistryProcess, repository: str) -> dict[str, Any]:
    return push_image(registry.host, repository, [{"data": CONTENT}])


def blob_bytes(registry: RegistryProcess, layer: Layer) -> bytes:
    assert layer.blob is not None
    return registry.blob_path(layer.blob.digest).read_bytes()


def leave(machine: Machine, layer: Layer, data: bytes, offset: int = 0) -> None:
    """What a process that was killed left of the layer's blob."""
    assert layer.blob is not None
    place = machine.root / "partial" / f"sha256-{layer.blob.digest.hex}"
    place.mkdir(parents=True, exist_ok=True)
    (place / str(offset)).write_bytes(data)


def check_pulled(machine: Machine, layer: Layer) -> dict[str, Any]:
    """The layer is here and right, and nothing else is; returns what LayerPulled says."""
    assert layer.diff_id is not None
    assert (machine.root / "layers" / layer.diff_id.hex / "fs/data").read_bytes() == CONTENT
    assert list((machine.root / "partial").glob("*")) == []
    assert machine.lying_about() == []
    (pulled,) = machine.events("LayerPulled")
    return pulled


def ranges(proxy: FaultyProxy) -> list[str | None]:
    return [seen.headers.get("range") for seen in proxy.seen]


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("limits", [ONE_PIECE, IN_TURN, SMALL])
def test_a_fresh_pull_asks_for_every_byte_once(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], limits: FetchLimits
) -> None:
    layer = layer_of(image, registry.host)
    mark = registry.mark()
    asyncio.run(machine.pull([layer], limits=limits))
    pulled = check_pulled(machine, layer)
    gets = registry.layer_gets([image["layers"][0]["digest"]], since=mark)
    assert pulled["resumed_from"] == 0
    assert pulled["bytes"] == sum(line.bytes for line in gets) == image["layers"][0]["size"]
    assert len(gets) == (1 if limits is ONE_PIECE else 13)


@pytest.mark.parametrize("limits", [ONE_PIECE, IN_TURN, SMALL])
def test_a_pull_goes_on_from_what_another_process_left(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], limits: FetchLimits
) -> None:
    layer = layer_of(image, registry.host)
    leave(machine, layer, blob_bytes(registry, layer)[:1_000_000])
    asyncio.run(machine.pull([layer], limits=limits))
    pulled = check_pulled(machine, layer)
    assert pulled["resumed_from"] == 1_000_000
    assert pulled["bytes"] == image["layers"][0]["size"] - 1_000_000
    shown = machine.events("PullProgressed")[0]
    assert shown["bytes"] == 1_000_000


def test_only_the_holes_are_fetched(machine: Machine, registry: RegistryProcess, image: dict[str, Any]) -> None:
    data = blob_bytes(registry, layer := layer_of(image, registry.host))
    leave(machine, layer, data[: 200 * KIB])
    leave(machine, layer, data[512 * KIB : 1024 * KIB], 512 * KIB)
    leave(machine, layer, data[2048 * KIB :], 2048 * KIB)
    mark = registry.mark()
    with FaultyProxy(registry.host) as proxy:
        asyncio.run(machine.pull([layer_of(image, proxy.host)]))
        assert sorted(map(str, ranges(proxy))) == sorted(
            [f"bytes={200 * KIB}-{256 * KIB - 1}", f"bytes={256 * KIB}-{512 * KIB - 1}"]
            + [f"bytes={at * KIB}-{(at + 256) * KIB - 1}" for at in range(1024, 2048, 256)]
        )
    pulled = check_pulled(machine, layer)
    assert layer.blob is not None
    assert pulled["bytes"] == sum(line.bytes for line in registry.layer_gets([layer.blob.digest], since=mark))
    assert pulled["bytes"] + pulled["resumed_from"] == len(data)


def test_a_blob_that_is_all_here_is_asked_of_nobody(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    layer = layer_of(image, registry.host)
    leave(machine, layer, data := blob_bytes(registry, layer))
    mark = registry.mark()
    asyncio.run(machine.pull([layer]))
    pulled = check_pulled(machine, layer)
    assert (pulled["bytes"], pulled["resumed_from"]) == (0, len(data))
    assert registry.mark() == mark


@pytest.mark.parametrize("limits", [ONE_PIECE, IN_TURN, SMALL])
def test_a_cancelled_pull_keeps_what_came_and_nothing_else(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], limits: FetchLimits
) -> None:
    async def interrupted() -> None:
        with FaultyProxy(registry.host, Fault("GET", "/blobs/", rate=1 << 20)) as proxy:
            task = asyncio.create_task(machine.pull([layer_of(image, proxy.host)], limits=limits))
            await until(lambda: machine.kept() >= 150_000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(interrupted())
    assert threads() == []
    assert open_files(machine) == []
    assert machine.lying_about() == []
    assert list((machine.root / "layers").iterdir()) == []
    kept = machine.kept()
    asyncio.run(machine.pull([layer := layer_of(image, registry.host)], limits=limits))
    pulled = check_pulled(machine, layer)
    assert pulled["resumed_from"] == kept
    assert pulled["bytes"] == image["layers"][0]["size"] - kept


class Lingering(DirectoryLayers):
    """Takes its time to end after it failed."""

    failed, may_end = threading.Event(), threading.Event()

    def unpack(self, *args: Any) -> int:
        try:
            return super().unpack(*args)
        finally:
            self.failed.set()
            self.may_end.wait(PATIENCE)


def test_I4_who_waits_at_once_shares_one_pull_also_when_the_first_one_leaves(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    async def run() -> None:
        with FaultyProxy(registry.host, Fault("GET", "/blobs/", rate=1 << 20)) as proxy:
            ref = Remote("r", (layer_of(image, proxy.host),))
            async with machine.materializer(limits=ONE_PIECE) as one:
                waiters = []
                for number, vertex in enumerate("vwx", start=1):  # the first one begins the pull
                    waiters.append(asyncio.ensure_future(one.materialize(ref, vertex=vertex, reason="run")))
                    await until(lambda many=number: len(machine.events("MaterializationRequested")) == many)
                await until(lambda: machine.kept() >= 150_000)
                waiters[0].cancel()
                await asyncio.gather(*waiters[1:])
                assert waiters[0].cancelled()

    asyncio.run(run())
    check_pulled(machine, layer_of(image))
    assert len(machine.events("PullStarted")) == 1
    digest = image["layers"][0]["digest"]
    assert [asked["layers"] for asked in machine.events("MaterializationRequested")] == [[digest]] * 3
    assert [(got["bytes"], got["waited"]) for got in machine.events("Materialized")] == [(0, [digest])] * 2


def test_I4_who_waits_for_a_pull_that_fails_does_not_ask_the_same_provider_again(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    async def run() -> None:
        with FaultyProxy(registry.host, Fault("GET", "/blobs/", rate=1 << 20, cut_after=300_000)) as proxy:
            ref = Remote("r", (layer_of(image, proxy.host),))
            async with machine.materializer(limits=ONE_PIECE) as one:
                waiters = [asyncio.ensure_future(one.materialize(ref, vertex=v, reason="run")) for v in "vwx"]
                for ended in await asyncio.gather(*waiters, return_exceptions=True):
                    assert isinstance(ended, MaterializationError)
            assert len(proxy.seen) == 1

    asyncio.run(run())
    assert len(machine.events("MaterializationFailed")) == 3
    assert len(machine.events("PullStarted")) == 1


def test_I4_nothing_goes_on_behind_a_waiter_that_left_while_a_stored_blob_was_unpacked(machine: Machine) -> None:
    tar = make_tar(file("a", b"a" * 100_000))
    entered, go_on = threading.Event(), threading.Event()

    class Slow(DirectoryLayers):
        def unpack(self, diff_id: Digest, media_type: str, source: ByteSource) -> int:
            entered.set()
            go_on.wait(PATIENCE)
            return super().unpack(diff_id, media_type, source)

    async def run() -> None:
        blob = Descriptor("application/vnd.oci.image.layer.v1.tar", DirectoryBlobs(machine.root, owner="t").put(tar), 1)
        layer = Layer(sha256(tar), blob)
        pulling = asyncio.ensure_future(machine.pull([layer], store=Slow))
        await asyncio.to_thread(entered.wait, PATIENCE)
        pulling.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert FileLocks(machine.root / "locks").try_acquire(f"layer-{layer.name}") is None
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert machine.lying_about() == []
        assert list((machine.root / "layers").iterdir()) == []

    asyncio.run(run())


def test_I8_a_stored_blob_that_is_damaged_is_fetched_instead(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    layer = layer_of(image, registry.host)
    blobs = DirectoryBlobs(machine.root, owner="t")
    path = blobs.path(blobs.put(blob_bytes(registry, layer)))
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    asyncio.run(machine.pull([layer], limits=ONE_PIECE))
    assert check_pulled(machine, layer)["bytes"] == len(blob_bytes(registry, layer))
    assert machine.damaged == [image["layers"][0]["digest"]]
    assert not path.exists()


def test_a_pull_that_is_cancelled_while_it_fails_asks_no_other_provider(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    async def interrupted() -> None:
        with FaultyProxy(registry.host, Fault("GET", "/blobs/", cut_after=1000)) as broken:
            layer = layer_of(image, broken.host, registry.host)
            task = asyncio.create_task(machine.pull([layer], store=Lingering))
            await until(Lingering.failed.is_set)
            task.cancel()
            await asyncio.sleep(0.2)  # so that the cancellation has arrived
            Lingering.may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    mark = registry.mark()
    asyncio.run(interrupted())
    assert len(machine.events("PullStarted")) == 1
    assert threads() == []
    assert open_files(machine) == []
    assert len(registry.layer_gets([image["layers"][0]["digest"]], since=mark)) <= SMALL.connections


@pytest.mark.parametrize("limits", [ONE_PIECE, IN_TURN, SMALL])
def test_the_next_provider_goes_on_where_one_failed_in_passing(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], limits: FetchLimits
) -> None:
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", cut_after=100_000)) as broken:
        asyncio.run(machine.pull([layer := layer_of(image, broken.host, registry.host)], limits=limits))
    pulled = check_pulled(machine, layer)
    (failed,) = machine.events("PullFailed")
    assert (failed["class"], failed["provider"]["registry"]) == ("transport", broken.host)
    assert failed["bytes"] >= pulled["resumed_from"] >= 100_000
    assert pulled["bytes"] == image["layers"][0]["size"] - pulled["resumed_from"]
    assert pulled["provider"]["registry"] == registry.host


@pytest.mark.parametrize("limits", [ONE_PIECE, IN_TURN, SMALL])
@pytest.mark.parametrize("here", [0, 1_000_000])
def test_a_registry_without_ranges_sends_it_all_and_nothing_is_corrupted(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], limits: FetchLimits, here: int
) -> None:
    data = blob_bytes(registry, layer_of(image, registry.host))
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", strip=("range",))) as proxy:
        layer = layer_of(image, proxy.host)
        if here:
            leave(machine, layer, data[:here])
            leave(machine, layer, data[2_000_000:2_500_000], 2_000_000)
        asyncio.run(machine.pull([layer], limits=limits))
        assert len(proxy.seen) <= 2
    pulled = check_pulled(machine, layer)
    assert pulled["resumed_from"] == (here and here + 500_000)
    assert len(data) <= pulled["bytes"] < 2 * len(data)
    assert machine.events("PullFailed") == []


# ---------------------------------------------------------------- wrong bytes


@pytest.mark.parametrize("limits", [ONE_PIECE, SMALL])
@pytest.mark.parametrize("whole", [False, True])
def test_I3_damaged_leftovers_are_dropped_before_the_provider_is_blamed(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], limits: FetchLimits, whole: bool
) -> None:
    layer = layer_of(image, registry.host)
    data = blob_bytes(registry, layer)
    end = len(data) if whole else 1_000_000
    leave(machine, layer, data[:500_000] + bytes(10_000) + data[510_000:end])
    asyncio.run(machine.pull([layer], limits=limits))
    pulled = check_pulled(machine, layer)
    (failed,) = machine.events("PullFailed")
    assert failed["class"] == "corrupt"
    assert f"{end} bytes were left by an earlier pull" in failed["error"]
    assert failed["provider"] == pulled["provider"]
    assert (pulled["bytes"], pulled["resumed_from"]) == (len(data), 0)


def test_I3_a_provider_that_is_wrong_from_scratch_is_left_for_the_next(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    data = blob_bytes(registry, layer := layer_of(image, registry.host))
    leave(machine, layer, data[:100_000])
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", flip=True)) as lying:
        asyncio.run(machine.pull([layer_of(image, lying.host, registry.host)], limits=ONE_PIECE))
        assert len(lying.seen) == 2
    pulled = check_pulled(machine, layer)
    first, second = machine.events("PullFailed")
    assert "left by an earlier pull" in first["error"]
    assert "left by an earlier pull" not in second["error"]
    assert (pulled["bytes"], pulled["provider"]["registry"]) == (len(data), registry.host)


def test_I3_a_digest_that_is_wrong_at_the_end_names_the_provider(
    machine: Machine, registry: RegistryProcess, repository: str
) -> None:
    image = push_image(registry.host, repository, [{"data": noise(1 << 20, seed=8)}])
    blob = registry.blob_path(image["layers"][0]["digest"])
    kept = blob.read_bytes()
    # the gzip header's OS byte: everything unpacks, but it is another blob
    blob.write_bytes(kept[:9] + bytes([kept[9] ^ 1]) + kept[10:])
    with pytest.raises(MaterializationError, match="the registry's blob is not what its digest promises") as caught:
        asyncio.run(machine.pull([layer_of(image, registry.host)]))
    assert caught.value.kind == "corrupt"
    assert caught.value.exit_code == 4
    assert caught.value.where == f"{registry.host}/{repository}@{image['layers'][0]['digest']}"
    assert list((machine.root / "partial").glob("*")) == []
    assert list((machine.root / "layers").iterdir()) == []
    assert machine.lying_about() == []


def test_I3_a_wrong_diff_id_is_asked_of_one_provider_only(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    right = layer_of(image, registry.host, registry.host)
    wrong = Layer(diff_id=Digest(sha256(b"other")), blob=right.blob, providers=right.providers)
    mark = registry.mark()
    with pytest.raises(MaterializationError, match="diff ID"):
        asyncio.run(machine.pull([wrong], limits=ONE_PIECE))
    assert len(registry.layer_gets([image["layers"][0]["digest"]], since=mark)) == 1
    assert list((machine.root / "partial").glob("*")) == []
    assert list((machine.root / "layers").iterdir()) == []
    assert machine.events("ProviderLost") == [], "it gave what was promised"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "/blobs/", status=416),
        Fault("GET", "/blobs/", content_length=77),
        Fault("GET", "/blobs/", status=206, headers={"Content-Range": "bytes 7-9/10"}, body=b"abc"),
    ],
)
def test_an_answer_that_cannot_be_right_costs_nothing_of_what_is_here(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any], fault: Fault
) -> None:
    data = blob_bytes(registry, layer := layer_of(image, registry.host))
    leave(machine, layer, data[:1_000_000])
    with FaultyProxy(registry.host, fault) as odd:
        asyncio.run(machine.pull([layer_of(image, odd.host, registry.host)]))
    pulled = check_pulled(machine, layer)
    (failed,) = machine.events("PullFailed")
    assert (failed["provider"]["registry"], failed["bytes"]) == (odd.host, 0)
    assert pulled["resumed_from"] == 1_000_000


def test_a_layer_cut_short_by_its_maker_is_an_error_not_a_wait(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    layer = layer_of(image, registry.host)
    data = blob_bytes(registry, layer)
    with (
        FaultyProxy(registry.host, Fault("GET", "/blobs/", status=200, body=data[:-10])) as short,
        pytest.raises(MaterializationError, match="promised"),
    ):
        asyncio.run(machine.pull([layer_of(image, short.host)]))


# ---------------------------------------------------------------- several at once


class Counting(RegistryClient):
    """Counts the blobs and ranges that are read at the same time."""

    now = most = 0

    @asynccontextmanager
    async def blob(self, *args: Any, **kwargs: Any) -> AsyncIterator[BlobStream]:
        Counting.now += 1
        Counting.most = max(Counting.most, Counting.now)
        try:
            async with super().blob(*args, **kwargs) as stream:
                yield stream
        finally:
            Counting.now -= 1


@pytest.mark.parametrize(("limits", "most"), [(SMALL, 4), (IN_TURN, 2)])
def test_connections_are_bounded_over_all_layers(
    machine: Machine, registry: RegistryProcess, repository: str, limits: FetchLimits, most: int
) -> None:
    image = push_image(registry.host, repository, [{"data": noise(2 << 20, seed)} for seed in range(3)])
    Counting.most = 0
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", rate=4 << 20)) as proxy:
        layers = [layer_of(image, proxy.host, index=i) for i in range(3)]
        asyncio.run(machine.pull(layers, limits=limits, client=Counting))
    assert Counting.most == most
    assert Counting.now == 0
    assert len(machine.events("LayerPulled")) == 3


class OneAtATime(RegistryClient):
    """As for a registry that refuses a second connection."""

    busy = refused = 0

    @asynccontextmanager
    async def blob(self, *args: Any, **kwargs: Any) -> AsyncIterator[BlobStream]:
        if OneAtATime.busy:
            OneAtATime.refused += 1
            raise RegistryError("one at a time", kind="transport", status=429)
        OneAtATime.busy = 1
        try:
            async with super().blob(*args, **kwargs) as stream:
                yield stream
        finally:
            OneAtATime.busy = 0


def test_a_registry_that_bounds_connections_is_asked_by_one_alone(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    layer = layer_of(image, registry.host)
    asyncio.run(machine.pull([layer], client=OneAtATime))
    assert OneAtATime.refused == 3
    assert check_pulled(machine, layer)["bytes"] == image["layers"][0]["size"]
    assert machine.events("PullFailed") == []


def test_two_layers_of_one_blob_do_not_meet_in_it(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    right = layer_of(image, registry.host)
    wrong = Layer(diff_id=Digest(sha256(b"other")), blob=right.blob, providers=right.providers)

    async def both() -> list[Any]:
        return list(await asyncio.gather(machine.pull([right]), machine.pull([wrong]), return_exceptions=True))

    good, bad = asyncio.run(both())
    assert not isinstance(good, BaseException)
    assert isinstance(bad, MaterializationError)
    check_pulled(machine, right)


# ---------------------------------------------------------------- the disk


def test_a_full_disk_gets_back_what_the_pull_took(
    machine: Machine, registry: RegistryProcess, image: dict[str, Any]
) -> None:
    small = machine.root / "partial"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(MaterializationError, match="space") as caught:
            asyncio.run(machine.pull([layer_of(image, registry.host, registry.host)]))
        assert caught.value.kind == "disk"
        assert len(machine.events("PullFailed")) == 1
        assert list(small.iterdir()) == []
        assert machine.lying_about() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
