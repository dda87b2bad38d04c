"""Manifests and blobs arrive verified, whatever the connection does."""

from __future__ import annotations

import asyncio
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage.credentials.lookup import Anonymous, Credential
from storage.digest import Digest, sha256
from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Platform, Provider
from storage.media_types import DOCKER_LIST, DOCKER_MANIFEST
from storage.media_types import INDEX as OCI_INDEX
from storage.media_types import MANIFEST as OCI_MANIFEST
from storage.platform import choose_platform
from storage.reference import parse_reference
from storage.registries import HostSettings
from storage.registry import Limits, RegistryClient
from storage.registry.manifests import media_type_of
from tests.faulty import Answer, Answering, Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess, push_blob, push_image, push_manifest
from tests.storage.registry.kit import described, fetched, known, missing_digest, noise, settings, use
from tests.waiting import PATIENCE

BIG = noise(3 << 20)


@pytest.fixture
def blob(registry: RegistryProcess, repository: str) -> Descriptor:
    push_blob(registry.host, repository, BIG)
    return described(BIG)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("HEAD", status=405),
        Fault("HEAD", status=404),
        Fault("HEAD", status=501),
        Fault("HEAD", hide=("docker-content-digest",)),
        Fault("HEAD", hide=("content-type",)),
        Fault("HEAD", hide=("content-length",)),
    ],
)
def test_registry_without_a_useful_head_is_asked_with_get(
    registry: RegistryProcess, repository: str, fault: Fault
) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    with FaultyProxy(registry.host, fault) as proxy:
        found = use(lambda client: client.resolve(parse_reference(f"{proxy.host}/{repository}")))
    assert found == Descriptor(OCI_MANIFEST, Digest(image["digest"]), image["size"])


def test_docker_schema_2_image_and_index(registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    converted = f"{repository}-v2s2"
    command = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", "--format", "v2s2"]
    subprocess.run([*command, f"docker://{image['reference']}", f"docker://{registry.host}/{converted}:1"], check=True)
    one = use(lambda client: client.resolve(parse_reference(f"{registry.host}/{converted}:1")))
    assert one.media_type == DOCKER_MANIFEST
    entry = {**one.to_json(), "platform": {"os": "linux", "architecture": "amd64"}}
    listing = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]}).encode()
    push_manifest(registry.host, converted, "all", listing, DOCKER_LIST)
    found = use(lambda client: client.resolve(parse_reference(f"{registry.host}/{converted}:all")))
    assert found.media_type == DOCKER_LIST
    provider = Provider.of(registry.host, converted)
    media_type, data = use(lambda client: client.manifest(provider, found.digest))
    chosen = choose_platform(json.loads(data), Platform("linux", "amd64"))
    assert media_type == DOCKER_LIST
    assert chosen == one
    assert use(lambda client: client.manifest(provider, chosen.digest))[0] == DOCKER_MANIFEST


