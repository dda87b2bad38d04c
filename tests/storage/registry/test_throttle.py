"""What a host is spared: requests a second, and how many are open at once; and that nobody waits for himself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider
from storage.registries import HostSettings, Registries
from storage.registry import Limits, RegistryClient
from storage.registry.throttle import Throttle
from storage.uploads import UploadSessions
from tests.faulty import Answering, Fault, FaultyProxy, LocalServer, Seen, write_answer
from tests.registry_fixture import RegistryProcess, free_port, push_blob
from tests.storage.registry.kit import described, fetched, missing_digest, noise, settings, stream_of, use
from tests.waiting import PATIENCE, until

DATA = b"some layer"


def test_requests_a_second(registry: RegistryProcess, repository: str) -> None:
    """A burst of a second's worth, then an even pace; a standing clock shows who waits how long."""
    slept: list[float] = []
    registries = settings(**{registry.host: HostSettings(requests_per_second=2.0)})

    async def work(client: RegistryClient) -> None:
        for _ in range(5):
            await client.exists(Provider.of(registry.host, repository), missing_digest())

    use(work, slept=slept, clock=lambda: 1_000_000.0, registries=registries)
    assert slept == [0.5, 1.0, 1.5]


def test_bounds_are_of_one_host(registry: RegistryProcess, second_registry: RegistryProcess, repository: str) -> None:
    slept: list[float] = []
    registries = settings(**{registry.host: HostSettings(requests_per_second=1.0)})

    async def work(client: RegistryClient) -> None:
        for host in (registry.host, second_registry.host, second_registry.host):
            await client.exists(Provider.of(host, repository), missing_digest())

    use(work, slept=slept, clock=lambda: 1_000_000.0, registries=registries)
    assert slept == []


def test_waiting_for_a_turn_can_be_cancelled_and_costs_nobody_a_turn() -> None:
    async def main() -> None:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            await asyncio.sleep(3600)

        throttle = Throttle(HostSettings(requests_per_second=1.0, connections=2), lambda: 5.0, sleep)
        await throttle.enter("GET", aside=False)
        for _ in range(2):
            waiting = asyncio.create_task(throttle.enter("GET", aside=False))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert waits == [1.0, 1.0], "the one that went away is not waited for"

    asyncio.run(main())


def test_clock_that_is_set_back_stops_nobody() -> None:
    async def main() -> None:
        now, waits = [1_000_000.0], []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        throttle = Throttle(HostSettings(requests_per_second=1.0), lambda: now[0], sleep)
        await throttle.enter("GET", aside=False)
        now[0] = 10.0
        await throttle.enter("GET", aside=False)
        await throttle.enter("GET", aside=False)
        assert waits == [1.0]

    asyncio.run(main())


