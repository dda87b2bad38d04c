"""Each host is reached by settings of its own: how, with which certificates, how often, how many at once."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest

from storage.credentials import Credential
from storage.errors import RegistryError, VerificationError
from storage.interfaces import Provider
from storage.reference import parse_reference
from storage.registries import HostSettings, Registries
from storage.registry import RegistryClient
from storage.registry.throttle import Throttle
from tests.certificates import Authority
from tests.faulty import Answering, Fault, FaultyProxy, LocalServer, Seen, write_answer
from tests.registry_fixture import RegistryProcess, free_port, push_blob, push_image
from tests.storage.registry.kit import described, fetched, known, missing_digest, noise, stream_of, use

DATA = b"some layer"


def settings(**hosts: HostSettings) -> Registries:
    return Registries(hosts)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RegistryProcess]:
    """A registry by TLS that wants to see a certificate, with an image `app`."""
    with RegistryProcess(tmp_path_factory.mktemp("locked")) as process:
        push_image(process.host, "app", [{"a": DATA}])
    server = authority.server()
    process.tls = {
        "certificate": str(server.certificate), "key": str(server.key), "clientcas": [str(authority.pair.certificate)],
    }  # fmt: skip
    with process:
        yield process


def test_own_authority_and_client_certificate(locked: RegistryProcess, authority: Authority) -> None:
    client = authority.client()
    mine = HostSettings(False, authority.pair.certificate, client.certificate, client.key)
    found = use(lambda c: c.resolve(parse_reference(f"{locked.host}/app")), registries=settings(**{locked.host: mine}))
    assert found.size


def test_what_is_missing_is_named_at_once(locked: RegistryProcess, authority: Authority) -> None:
    """No certificate problem passes by waiting: there is one try."""

    def failure(one: HostSettings) -> RegistryError:
        slept: list[float] = []
        with pytest.raises(RegistryError) as caught:
            use(lambda c: c.resolve(parse_reference(f"{locked.host}/app")), slept=slept,
                registries=settings(**{locked.host: one}))  # fmt: skip
        assert slept == []
        return caught.value

    stranger = failure(HostSettings(http=False))
    assert f"the certificate of {locked.host} is not trusted" in stranger.what
    assert "`ca` in registries.toml" in stranger.hint
    nobody = failure(HostSettings(False, authority.pair.certificate))
    assert f"{locked.host} does not accept this client's certificate, or wants one" in nobody.what
    assert "client_certificate" in nobody.hint


def test_other_hosts_are_shown_no_certificate(authority: Authority, registry: RegistryProcess) -> None:
    """One server redirects to the other; both ask for a certificate, only the first one's settings have one."""
    server, client = authority.server(), authority.client()
    shown: dict[str, bool] = {}

    class Curious(LocalServer):
        def __init__(self, name: str, location: str = "") -> None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pair.certificate))
            context.load_cert_chain(server.certificate, server.key)
            context.verify_mode = ssl.CERT_OPTIONAL
            super().__init__(context)
            self.name, self.location = name, location

        async def respond(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
            shown[self.name] = bool(writer.get_extra_info("peercert"))
            if self.location:
                write_answer(writer, 307, {"Location": self.location}, b"")
            else:
                write_answer(writer, 200, {}, DATA)

    with Curious("store") as store, Curious("registry", f"https://{store.host}/signed?x=y") as origin:
        trusted = authority.pair.certificate
        registries = settings(**{
            origin.host: HostSettings(False, trusted, client.certificate, client.key),
            store.host: HostSettings(False, trusted),
        })  # fmt: skip
        provider = Provider.of(origin.host, "a/b")
        credentials = known(origin.host, Credential("me", "secret"))
        got = use(lambda c: fetched(c, provider, described(DATA)), registries=registries, credentials=credentials)
    assert got[0] == DATA
    assert shown == {"registry": True, "store": False}


def test_loopback_by_tls_where_it_is_said(authority: Authority) -> None:
    """Without settings it is asked in plain http."""
    server = authority.server()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate, server.key)
    with Answering(lambda seen: (200, {}, DATA), tls=context) as secure:
        provider = Provider.of(secure.host, "a/b")
        with pytest.raises(RegistryError, match="broke"):
            use(lambda c: fetched(c, provider, described(DATA)), tries=1)
        registries = settings(**{secure.host: HostSettings(False, authority.pair.certificate)})
        assert use(lambda c: fetched(c, provider, described(DATA)), registries=registries)[0] == DATA


def test_plain_http_elsewhere_where_it_is_said_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolves nowhere: only the proxy that the environment names can answer."""
    with Answering(lambda seen: (200, {}, DATA)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        provider, blob = Provider.of("registry.invalid:5000", "a/b"), described(DATA)
        registries = settings(**{provider.registry: HostSettings(http=True)})
        assert use(lambda c: fetched(c, provider, blob), registries=registries)[0] == DATA
        assert proxy.seen[0].path == f"http://registry.invalid:5000/v2/a/b/blobs/{blob.digest}"
        direct = settings(**{proxy.host: HostSettings(http=True)})
        assert use(lambda c: fetched(c, Provider.of(proxy.host, "a/b"), blob), registries=direct)[0] == DATA
        assert proxy.seen[-1].path == f"/v2/a/b/blobs/{blob.digest}", "loopback is asked itself"


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
    """Answers slowly; `most` requests were open at once."""

    def __init__(self) -> None:
        super().__init__()
        self.open = self.most = 0

    async def respond(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.02)
        write_answer(writer, 200, {"Content-Type": "text/plain"}, DATA)
        self.open -= 1


@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_are_open_at_once_than_allowed(connections: int) -> None:
    with Counting() as server:
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
            assert (await asyncio.wait_for(fetched(client, provider, described(DATA)), 20))[0] == DATA

        use(work, registries=settings(**{proxy.host: HostSettings(connections=1)}), stall_seconds=0.3)


def test_refused_connection_gives_its_place_back() -> None:
    host = f"127.0.0.1:{free_port()}"

    async def work(client: RegistryClient) -> None:
        for _ in range(2):
            with pytest.raises(RegistryError, match="refused the connection"):
                await asyncio.wait_for(client.exists(Provider.of(host, "a/b"), missing_digest()), 20)

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
        await asyncio.wait_for(asyncio.gather(*copies), 30)
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

        await asyncio.wait_for(asyncio.gather(copy(hosts[0], hosts[1]), copy(hosts[1], hosts[0])), 30)

    use(work, registries=Registries(dict.fromkeys(hosts, HostSettings(connections=1))))


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
            assert (await asyncio.wait_for(fetched(client, provider, described(DATA)), 20))[0] == DATA

        use(work, registries=settings(**{server.host: HostSettings(connections=1)}))


def test_realm_in_plain_http_is_for_hosts_of_plain_http(authority: Authority) -> None:
    """A token server by plain http is asked only where the settings say that its host is spoken to like that."""
    with Answering(lambda seen: (200, {}, b'{"token": "t"}')) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/token"'}
        with Answering(lambda seen: (401, challenge, b"")) as server:
            provider = Provider.of(server.host, "a/b")
            secure = settings(**{tokens.host: HostSettings(http=False)})
            with pytest.raises(RegistryError, match="not https"):
                use(lambda c: c.exists(provider, missing_digest()), registries=secure)
            assert not tokens.seen


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
        await asyncio.wait_for(asyncio.gather(*uploads), 30)

    use(work, registries=settings(**{registry.host: HostSettings(connections=1)}))
    assert [event.split()[1] for event in order] == ["begins", "ends", "begins", "ends"]
