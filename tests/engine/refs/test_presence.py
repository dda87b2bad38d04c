"""Whether layers can still be had is asked of those who are named for them, and of nobody twice."""

from __future__ import annotations

import pytest

from engine.events import ProviderLost
from engine.ledger import Silent
from engine.refs.holders import Holders
from engine.refs.places import Places
from engine.refs.presence import LOST, UNREACHABLE, HeadPresence
from engine.refs.ref import Layer
from engine.refs.relay import Relay
from storage.digest import Digest, sha256
from storage.interfaces.images import Provider
from tests.contracts.registries import Client, MemoryKit, put
from tests.engine.solver.kit import Recorded
from tests.storage.registry.kit import described

ONE, TWO = Provider.of(MemoryKit.one, "cache"), Provider.of(MemoryKit.two, "cache")


def test_I8_a_layer_that_one_cache_lost_is_asked_of_the_next_one_too() -> None:
    kit = MemoryKit()

    async def run(client: Client) -> None:
        blob = await put(client, TWO, b"layer")
        presence = HeadPresence(client, Silent())
        there, gone = Layer(sha256(b"d"), blob, (TWO,)), Layer(sha256(b"d"), blob, (ONE,))
        assert await presence.absent([gone]) == {gone.name: LOST}
        assert await presence.absent([there, there]) == {}
        assert await presence.absent([gone]) == {gone.name: LOST}

    kit.use(run)
    assert len(kit.requests()) == 1, "it was asked once"


def test_who_cannot_be_asked_has_lost_nothing() -> None:
    async def run(client: Client, host: str) -> None:
        away = Layer(sha256(b"d"), described(b"layer"), (Provider.of(host, "cache"),))
        assert await HeadPresence(client, Silent()).absent([away]) == {away.name: UNREACHABLE}

    MemoryKit().failing("503", run)


MIRROR = Provider(ONE.registry, ONE.repository, ONE.scope, mirror_of=f"{TWO}")


def test_a_mirror_that_has_nothing_has_lost_nothing() -> None:
    kit, told = MemoryKit(), Recorded()

    async def run(client: Client) -> None:
        blob = await put(client, TWO, b"layer")
        layer = Layer(sha256(b"d"), blob, (MIRROR,))
        assert await HeadPresence(client, told).absent([layer]) == {layer.name: LOST}

    kit.use(run)
    assert told.told == []


def test_who_is_asked_before_something_is_let_go_and_what_a_mirror_lacks_is_no_loss() -> None:
    lost: list[Provider] = []

    async def lose(_digest: Digest, provider: Provider, *_: str) -> None:
        lost.append(provider)

    async def run(client: Client) -> None:
        blob = await put(client, TWO, b"layer")
        holders = Holders(client, lose)
        gone = sha256(b"gone")
        found = await holders.find({blob.digest: [MIRROR, TWO], gone: [MIRROR, TWO]})
        assert found == {blob.digest: TWO, gone: LOST}

    MemoryKit().use(run)
    assert lost == [TWO]


@pytest.mark.parametrize("fault", ["401", "503"])
def test_who_refuses_an_answer_was_not_asked(fault: str) -> None:
    async def run(client: Client, host: str) -> None:
        holders, asked = Holders(client, told_of_nothing), [Provider.of(host, "cache")]
        for blob in (sha256(b"a"), sha256(b"b")):
            assert await holders.find({blob: asked}) == {blob: UNREACHABLE}

    MemoryKit().failing(fault, run)


async def told_of_nothing(digest: Digest, *_: object) -> None:
    raise AssertionError(digest)


def test_a_stream_goes_on_at_the_next_place_and_what_a_mirror_lacks_is_no_loss() -> None:
    told = Recorded()

    async def run(client: Client) -> bytes:
        blob = await put(client, TWO, b"layer")
        relay = Relay(client, Places(), told, "r", blob, (MIRROR, TWO))
        return b"".join([chunk async for chunk in relay.stream()])

    assert MemoryKit().use(run) == b"layer"
    assert told.of(ProviderLost) == []
