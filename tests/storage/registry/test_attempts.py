"""Each request is told once, with what came of it; how often it is repeated shows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from storage.credentials.lookup import Anonymous
from storage.digest import Digest
from storage.errors import RefledgerError
from storage.interfaces.images import Attempt, Descriptor, Provider
from storage.reference import parse_reference
from storage.registry import Limits, RegistryClient
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import OCI_MANIFEST, RegistryProcess, push_blob, push_image
from tests.storage.registry.kit import described, fetched, missing_digest, noise, stream_of

BIG = noise(600_000, seed=11)


def told(
    work: Callable[[RegistryClient], Awaitable[Any]], *, fails: bool = False, tries: int = 3
) -> list[tuple[Any, ...]]:
    """What is observed while `work` is done: verb, status, outcome, bytes."""
    seen: list[Attempt] = []

    async def sleep(_seconds: float) -> None:
        pass

    async def main() -> None:
        client = RegistryClient(
            Anonymous(), user_agent="t", limits=Limits(tries=tries), sleep=sleep, observe=seen.append
        )
        try:
            if fails:
                with pytest.raises(RefledgerError):
                    await work(client)
            else:
                await work(client)
        finally:
            await client.aclose()

    asyncio.run(main())
    for attempt in seen:
        assert attempt.seconds >= 0
        assert not (attempt.error and attempt.outcome in {"ok", "refused"})
        assert len(attempt.error) <= 300
        assert "\n" not in attempt.error
    return [(one.verb, one.status, one.outcome, one.bytes) for one in seen]


@pytest.fixture
def blob(registry: RegistryProcess, repository: str) -> Descriptor:
    push_blob(registry.host, repository, BIG)
    return described(BIG)


def test_pulls_are_told_with_their_bytes_and_existence_is_not(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    provider = Provider.of(registry.host, repository)

    async def work(client: RegistryClient) -> None:
        await fetched(client, provider, blob)
        async with client.blob(provider, blob, start=1000, end=5000) as stream:
            assert len(b"".join([chunk async for chunk in stream])) == 4000
        assert await client.exists(provider, blob.digest)
        assert not await client.exists(provider, missing_digest())

    assert told(work) == [("pull", 200, "ok", len(BIG)), ("pull", 206, "ok", 4000)]


@pytest.mark.parametrize(
    ("faults", "attempts", "fails"),
    [
        ([Fault("GET", times=1, status=503)], [(503, "transport", 0), (200, "ok", len(BIG))], False),
        ([Fault("GET", status=404)], [(404, "missing", 0)], True),
        ([Fault("GET", status=403)], [(403, "auth", 0)], True),
        ([Fault("GET", times=1, cut_after=150_000)],
         [(200, "transport", 150_000), (206, "ok", len(BIG) - 150_000)], False),
        ([Fault("GET", flip=True)], [(200, "corrupt", len(BIG))], True),
        ([Fault("GET", content_length=3)], [(200, "corrupt", 0)], True),
        ([Fault("GET", status=500)], [(500, "transport", 0)] * 3, True),
    ],
    ids=["503-once", "404", "403", "cut", "flipped", "short", "500"],
)  # fmt: skip
def test_every_failed_pull_is_told_and_every_repetition(
    registry: RegistryProcess, repository: str, blob: Descriptor, faults: list[Fault],
    attempts: list[tuple[int, str, int]], fails: bool,
) -> None:  # fmt: skip
    with FaultyProxy(registry.host, *faults) as proxy:
        provider = Provider.of(proxy.host, repository)
        seen = told(lambda client: fetched(client, provider, blob), fails=fails)
    assert seen == [("pull", *attempt) for attempt in attempts]


def test_a_mirror_is_tried_less_often_and_not_waited_for(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    later = {"Retry-After": "60"}
    for fault, count in ((Fault("GET", status=503), 2), (Fault("GET", status=429, headers=later), 1)):
        with FaultyProxy(registry.host, fault) as proxy:
            mirror = Provider(proxy.host, repository, f"repository:{repository}:pull", (), "origin.example/x")
            assert len(told(lambda client, asked=mirror: fetched(client, asked, blob), fails=True, tries=5)) == count


def test_names_and_manifests(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"a": b"b"}])
    reference = parse_reference(image["reference"])

    async def work(client: RegistryClient) -> None:
        top = await client.resolve(reference)
        await client.manifest(reference.provider, top.digest)

    size = image["size"]
    assert told(work) == [("resolve", 200, "ok", 0), ("manifest", 200, "ok", size)]
    with FaultyProxy(registry.host, Fault("HEAD", status=405), Fault("GET", flip=True)) as proxy:
        away = parse_reference(f"{proxy.host}/{repository}:latest")
        assert told(lambda client: client.resolve(away))[0] == ("resolve", 405, "refused", 0)
        asked = told(lambda client: client.manifest(away.provider, Digest(image["digest"])), fails=True)
        assert [(verb, outcome) for verb, _, outcome, _ in asked] == [("manifest", "corrupt")]


def test_pushes_are_told_by_what_carries_bytes(registry: RegistryProcess, repository: str, blob: Descriptor) -> None:
    target = Provider.of(registry.host, f"{repository}/to")
    source = Provider.of(registry.host, repository)
    manifest = b'{"schemaVersion":2,"mediaType":"%s","config":{},"layers":[]}' % OCI_MANIFEST.encode()

    async def work(client: RegistryClient) -> None:
        assert await client.mount(target, blob.digest, source)
        assert not await client.mount(target, missing_digest(), source)
        data = noise(1000, seed=12)
        await client.upload(target, described(data), stream_of(data))

    assert told(work) == [("mount", 201, "ok", 0), ("mount", 202, "refused", 0), ("upload", 201, "ok", 1000)]
    put = told(lambda client: client.put_manifest(target, "latest", OCI_MANIFEST, manifest), fails=True)
    assert [(verb, status) for verb, status, _, _ in put] == [("put", 400)] * 3, "it has no config, or not yet"
    with FaultyProxy(registry.host, Fault("PUT", times=1, status=502)) as proxy:
        away = Provider.of(proxy.host, f"{repository}/to")
        data = noise(2000, seed=13)
        seen = told(lambda client: client.upload(away, described(data), stream_of(data)))
        assert [(status, outcome) for _, status, outcome, _ in seen] == [(502, "transport"), (201, "ok")]


def test_what_breaks_the_bytes_that_are_sent_is_not_the_fault_of_who_takes_them(
    registry: RegistryProcess, repository: str
) -> None:
    async def broken() -> Any:
        yield b"x" * 100
        raise RefledgerError("the other registry went away")

    target = Provider.of(registry.host, repository)
    seen = told(lambda client: client.upload(target, described(b"y" * 200), broken), fails=True)
    assert [(verb, outcome) for verb, _, outcome, _ in seen] == [("upload", "transport")]


def test_I9_a_secret_that_a_registry_repeats_is_not_told(registry: RegistryProcess, repository: str) -> None:
    seen: list[Attempt] = []

    class One(Anonymous):
        async def lookup(self, _registry: str) -> Any:
            from storage.credentials.lookup import Credential

            return Credential("user", "hunter2-secret")

    body = b'{"errors":[{"code":"DENIED","message":"no: dXNlcjpodW50ZXIyLXNlY3JldA==\\n\\u001b[31m"}]}'
    with FaultyProxy(registry.host, Fault(".*", status=401, headers={"WWW-Authenticate": "Basic"}, body=body)) as proxy:

        async def main() -> None:
            client = RegistryClient(One(), user_agent="t", observe=seen.append)
            with pytest.raises(RefledgerError):
                await fetched(client, Provider.of(proxy.host, repository), described(BIG))
            await client.aclose()

        asyncio.run(main())
    (attempt,) = seen
    assert (attempt.status, attempt.outcome) == (401, "auth")
    assert "dXNlcjpodW50ZXIyLXNlY3JldA" not in attempt.error
    assert "\x1b" not in attempt.error
