"""Whether layers can still be had is asked of those who are named for them, and of nobody twice."""

from __future__ import annotations

from engine.ledger import Silent
from engine.refs.presence import LOST, UNREACHABLE, HeadPresence
from engine.refs.ref import Layer
from storage.digest import sha256
from storage.interfaces.images import Provider
from tests.contracts.registries import Client, MemoryKit, put
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
