"""Simulated registries under faults: every kind strikes, the same seed gives the same log, a tag never names a hole.
(That they do what real ones do is in tests/contracts.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from storage.digest import sha256
from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Attempt, Descriptor, Provider
from storage.media_types import CONFIG, MANIFEST
from storage.reference import parse_reference
from tests.contracts.registries import manifest
from tests.registry_fixture import OCI_LAYER
from tests.simulation import wire
from tests.simulation.chance import Chance, Crashed, Faults
from tests.simulation.loop import SimLoop
from tests.simulation.registry import MemoryClient, MemoryRegistries
from tests.storage.registry.kit import stream_of

LAYER, CONFIGURED = bytes(range(256)) * 8, b"{}"
BLOB = Descriptor(OCI_LAYER, sha256(LAYER), len(LAYER))
IMAGE = manifest(Descriptor(CONFIG, sha256(CONFIGURED), 2), [BLOB])
SOURCE, MOUNTED = Provider.of("one.example", "a/b"), Provider.of("one.example", "c/d")
TARGET = Provider.of("two.example", "x/y")


def world(seed: int, faults: Faults) -> MemoryRegistries:
    registries = MemoryRegistries(Chance(seed), faults)
    registries.host(SOURCE.registry).put_blob(SOURCE.repository, LAYER)
    registries.host(TARGET.registry)
    return registries


def run(registries: MemoryRegistries, client: MemoryClient, *names: str) -> None:
    """Copy the layer to a repository beside it and to another registry, and name it there."""

    async def main() -> None:
        async def streamed() -> AsyncIterator[bytes]:
            async with client.blob(SOURCE, BLOB) as stream:
                async for chunk in stream:
                    yield chunk

        if not await client.exists(SOURCE, BLOB.digest):
            raise RegistryError("it is gone", kind="missing")
        await client.mount(MOUNTED, BLOB.digest, SOURCE)
        await client.upload(TARGET, BLOB, streamed)
        await client.upload(TARGET, Descriptor(CONFIG, sha256(CONFIGURED), 2), stream_of(CONFIGURED))
        for name in names:
            await client.put_manifest(TARGET, name, MANIFEST, IMAGE)
        found = await client.resolve(parse_reference(f"{TARGET}:{names[0]}"))
        assert (await client.manifest(TARGET, found.digest))[1] == IMAGE
        assert await client.tags(TARGET) == tuple(sorted(names))
        assert await client.referrers(TARGET, found.digest) == ()

    SimLoop(registries.chance).run(main())


def struck(seed: int, faults: Faults) -> tuple[str, MemoryRegistries]:
    """How the copy ended."""
    registries = world(seed, faults)
    try:
        run(registries, registries.client(), "v1", "v2")
    except (RegistryError, VerificationError, Crashed) as error:
        return type(error).__name__, registries
    return "ok", registries


def test_the_same_seed_gives_the_same_log_and_others_do_not() -> None:
    def log(seed: int) -> str:
        registries = struck(seed, Faults())[1]
        return repr(registries.log)

    assert all(log(seed) == log(seed) for seed in range(5))
    assert len({log(seed) for seed in range(20)}) == 20


def test_every_kind_of_fault_strikes_and_I11_no_tag_ever_names_a_hole() -> None:
    calm = Faults()
    assert struck(1, calm)[0] == "ok"
    ends: dict[str, set[str]] = {}
    for point in range(1, calm.points + 1):
        for kind in range(len(wire.BLOB)):
            faults = Faults({point: kind})
            ended, registries = struck(1, faults)
            ends.setdefault(faults.struck[0][2], set()).add(ended)
            assert registries.holes() == []
    assert set(ends) == {*wire.BLOB, *wire.PIECE, *wire.SENT, *wire.WRITE, wire.NO_MOUNT}
    assert ends["crash"] == ends["crash after"] == {"Crashed"}
    assert ends["slow"] == ends["503 once"] == ends["again"] == ends["resumed"] == ends["no ranges"] == {"ok"}
    assert ends["503"] == ends["lost connection"] == ends["lost answer"] == {"RegistryError"}
    assert ends["wrong bytes"] >= {"VerificationError"}


def test_a_hole_is_found_but_not_one_that_was_made_from_outside() -> None:
    registries = world(1, Faults())
    run(registries, registries.client(), "v1")
    host = registries.host(TARGET.registry)
    host.repositories[TARGET.repository].blobs.discard(BLOB.digest)
    assert registries.holes() == [f"{TARGET}:v1 lacks {BLOB.digest}"]
    host.lose(BLOB.digest)
    assert registries.holes() == []


def test_whoever_observes_is_told_what_the_real_client_tells() -> None:
    told: list[Attempt] = []
    registries = world(1, Faults())
    run(registries, registries.client(observe=told.append), "v1")
    seen = [(one.verb, one.outcome, one.bytes) for one in told]
    assert ("pull", "ok", len(LAYER)) in seen
    assert ("upload", "ok", len(LAYER)) in seen
    assert ("mount", "ok", 0) in seen
    assert "exists" not in {one.verb for one in told}, "an answer to that is not worth telling"


def test_repositories_are_open_to_the_logins_that_they_name() -> None:
    registries = world(1, Faults())
    host = registries.host(SOURCE.registry)
    host.readers[SOURCE.repository] = frozenset({"alice"})
    run(registries, registries.client({SOURCE.registry: "alice"}), "v1")
    with pytest.raises(RegistryError) as caught:
        run(registries, registries.client({SOURCE.registry: "bob"}), "v1")
    assert (caught.value.kind, caught.value.status) == ("auth", 401)


def test_an_upload_that_broke_off_is_gone_on_with() -> None:
    """By another client of the same root, unless the registry has forgotten it."""

    def pieces(start: int) -> AsyncIterator[bytes]:
        return stream_of(LAYER[start:], 100)()

    resumed = 0
    for seed in range(20):
        uploads: dict[tuple[str, object], str] = {}
        registries = world(seed, Faults({5: wire.SENT.index("lost connection")}))
        opened: list[int] = []

        def resume(start: int, opened: list[int] = opened) -> AsyncIterator[bytes]:
            opened.append(start)
            return pieces(start)

        def upload(
            registries: MemoryRegistries = registries, resume: Callable[[int], AsyncIterator[bytes]] = resume,
            uploads: dict[tuple[str, object], str] = uploads,
        ) -> None:  # fmt: skip
            async def main() -> None:
                client = registries.client(uploads=uploads)  # type: ignore[arg-type]
                await client.upload(TARGET, BLOB, lambda: pieces(0), resume=resume)

            SimLoop(registries.chance).run(main())

        with pytest.raises(RegistryError):
            upload()
        upload()
        assert registries.host(TARGET.registry).content[BLOB.digest] == LAYER
        assert uploads == {}
        assert opened in ([0, 300], [0, 0])
        resumed += opened == [0, 300]
    assert 0 < resumed < 20