def test_media_type_is_what_the_verified_bytes_say() -> None:
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    answer: Any = lambda seen: (200, {"Content-Type": OCI_MANIFEST}, data)  # noqa: E731
    with Answering(answer) as server:
        found = use(lambda client: client.manifest(Provider.of(server.host, "a/b"), sha256(data)))
    assert found == (OCI_INDEX, data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[]", b"not json", b'{"schemaVersion": 1}'])
def test_what_is_no_manifest_is_one_line(data: bytes) -> None:
    with Answering(lambda seen: (200, {}, data)) as server, pytest.raises(RegistryError) as caught:
        use(lambda client: client.manifest(Provider.of(server.host, "a/b"), sha256(data)))
    assert len(str(caught.value)) < 400


def test_manifest_is_bounded() -> None:
    data = json.dumps({"schemaVersion": 2, "x": "y" * 5000}).encode()
    with Answering(lambda seen: (200, {}, data)) as server, pytest.raises(RegistryError, match="longer than 4096"):
        use(lambda client: client.manifest(Provider.of(server.host, "a/b"), sha256(data)), manifest_bytes=4096)


def test_I3_manifest_with_other_bytes_is_refused(registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, repository, [{"a": b"1"}])
    with FaultyProxy(registry.host, Fault("GET", flip=True)) as proxy, pytest.raises(VerificationError):
        use(lambda client: client.manifest(Provider.of(proxy.host, repository), Digest(image["digest"])))


def test_the_registry_is_told_who_asks(registry: RegistryProcess, repository: str, blob: Descriptor) -> None:
    mark = registry.mark()
    use(lambda client: fetched(client, Provider.of(registry.host, repository), blob))
    (line,) = registry.layer_gets([blob.digest], since=mark)
    assert line.agent == "refledger/test"


def test_broken_connections_are_resumed_with_range(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    cuts = [Fault("GET", "/blobs/", 1, cut_after=1_000_001), Fault("GET", "/blobs/", 1, cut_after=700_000)]
    with FaultyProxy(registry.host, *cuts) as proxy:
        data, wire, resumed = use(lambda client: fetched(client, Provider.of(proxy.host, repository), blob))
        ranges = [seen.headers.get("range") for seen in proxy.seen]
    assert data == BIG
    assert ranges == [None, "bytes=1000001-", "bytes=1700001-"]
    assert resumed == 1_700_001
    assert wire == len(BIG)


def test_registry_that_ignores_range_is_read_from_the_start(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    faults = [Fault("GET", "/blobs/", 1, cut_after=1_000_000), Fault("GET", "/blobs/", strip=("range",))]
    with FaultyProxy(registry.host, *faults) as proxy:
        data, wire, resumed = use(lambda client: fetched(client, Provider.of(proxy.host, repository), blob))
    assert data == BIG
    assert wire == len(BIG) + 1_000_000
    assert resumed == 1_000_000


def test_downloads_without_progress_end(registry: RegistryProcess, repository: str, blob: Descriptor) -> None:
    slept: list[float] = []
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", cut_after=1000)) as proxy:
        with pytest.raises(RegistryError) as caught:
            use(lambda client: fetched(client, Provider.of(proxy.host, repository), blob), slept=slept)
        assert len(proxy.seen) == 5
    assert caught.value.kind == "transport"
    assert slept == [0.25, 0.5, 1.0, 2.0]


def test_stalled_connection_is_given_up_and_resumed(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    resumed = 0
    for seconds in (0.5, 10.0):  # to a busy machine another connection may look like a stalled one
        with FaultyProxy(registry.host, Fault("GET", "/blobs/", 1, stall_after=500_000)) as proxy:
            asked = partial(fetched, provider=Provider.of(proxy.host, repository), blob=blob)
            data, _, resumed = use(asked, stall_seconds=seconds)
        assert data == BIG
        if resumed == 500_000:
            break
    assert resumed == 500_000


def test_whoever_sends_a_byte_of_the_head_now_and_then_is_given_up(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    """Each byte comes in time; all of them take longer than an answer may."""
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", headless=True, drip=0.05)) as proxy:
        with pytest.raises(RegistryError) as caught:
            asked = partial(fetched, provider=Provider.of(proxy.host, repository), blob=blob)
            use(asked, tries=1, connect_seconds=0.2, commit_seconds=0.2)
        assert caught.value.kind == "transport"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault("GET", flip=True), "have the digest"),
        (Fault("GET", content_length=len(BIG) - 1), "promised"),
        (Fault("GET", content_length=len(BIG) + 1), "promised"),
        (Fault("GET", hide=("content-length",), extra=b"more"), "goes on after"),
        (Fault("GET", hide=("content-length",), cut_after=len(BIG) - 1, strip=("range",)), "ends after"),
    ],
)
def test_I3_other_bytes_than_promised_never_end_well(
    registry: RegistryProcess, repository: str, blob: Descriptor, fault: Fault, why: str
) -> None:
    with FaultyProxy(registry.host, fault) as proxy, pytest.raises(VerificationError, match=why) as caught:
        use(lambda client: fetched(client, Provider.of(proxy.host, repository), blob))
    assert blob.digest in caught.value.where


def test_I3_damage_across_a_resumption_is_found(registry: RegistryProcess, repository: str, blob: Descriptor) -> None:
    faults = [Fault("GET", "/blobs/", 1, cut_after=1_000_000), Fault("GET", "/blobs/", flip=True)]
    with FaultyProxy(registry.host, *faults) as proxy, pytest.raises(VerificationError):
        use(lambda client: fetched(client, Provider.of(proxy.host, repository), blob))


def test_leaving_a_stream_early_leaves_no_connection_in_use(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    provider = Provider.of(registry.host, repository)

    async def peek(client: RegistryClient) -> bytes:
        async with client.blob(provider, blob) as stream:
            first = await anext(aiter(stream))
        assert (await fetched(client, provider, blob))[0] == BIG
        return first

    assert BIG.startswith(use(peek))


def test_an_answer_that_is_refused_leaves_its_place_to_the_next(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    async def twice(client: RegistryClient) -> bytes:
        provider = Provider.of(proxy.host, repository)
        with pytest.raises(VerificationError, match="promised"):
            await fetched(client, provider, blob)
        async with asyncio.timeout(PATIENCE):
            return (await fetched(client, provider, blob))[0]

    with FaultyProxy(registry.host, Fault("GET", "/blobs/", 1, content_length=len(BIG) + 1)) as proxy:
        one = settings(**{proxy.host: HostSettings(connections=1)})
        assert use(twice, registries=one) == BIG


def test_I3_head_that_has_another_digest_than_the_one_asked_for_is_not_believed(
    registry: RegistryProcess, repository: str
) -> None:
    def other(answer: Answer) -> None:
        answer.headers["docker-content-digest"] = sha256(b"other")

    image = push_image(registry.host, repository, [{"a": b"1"}])
    with FaultyProxy(registry.host, Fault("HEAD", "/manifests/", edit_answer=other)) as proxy:
        name = f"{proxy.host}/{repository}@{image['digest']}"
        with pytest.raises(VerificationError, match=f"the registry has {sha256(b'other')} under this digest"):
            use(partial(RegistryClient.resolve, reference=parse_reference(name)))


def test_whether_a_blob_is_there_is_asked_in_another_way_where_head_is_refused(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    with FaultyProxy(registry.host, Fault("HEAD", status=405)) as proxy:
        provider = Provider.of(proxy.host, repository)
        assert use(lambda client: client.exists(provider, blob.digest))
        assert not use(lambda client: client.exists(provider, missing_digest()))
        proxy.faults.append(Fault("GET", "/blobs/", status=400))
        with pytest.raises(RegistryError, match="400"):
            use(lambda client: client.exists(provider, blob.digest))


def test_a_ready_token_is_shown_as_it_is(registry: RegistryProcess, repository: str, blob: Descriptor) -> None:
    challenge = {"WWW-Authenticate": "Bearer realm=\"https://tokens.invalid/\""}
    fault = Fault("GET", "/blobs/", demand="Bearer ready-made", headers=challenge)
    with FaultyProxy(registry.host, fault) as proxy:
        credentials = known(proxy.host, Credential(registry_token="ready-made"))
        provider = Provider.of(proxy.host, repository)
        assert use(lambda client: fetched(client, provider, blob), credentials=credentials)[0] == BIG


@pytest.mark.parametrize(
    ("data", "served_as", "media_type"),
    [
        (b'{"mediaType": "said"}', OCI_INDEX, "said"),
        (b'{"layers": []}', DOCKER_MANIFEST, DOCKER_MANIFEST),
        (b'{"manifests": []}', "text/plain", OCI_INDEX),
        (b'{"mediaType": 7, "layers": []}', "", OCI_MANIFEST),
    ],
)
def test_the_type_of_a_manifest_is_what_it_says_then_what_the_registry_says_then_what_it_shows(
    data: bytes, served_as: str, media_type: str
) -> None:
    assert media_type_of(data, served_as, "here") == media_type


def test_cancelling_a_backoff_ends_it_at_once(registry: RegistryProcess) -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waiting.set()
            await asyncio.sleep(3600)

        client = RegistryClient(Anonymous(), user_agent="t", limits=Limits(), sleep=sleep)
        with Answering(lambda seen: (503, {}, b"")) as server:
            task = asyncio.create_task(client.exists(Provider.of(server.host, "a/b"), missing_digest()))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.aclose()

    asyncio.run(main())


def test_redirected_blob_is_read_without_showing_credentials(
    registry: RegistryProcess, repository: str, blob: Descriptor
) -> None:
    expected = "Basic bWU6cHc="
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    with FaultyProxy(registry.host) as elsewhere:
        faults = [Fault(".*", demand=expected, headers=challenge), Fault("GET", "/blobs/", redirect=elsewhere.host)]
        with FaultyProxy(registry.host, *faults) as proxy:
            provider = Provider.of(proxy.host, repository)
            credentials = known(proxy.host, Credential("me", "pw"))
            assert use(lambda client: fetched(client, provider, blob), credentials=credentials)[0] == BIG
            assert [seen.headers.get("authorization") for seen in proxy.seen] == [None, expected]
        assert [seen.headers.get("authorization") for seen in elsewhere.seen] == [None]


def test_redirects_in_circles_end(registry: RegistryProcess, repository: str) -> None:
    with FaultyProxy(registry.host) as proxy:
        proxy.faults.append(Fault("HEAD", redirect=proxy.host))
        with pytest.raises(RegistryError, match="circles"):
            use(lambda client: client.exists(Provider.of(proxy.host, repository), missing_digest()))
