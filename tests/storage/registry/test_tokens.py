"""Tokens as a real registry takes them: signed, for a time, and for some actions on some repositories only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.credentials.lookup import Credential
from storage.digest import Digest
from storage.errors import RegistryError
from storage.interfaces.images import Provider
from storage.registry import RegistryClient
from storage.registry.auth import covers
from tests.registry_fixture import RegistryProcess, push_blob
from tests.relay import Relay
from tests.storage.registry.kit import Known, described, fetched, noise, stream_of, use
from tests.token_server import Account, TokenServer
from tests.waiting import PATIENCE

BIG = noise(3_000_000)


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    accounts = {
        "": Account("", {"open": {"pull"}}),
        "reader": Account("r", {"base": {"pull"}}),
        "writer": Account("w", {"base": {"pull"}, "team/app": {"pull", "push"}}),
    }
    with TokenServer(tmp_path / "tokens", accounts) as server:
        yield server


@pytest.fixture
def guarded(tmp_path: Path, tokens: TokenServer) -> Iterator[RegistryProcess]:
    """A registry with BIG in `base` and `open`, that trusts `tokens`."""
    with RegistryProcess(tmp_path / "registry") as process:
        for name in ("base", "open"):
            push_blob(process.host, name, BIG)
    process.token = tokens.registry_auth
    with process:
        yield process


def as_user(host: str, name: str) -> Known:
    return Known(**{host: Credential(name, name[:1])})


def test_mount_needs_pull_on_the_source_and_push_on_the_target(tokens: TokenServer, guarded: RegistryProcess) -> None:
    source, target = Provider.of(guarded.host, "base"), Provider.of(guarded.host, "team/app")
    digest = described(BIG).digest
    writer, reader = as_user(guarded.host, "writer"), as_user(guarded.host, "reader")
    assert use(lambda client: client.mount(target, digest, source), credentials=writer) is True
    assert tokens.asked == [("writer", ["repository:team/app:pull,push", "repository:base:pull"])]
    assert len(guarded.mounts()) == 1
    target = Provider.of(guarded.host, "base/copy")
    assert use(lambda client: client.mount(target, digest, source), credentials=reader) is False


def test_each_token_is_for_what_its_own_request_needs(tokens: TokenServer, guarded: RegistryProcess) -> None:
    source, target = Provider.of(guarded.host, "base"), Provider.of(guarded.host, "team/app")

    async def work(client: RegistryClient) -> None:
        assert (await fetched(client, source, described(BIG)))[0] == BIG
        await client.upload(target, described(b"more"), stream_of(b"more"))

    use(work, credentials=as_user(guarded.host, "writer"))
    assert [scopes for _, scopes in tokens.asked] == [["repository:base:pull"], ["repository:team/app:pull,push"]]


def test_token_that_covers_more_is_used_again(tokens: TokenServer, guarded: RegistryProcess) -> None:
    source, target = Provider.of(guarded.host, "base"), Provider.of(guarded.host, "team/app")

    async def work(client: RegistryClient) -> None:
        assert await client.mount(target, described(BIG).digest, source) is True
        await client.upload(target, described(b"more"), stream_of(b"more"))
        assert (await fetched(client, source, described(BIG)))[0] == BIG

    use(work, credentials=as_user(guarded.host, "writer"))
    assert len(tokens.asked) == 1


def test_token_that_gives_less_than_it_was_asked_for_is_replaced_once(
    tokens: TokenServer, guarded: RegistryProcess
) -> None:
    source, target = Provider.of(guarded.host, "base"), Provider.of(guarded.host, "team/app")
    tokens.accounts["writer"].rights["base"] = set()

    async def work(client: RegistryClient) -> None:
        assert await client.mount(target, described(BIG).digest, source) is False
        tokens.accounts["writer"].rights["base"] = {"pull"}
        for _ in range(2):
            assert (await fetched(client, source, described(BIG)))[0] == BIG

    use(work, credentials=as_user(guarded.host, "writer"))
    assert [scopes for _, scopes in tokens.asked][-1] == ["repository:base:pull"]
    assert [scopes for _, scopes in tokens.asked].count(["repository:base:pull"]) == 1


def test_pull_goes_on_with_a_new_token_where_the_old_one_died(tokens: TokenServer, guarded: RegistryProcess) -> None:
    """The connection breaks in the middle; by then the registry takes the token no longer, without having said when."""
    tokens.seconds = 3

    async def work(client: RegistryClient) -> tuple[bytes, int, int]:
        reading = asyncio.create_task(fetched(client, Provider.of(relay.host, "base"), described(BIG)))
        assert await asyncio.to_thread(relay.held.wait, PATIENCE)
        await asyncio.sleep(3.1)
        relay.let_go()
        return await reading

    with Relay(guarded.host, 1_500_000) as relay:
        data, wire, resumed = use(work, credentials=as_user(relay.host, "reader"))
    assert data == BIG
    assert 0 < resumed < 1_500_000
    assert wire == len(BIG), "what had come was not sent again"
    refused = [line for line in guarded.requests() if line.status == 401]
    # once before there was a token, once when it had died (and once more where the first died before it was shown)
    assert len(refused) >= 2
    assert tokens.asked == [("reader", ["repository:base:pull"])] * len(refused)


def test_two_clients_with_their_own_rights(tokens: TokenServer, guarded: RegistryProcess) -> None:
    blob, base = described(BIG), Provider.of(guarded.host, "base")
    assert use(lambda client: fetched(client, Provider.of(guarded.host, "open"), blob))[0] == BIG
    with pytest.raises(RegistryError) as caught:
        use(lambda client: fetched(client, base, blob))
    assert (caught.value.kind, caught.value.hint) == ("auth", f"refledger login {guarded.host}")
    assert use(lambda client: fetched(client, base, blob), credentials=as_user(guarded.host, "reader"))[0] == BIG


def test_identity_token_gives_tokens(tokens: TokenServer, guarded: RegistryProcess) -> None:
    tokens.refresh = True
    credentials = Known(**{guarded.host: Credential("reader", identity_token="refresh-reader")})
    base = Provider.of(guarded.host, "base")
    assert use(lambda client: client.exists(base, Digest(described(BIG).digest)), credentials=credentials) is True
    assert [seen.method for seen in tokens.seen] == ["POST"]


@pytest.mark.parametrize(
    ("granted", "wanted", "enough"),
    [
        (("repository:a:pull,push",), ("repository:a:pull",), True),
        (("repository:a:push,pull", "repository:b:pull"), ("repository:b:pull", "repository:a:pull"), True),
        (("repository:a:pull",), ("repository:a:pull,push",), False),
        (("repository:a:pull",), ("repository:b:pull",), False),
        (("repository:a:pull",), (), True),
        ((), ("repository:a:pull",), False),
    ],
)
def test_wider_scopes_cover(granted: tuple[str, ...], wanted: tuple[str, ...], enough: bool) -> None:
    assert covers(granted, wanted) is enough
