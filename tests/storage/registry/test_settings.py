"""Each host is reached by settings of its own: by TLS or not, with which certificates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import pytest

from storage.credentials.lookup import Credential
from storage.errors import RegistryError
from storage.interfaces.images import Provider
from storage.reference import parse_reference
from storage.registries import HostSettings
from tests.certificates import Authority
from tests.faulty import Answering, LocalServer, Seen, write_answer
from tests.registry_fixture import RegistryProcess, push_image
from tests.storage.registry.kit import described, fetched, known, missing_digest, settings, use

DATA = b"some layer"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RegistryProcess]:
    """A registry by TLS that wants to see a certificate, with an image `app`."""
    with RegistryProcess(tmp_path_factory.mktemp("locked")) as process:
        push_image(process.host, "app", [{"a": DATA}])
    process.tls = authority.tls()
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