class Counting(LocalServer):
    """Answers slowly, and no request before `wanted` were open at once; `most` were."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.open = self.most = 0
        self.wanted = wanted

    async def respond(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        await until(lambda: self.most >= self.wanted)
        await asyncio.sleep(0.02)
        write_answer(writer, 200, {"Content-Type": "text/plain"}, DATA)
        self.open -= 1


@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_are_open_at_once_than_allowed(connections: int) -> None:
    with Counting(connections) as server:
        registries = settings(**{server.host: HostSettings(connections=connections)})

        async def work(client: RegistryClient) -> None:
            provider = Provider.of(server.host, "a/b")
            await asyncio.gather(*(fetched(client, provider, described(DATA)) for _ in range(9)))

        use(work, registries=registries)
    assert server.most == connections


def test_connection_is_held_until_the_answer_is_read(registry: RegistryProcess, repository: str) -> None:
    data = noise(2_000_000)
    push_blob(registry.host, repository, data)
    provider, blob = Provider.of(registry.host, repository), described(data)

    async def work(client: RegistryClient) -> None:
        async with client.blob(provider, blob) as stream:
            pieces = aiter(stream)
            await anext(pieces)
            other = asyncio.create_task(client.exists(provider, blob.digest))
            await asyncio.sleep(0.2)
            assert not other.done()
        assert await other is True

    use(work, registries=settings(**{registry.host: HostSettings(connections=1)}))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", times=1, status=503), Fault("GET", times=1, cut_after=3), Fault("GET", times=1, status=404),
        Fault("GET", times=1, flip=True), Fault("GET", times=1, stall_after=3),
    ],
    ids=["503", "cut", "404", "damaged", "stalled"],
)  # fmt: skip
def test_failures_give_their_connection_back(registry: RegistryProcess, repository: str, fault: Fault) -> None:
    push_blob(registry.host, repository, DATA)
    with FaultyProxy(registry.host, replace(fault)) as proxy:
        provider = Provider.of(proxy.host, repository)

        async def work(client: RegistryClient) -> None:
            with suppress(RegistryError, VerificationError):
                await fetched(client, provider, described(DATA))
            assert (await asyncio.wait_for(fetched(client, provider, described(DATA)), PATIENCE))[0] == DATA

        stall = 1.0 if fault.silent else Limits().stall_seconds  # elsewhere a busy machine must not look like a stall
        use(work, registries=settings(**{proxy.host: HostSettings(connections=1)}), stall_seconds=stall)


def test_refused_connection_gives_its_place_back() -> None:
    host = f"127.0.0.1:{free_port()}"

    async def work(client: RegistryClient) -> None:
        for _ in range(2):
            with pytest.raises(RegistryError, match="refused the connection"):
                await asyncio.wait_for(client.exists(Provider.of(host, "a/b"), missing_digest()), PATIENCE)

    use(work, registries=settings(**{host: HostSettings(connections=1)}))


def test_layer_is_copied_within_one_host_over_one_connection(registry: RegistryProcess, repository: str) -> None:
    """What reads for an upload does not wait for the upload."""
    data = noise(2_000_000)
    push_blob(registry.host, repository, data)
    blob = described(data)
    source = Provider.of(registry.host, repository)

    async def work(client: RegistryClient) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            async with client.blob(source, blob) as stream:
                async for chunk in stream:
                    yield chunk

        copies = [client.upload(Provider.of(registry.host, f"{repository}-{n}"), blob, chunks) for n in range(3)]
        await asyncio.wait_for(asyncio.gather(*copies), PATIENCE)
        assert await client.exists(Provider.of(registry.host, f"{repository}-2"), blob.digest)

    use(work, registries=settings(**{registry.host: HostSettings(connections=1)}))


def test_layers_are_copied_both_ways_between_hosts_of_one_connection(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    data = noise(2_000_000)
    hosts = [registry.host, second_registry.host]
    for host in hosts:
        push_blob(host, repository, data)
    blob = described(data)

    async def work(client: RegistryClient) -> None:
        async def copy(source: str, target: str) -> None:
            async def chunks() -> AsyncIterator[bytes]:
                async with client.blob(Provider.of(source, repository), blob) as stream:
                    async for chunk in stream:
                        yield chunk

            await client.upload(Provider.of(target, f"{repository}-copy"), blob, chunks)

        await asyncio.wait_for(asyncio.gather(copy(hosts[0], hosts[1]), copy(hosts[1], hosts[0])), PATIENCE)

    use(work, registries=Registries(dict.fromkeys(hosts, HostSettings(connections=1))))


@pytest.mark.parametrize("way", ["in pieces", "lasting"])
def test_no_way_of_uploading_waits_for_itself(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path, way: str
) -> None:
    """Three layers at once, from one host of one connection to another. An upload in pieces keeps its source open
    between them, one that outlives its process reads ahead: neither may then wait for a place to write."""
    layers = [noise(9_000_000, seed) for seed in range(3)]
    for data in layers:
        push_blob(registry.host, repository, data)
    blobs = [described(data) for data in layers]
    refusals = [Fault("PUT", blob.digest.hex, times=1, status=413) for blob in blobs]
    source = Provider.of(registry.host, repository)

    async def chunks(client: RegistryClient, blob: Descriptor, start: int = 0) -> AsyncIterator[bytes]:
        async with client.blob(source, blob, start=start) as stream:
            async for chunk in stream:
                yield chunk

    async def work(client: RegistryClient) -> None:
        uploads = []
        for blob in blobs:
            read = partial(chunks, client, blob)
            uploads.append(client.upload(target, blob, read, resume=read if way == "lasting" else None))
        await asyncio.wait_for(asyncio.gather(*uploads), PATIENCE)
        for blob in blobs:
            assert await client.exists(target, blob.digest)

    with FaultyProxy(second_registry.host, *refusals) as proxy:
        target = Provider.of(second_registry.host if way == "lasting" else proxy.host, repository)
        bounds = dict.fromkeys((source.registry, target.registry), HostSettings(connections=1))
        mark = second_registry.mark()
        use(work, registries=Registries(bounds), uploads=UploadSessions(tmp_path / "uploads"), patch_bytes=1_000_000)
        patches = [line for line in second_registry.requests()[mark:] if line.method == "PATCH"]
        assert len(patches) == (3 if way == "lasting" else 27)


def test_token_server_on_the_registry_s_own_host_is_not_waited_for() -> None:
    """The refused request holds the only connection while its token is fetched."""

    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        if seen.path.startswith("/token"):
            return 200, {}, b'{"token": "good"}'
        if seen.headers.get("authorization") == "Bearer good":
            return 200, {}, DATA
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{server.host}/token"'}, b""

    with Answering(answer) as server:
        provider = Provider.of(server.host, "a/b")

        async def work(client: RegistryClient) -> None:
            assert (await asyncio.wait_for(fetched(client, provider, described(DATA)), PATIENCE))[0] == DATA

        use(work, registries=settings(**{server.host: HostSettings(connections=1)}))


def test_upload_waits_for_its_place(registry: RegistryProcess, repository: str) -> None:
    """Writers are bounded, too: of two uploads over one connection the second begins when the first has ended."""
    order: list[str] = []

    def source(name: str, data: bytes) -> AsyncIterator[bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            order.append(f"{name} begins")
            async for chunk in stream_of(data)():
                await asyncio.sleep(0.005)
                yield chunk
            order.append(f"{name} ends")

        return chunks()

    async def work(client: RegistryClient) -> None:
        blobs = {name: noise(500_000, seed) for seed, name in enumerate(("one", "two"))}
        provider = Provider.of(registry.host, repository)
        uploads = [
            client.upload(provider, described(data), partial(source, name, data)) for name, data in blobs.items()
        ]
        await asyncio.wait_for(asyncio.gather(*uploads), PATIENCE)

    use(work, registries=settings(**{registry.host: HostSettings(connections=1)}))
    assert [event.split()[1] for event in order] == ["begins", "ends", "begins", "ends"]


def test_a_host_with_a_rate_alone_takes_any_number_of_uploads(registry: RegistryProcess, repository: str) -> None:
    registries = settings(**{registry.host: HostSettings(requests_per_second=1000.0)})
    provider = Provider.of(registry.host, repository)
    use(lambda client: client.upload(provider, described(DATA), stream_of(DATA)), registries=registries)
    assert use(lambda client: client.exists(provider, described(DATA).digest))
