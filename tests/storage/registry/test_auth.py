"""Who is shown which secret."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from storage.credentials.lookup import Credential, DockerCredentials
from storage.errors import RegistryError
from storage.interfaces.images import Provider
from storage.registries import Registries
from storage.registry import RegistryClient
from storage.registry.auth import Challenge, merge_scopes, parse_challenges
from storage.registry.login import check_login
from tests.faulty import Answering, Fault, FaultyProxy, Seen
from tests.registry_fixture import HTPASSWD, PASSWORD, USER, RegistryProcess, push_blob
from tests.storage.registry.kit import described, fetched, known, missing_digest, stream_of, use

DATA = b"some layer"
SECRET = "s3cr3t"
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
TOKEN = "t0k3n"


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        (['Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"'],
         [Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})]),
        (['Basic realm="a \\"b\\" c", Bearer realm=x , service="y"'],
         [Challenge("basic", {"realm": 'a "b" c'}), Challenge("bearer", {"realm": "x", "service": "y"})]),
        (["Negotiate", 'BEARER Realm="x"'], [Challenge("negotiate", {}), Challenge("bearer", {"realm": "x"})]),
        (["", ",,", '"="'], []),
    ],
)  # fmt: skip
def test_challenges_are_read(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(headers) == challenges


def test_scopes_of_one_resource_are_united() -> None:
    assert merge_scopes(("repository:a:pull",), "repository:a:pull,push repository:b:pull") == (
        "repository:a:pull,push", "repository:b:pull",
    )  # fmt: skip


class TokenServer(Answering):
    """Gives `TOKEN` for the right credentials. `status`: what it answers when they are wrong."""

    def __init__(self, wanted: str = "", *, status: int = 401, seconds: int = 300, **options: Any) -> None:
        super().__init__(self._give, **options)
        self.wanted, self.status, self.seconds = wanted, status, seconds

    def _give(self, seen: Seen) -> tuple[int, dict[str, str], bytes]:
        if seen.headers.get("authorization", "") != self.wanted and seen.method == "GET":
            said = {"errors": [{"message": f"bad\x1b[31m\n credentials {seen.headers.get('authorization')}"}]}
            return self.status, {}, json.dumps(said).encode()
        return 200, {}, json.dumps({"token": TOKEN, "expires_in": self.seconds}).encode()

    def scopes(self) -> list[list[str]]:
        """What was asked for, a list for each request."""
        return [parse_qs(urlsplit(seen.path).query or seen.body.decode())["scope"] for seen in self.seen]


def demanding(registry: RegistryProcess, realm: str) -> FaultyProxy:
    """The registry, behind a demand for `TOKEN`."""
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="tests"'}
    return FaultyProxy(registry.host, Fault(".*", demand=f"Bearer {TOKEN}", headers=challenge))


def test_anonymous_token_is_fetched_once_a_scope(registry: RegistryProcess, repository: str) -> None:
    push_blob(registry.host, repository, DATA)
    with TokenServer() as tokens, demanding(registry, f"http://{tokens.host}/token") as proxy:
        provider = Provider.of(proxy.host, repository)

        async def work(client: RegistryClient) -> None:
            for _ in range(3):
                assert (await fetched(client, provider, described(DATA)))[0] == DATA
            await client.upload(provider, described(DATA), stream_of(DATA))

        use(work)
        assert tokens.scopes() == [[f"repository:{repository}:pull"], [f"repository:{repository}:pull,push"]]
        refused = [seen for seen in proxy.seen if "authorization" not in seen.headers]
    assert len(refused) == 1, "once the registry has asked, tokens are fetched before it asks again"


def test_mount_asks_for_both_scopes(registry: RegistryProcess, repository: str) -> None:
    push_blob(registry.host, repository, DATA)
    with TokenServer() as tokens, demanding(registry, f"http://{tokens.host}/token") as proxy:
        source, target = Provider.of(proxy.host, repository), Provider.of(proxy.host, f"{repository}-b")
        assert use(lambda client: client.mount(target, described(DATA).digest, source)) is True
        assert tokens.scopes() == [[f"repository:{repository}-b:pull,push", f"repository:{repository}:pull"]]


def test_a_mount_that_the_token_server_denies_is_none(registry: RegistryProcess, repository: str) -> None:
    """It may grant the scope of an upload alone."""
    with (
        Answering(lambda seen: (403, {}, b"")) as tokens,
        demanding(registry, f"http://{tokens.host}/token") as proxy,
    ):
        source, target = Provider.of(proxy.host, repository), Provider.of(proxy.host, f"{repository}-b")
        assert use(lambda client: client.mount(target, missing_digest(), source)) is False


def test_user_and_password_go_to_the_token_server_only(registry: RegistryProcess, repository: str) -> None:
    push_blob(registry.host, repository, DATA)
    with TokenServer(BASIC) as tokens, demanding(registry, f"http://{tokens.host}/token?x=1") as proxy:
        credentials = known(proxy.host, Credential("me", SECRET))
        provider = Provider.of(proxy.host, repository)
        assert use(lambda client: fetched(client, provider, described(DATA)), credentials=credentials)[0] == DATA
        assert {seen.headers.get("authorization") for seen in proxy.seen} == {None, f"Bearer {TOKEN}"}
        assert parse_qs(urlsplit(tokens.seen[0].path).query)["x"] == ["1"]


def test_identity_token_is_exchanged_by_post(registry: RegistryProcess, repository: str) -> None:
    push_blob(registry.host, repository, DATA)
    with TokenServer() as tokens, demanding(registry, f"http://{tokens.host}/token") as proxy:
        credentials = known(proxy.host, Credential(identity_token=SECRET))
        provider = Provider.of(proxy.host, repository)
        assert use(lambda client: fetched(client, provider, described(DATA)), credentials=credentials)[0] == DATA
        (seen,) = tokens.seen
    assert seen.method == "POST"
    assert SECRET not in seen.path
    form = parse_qs(seen.body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == [SECRET]
    assert form["scope"] == [f"repository:{repository}:pull"]


def test_expired_token_is_renewed(registry: RegistryProcess, repository: str) -> None:
    push_blob(registry.host, repository, DATA)
    now = [1_000_000.0]
    with TokenServer(seconds=100) as tokens, demanding(registry, f"http://{tokens.host}/token") as proxy:
        provider = Provider.of(proxy.host, repository)

        async def work(client: RegistryClient) -> None:
            for later in (0, 90, 10):
                now[0] += later
                await fetched(client, provider, described(DATA))

        use(work, clock=lambda: now[0])
        assert len(tokens.seen) == 2


def test_token_that_is_no_longer_taken_is_replaced(registry: RegistryProcess, repository: str) -> None:
    push_blob(registry.host, repository, DATA)
    given: list[str] = []

    def give(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        given.append(f"{TOKEN}-{len(given)}")
        return 200, {}, json.dumps({"access_token": given[-1]}).encode()

    with Answering(give) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/t"'}
        with FaultyProxy(registry.host, Fault(".*", demand=f"Bearer {TOKEN}-0", headers=challenge)) as proxy:
            provider = Provider.of(proxy.host, repository)

            async def work(client: RegistryClient) -> None:
                await fetched(client, provider, described(DATA))
                proxy.faults[0].demand = f"Bearer {TOKEN}-1"
                assert (await fetched(client, provider, described(DATA)))[0] == DATA

            use(work)
    assert len(given) == 2


def test_credentials_that_stay_refused_end_it(registry: RegistryProcess, repository: str) -> None:
    with TokenServer() as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/t"'}
        with Answering(lambda seen: (401, challenge, b"")) as server, pytest.raises(RegistryError) as caught:
            use(lambda client: client.exists(Provider.of(server.host, "a/b"), missing_digest()))
        assert len(tokens.seen) == 1
        assert len(server.seen) == 2
    assert (caught.value.kind, caught.value.status) == ("auth", 401)
    assert caught.value.hint == f"refledger login {server.host}"


@pytest.mark.parametrize("user", ["me", "nobody"])
def test_I9_refused_credentials_are_one_line_without_the_secret(registry: RegistryProcess, user: str) -> None:
    with TokenServer("Basic other") as tokens, demanding(registry, f"http://{tokens.host}/token") as proxy:
        credentials = known(proxy.host, Credential("me", SECRET)) if user == "me" else None
        with pytest.raises(RegistryError) as caught:
            use(lambda c: c.exists(Provider.of(proxy.host, "a/b"), missing_digest()), credentials=credentials)
    error = caught.value
    assert error.kind == "auth"
    assert "token server" in error.what
    assert "bad [31m credentials" in error.what
    assert error.hint == f"refledger login {proxy.host}"
    assert SECRET not in str(error)
    assert BASIC.partition(" ")[2] not in str(error)


def test_a_login_with_what_is_no_text_asks_nobody() -> None:
    with Answering(lambda seen: (200, {}, b"")) as server:
        given = Credential(USER, "\udcff")
        with pytest.raises(RegistryError, match="are not text"):
            asyncio.run(check_login(server.host, given, user_agent="refledger/test", registries=Registries()))
        assert not server.seen


def test_failing_token_server_is_retried_then_named(registry: RegistryProcess) -> None:
    slept: list[float] = []
    with TokenServer("Basic other", status=503) as tokens, demanding(registry, f"http://{tokens.host}/t") as proxy:
        with pytest.raises(RegistryError, match=f"the token server {tokens.host} answered 503") as caught:
            use(lambda client: client.exists(Provider.of(proxy.host, "a/b"), missing_digest()), slept=slept)
        assert len(tokens.seen) == 5
    assert caught.value.kind == "transport"
    assert len(slept) == 4


@pytest.mark.parametrize(
    "realm", ["http://example.org/token", "ftp://127.0.0.1/", "/token", "", "https://", "http://[", "http://h:x/y"]
)
def test_I9_credentials_go_to_no_realm_in_plain_http(registry: RegistryProcess, realm: str) -> None:
    with demanding(registry, realm) as proxy, pytest.raises(RegistryError, match="not https") as caught:
        credentials = known(proxy.host, Credential("me", SECRET))
        use(lambda c: c.exists(Provider.of(proxy.host, "a/b"), missing_digest()), credentials=credentials)
    assert caught.value.kind == "auth"


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b'{"expires_in": "x"}'])
def test_answer_without_a_token_is_one_line(registry: RegistryProcess, answer: bytes) -> None:
    with (
        Answering(lambda seen: (200, {}, answer)) as tokens,
        demanding(registry, f"http://{tokens.host}/") as proxy,
        pytest.raises(RegistryError, match="gave no token"),
    ):
        use(lambda client: client.exists(Provider.of(proxy.host, "a/b"), missing_digest()))


def test_basic_against_a_real_registry_through_a_helper(tmp_path: Path) -> None:
    with RegistryProcess(tmp_path / "r", htpasswd=HTPASSWD) as process:
        helper = tmp_path / "docker-credential-tests"
        helper.write_text(
            f'#!/bin/sh\nread server; test "$server" = {process.host} || exit 1\n'
            f'echo \'{{"Username":"{USER}","Secret":"{PASSWORD}"}}\'\n'
        )
        helper.chmod(0o755)
        (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {process.host: "tests"}}))
        environ = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
        provider = Provider.of(process.host, "a/b")

        async def work(client: RegistryClient) -> bytes:
            await client.upload(provider, described(DATA), stream_of(DATA))
            return (await fetched(client, provider, described(DATA)))[0]

        assert use(work, credentials=DockerCredentials(environ=environ)) == DATA
        wrong = known(process.host, Credential(USER, SECRET))
        for credentials in (wrong, None):
            with pytest.raises(RegistryError) as caught:
                use(lambda client: client.exists(provider, missing_digest()), credentials=credentials)
            assert caught.value.kind == "auth"
            assert caught.value.hint == f"refledger login {process.host}"


def test_I9_upload_location_elsewhere_gets_no_credentials(registry: RegistryProcess, repository: str) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    with Answering(lambda seen: (201, {}, b"")) as elsewhere:
        location = {"Location": f"http://{elsewhere.host}/upload?signature=x"}
        faults = [Fault(".*", demand=BASIC, headers=challenge), Fault("POST", status=202, headers=location)]
        with FaultyProxy(registry.host, *faults) as proxy:
            provider = Provider.of(proxy.host, repository)
            credentials = known(proxy.host, Credential("me", SECRET))
            use(lambda client: client.upload(provider, described(DATA), stream_of(DATA)), credentials=credentials)
        (put,) = elsewhere.seen
    assert put.body == DATA
    assert "authorization" not in put.headers


def test_I9_challenge_of_a_redirect_target_is_not_answered(registry: RegistryProcess, repository: str) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    with Answering(lambda seen: (401, challenge, b"")) as elsewhere:
        with FaultyProxy(registry.host, Fault("GET", redirect=elsewhere.host)) as proxy:
            provider = Provider.of(proxy.host, repository)
            credentials = known(proxy.host, Credential("me", SECRET))
            with pytest.raises(RegistryError):
                use(lambda client: fetched(client, provider, described(DATA)), credentials=credentials)
        assert all("authorization" not in seen.headers for seen in (*elsewhere.seen, *proxy.seen))


def test_I9_credentials_are_not_shown_where_somebody_else_leads_back_to(
    registry: RegistryProcess, repository: str
) -> None:
    with FaultyProxy(registry.host) as proxy:
        back = {"Location": f"http://{proxy.host}/back"}
        with Answering(lambda seen: (307, back, b"")) as elsewhere:
            proxy.faults = [
                Fault(path="/back", status=200, body=DATA),
                Fault(".*", demand=BASIC, headers={"WWW-Authenticate": 'Basic realm="x"'}),
                Fault("GET", redirect=elsewhere.host),
            ]
            provider = Provider.of(proxy.host, repository)
            credentials = known(proxy.host, Credential("me", SECRET))
            assert use(lambda client: fetched(client, provider, described(DATA)), credentials=credentials)[0] == DATA
        *before, last = proxy.seen
    assert before[-1].headers["authorization"] == BASIC
    assert (last.path, "authorization" in last.headers) == ("/back", False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "pair.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", "-",
    ]  # fmt: skip
    made = subprocess.run(command, check=True, capture_output=True).stdout
    path.write_bytes(path.read_bytes() + made)
    return path


def test_certificates_are_verified_and_authorities_can_be_added(
    registry: RegistryProcess, repository: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_blob(registry.host, repository, DATA)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with TokenServer(BASIC, tls=context) as tokens, demanding(registry, f"https://{tokens.host}/token") as proxy:
        provider = Provider.of(proxy.host, repository)
        credentials = known(proxy.host, Credential("me", SECRET))
        with pytest.raises(RegistryError, match=f"the certificate of {tokens.host} is not trusted") as caught:
            use(lambda client: fetched(client, provider, described(DATA)), credentials=credentials)
        assert "SSL_CERT_FILE" in caught.value.hint
        assert not tokens.seen
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert use(lambda client: fetched(client, provider, described(DATA)), credentials=credentials)[0] == DATA


def test_I9_what_a_malformed_answer_repeats_of_the_request_is_not_told() -> None:
    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        if "authorization" in seen.headers:
            return 200, {"no header": seen.headers["authorization"]}, b""
        return 401, {"WWW-Authenticate": "Basic realm=here"}, b""

    with Answering(answer) as server, pytest.raises(RegistryError, match="illegal header line: …") as caught:
        credentials = known(server.host, Credential("somebody", "secret"))
        use(lambda client: client.tags(Provider.of(server.host, "a")), credentials=credentials, tries=1)
    assert base64.b64encode(b"somebody:secret").decode() not in str(caught.value)
