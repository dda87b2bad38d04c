"""Blobs and manifests leave whole, verified, and without a copy on this disk."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import AsyncIterator

import pytest

from storage.digest import Digest, sha256
from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Provider
from storage.media_types import INDEX as OCI_INDEX
from storage.registry import RegistryClient
from tests.faulty import Answer, Answering, Fault, FaultyProxy, Seen
from tests.registry_fixture import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, RegistryProcess, get_json, layer_tar, push_blob
from tests.storage.registry.kit import described, fetched, noise, stream_of, use

BIG = noise(3 << 20, seed=2)


def stored(registry: RegistryProcess, repository: str, data: bytes) -> bool:
    provider = Provider.of(registry.host, repository)
    return use(lambda client: client.exists(provider, sha256(data)))


@pytest.mark.parametrize("status", [405, 411, 413, 415])
def test_registry_that_refuses_one_piece_gets_chunks(registry: RegistryProcess, repository: str, status: int) -> None:
    mark = registry.mark()
    with FaultyProxy(registry.host, Fault("PUT", "/blobs/uploads/", 1, status=status)) as proxy:
        provider = Provider.of(proxy.host, repository)
        use(lambda client: client.upload(provider, described(BIG), stream_of(BIG)), patch_bytes=1_000_000)
    methods = [line.method for line in registry.requests()[mark:]]
    assert methods == ["POST", "DELETE", "POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
    assert stored(registry, repository, BIG)


def test_failed_upload_starts_again_with_a_new_stream(registry: RegistryProcess, repository: str) -> None:
    opened = []

    def chunks() -> AsyncIterator[bytes]:
        opened.append(1)
        return stream_of(BIG)()

    slept: list[float] = []
    with FaultyProxy(registry.host, Fault("PUT", "/blobs/uploads/", 2, status=503)) as proxy:
        provider = Provider.of(proxy.host, repository)
        use(lambda client: client.upload(provider, described(BIG), chunks), slept=slept)
    assert len(opened) == 3
    assert slept == [0.25, 0.5]
    assert stored(registry, repository, BIG)


def test_I3_failing_source_of_a_blob_in_pieces_stores_nothing_and_is_raised_as_it_is(
    registry: RegistryProcess, repository: str
) -> None:
    failure = RegistryError("the source is gone", kind="missing", status=404)

    async def chunks() -> AsyncIterator[bytes]:
        yield BIG  # all bytes, before the source says that they were wrong
        raise failure

    fault = Fault("PUT", "/blobs/uploads/", 1, status=405)
    with FaultyProxy(registry.host, fault) as proxy, pytest.raises(RegistryError) as caught:
        provider = Provider.of(proxy.host, repository)
        use(lambda client: client.upload(provider, described(BIG), chunks), patch_bytes=1_000_000)
    assert caught.value is failure
    assert not stored(registry, repository, BIG)


def test_I3_last_bytes_wait_until_the_source_has_verified_them() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield BIG
        raise VerificationError("wrong all along")

    with Answering(lambda seen: (202, {"Location": "/u"}, b"")) as server:
        with pytest.raises(VerificationError, match="wrong all along"):
            use(lambda client: client.upload(Provider.of(server.host, "a/b"), described(BIG), chunks))
        assert [seen.method for seen in server.seen] == ["POST", "DELETE"], "no PUT arrived whole"


def test_upload_goes_to_relative_locations_with_their_state() -> None:
    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        if seen.method == "POST":
            return 202, {"Location": "/elsewhere/1?state=a%2Fb"}, b""
        return 201, {}, b""

    data = b"hello"
    with Answering(answer) as server:
        use(lambda client: client.upload(Provider.of(server.host, "a/b"), described(data), stream_of(data)))
        put = server.seen[-1]
    assert put.path == "/elsewhere/1?state=a%2Fb&digest=sha256%3A" + sha256(data).hex
    assert (put.body, put.headers["content-type"]) == (data, "application/octet-stream")


@pytest.mark.parametrize("location", ["http://h:x/y", "\x7f", "x" * 70_000])
@pytest.mark.parametrize("at", ["POST", "PATCH"])
def test_a_location_that_is_no_url_is_the_registrys_fault(at: str, location: str) -> None:
    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        if seen.method == "PUT" and seen.headers["content-length"] != "0":
            return 413, {}, b""
        return 202, {"Location": location if seen.method == at else "/u"}, b""

    data = b"hello"
    with Answering(answer) as server, pytest.raises(RegistryError, match="malformed URL"):
        use(lambda client: client.upload(Provider.of(server.host, "a/b"), described(data), stream_of(data)))


def test_mount_that_becomes_an_upload_is_cancelled(registry: RegistryProcess, repository: str) -> None:
    mark = registry.mark()
    source, target = Provider.of(registry.host, f"{repository}-none"), Provider.of(registry.host, repository)
    assert use(lambda client: client.mount(target, sha256(BIG), source)) is False
    seen = [(line.method, line.status) for line in registry.requests()[mark:]]
    assert seen == [("POST", 202), ("DELETE", 204)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
def test_refused_mount_is_false(registry: RegistryProcess, repository: str, status: int) -> None:
    with FaultyProxy(registry.host, Fault("POST", "mount=", status=status)) as proxy:
        source, target = Provider.of(proxy.host, f"{repository}-a"), Provider.of(proxy.host, repository)
        assert use(lambda client: client.mount(target, sha256(BIG), source)) is False


@pytest.mark.parametrize("fault", [None, Fault("GET", "/blobs/", 1, cut_after=1_500_000)])
def test_registry_to_registry_streams_whole_blobs(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, fault: Fault | None
) -> None:
    push_blob(registry.host, repository, BIG)
    target = Provider.of(second_registry.host, f"{repository}-{'a' if fault else 'b'}")
    with FaultyProxy(registry.host, *([fault] if fault else [])) as proxy:
        source = Provider.of(proxy.host, repository)

        async def copy(client: RegistryClient) -> None:
            async def chunks() -> AsyncIterator[bytes]:
                async with client.blob(source, described(BIG)) as stream:
                    async for chunk in stream:
                        yield chunk

            await client.upload(target, described(BIG), chunks)

        use(copy)
    assert use(lambda client: fetched(client, target, described(BIG)))[0] == BIG


def test_I3_corrupt_source_never_reaches_the_other_registry(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    push_blob(registry.host, repository, BIG)
    target = Provider.of(second_registry.host, repository)
    with FaultyProxy(registry.host, Fault("GET", "/blobs/", flip=True)) as proxy:
        source = Provider.of(proxy.host, repository)

        async def copy(client: RegistryClient) -> None:
            async def chunks() -> AsyncIterator[bytes]:
                async with client.blob(source, described(BIG)) as stream:
                    async for chunk in stream:
                        yield chunk

            await client.upload(target, described(BIG), chunks)

        with pytest.raises(VerificationError) as caught:
            use(copy)
    assert proxy.host in caught.value.where, "the error names the source, not the target"
    assert not stored(second_registry, repository, BIG)


def test_skopeo_reads_what_was_pushed(registry: RegistryProcess, repository: str) -> None:
    tar = layer_tar({"etc/hello": b"hello"})
    layer = gzip.compress(tar, mtime=0)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [sha256(tar)]}}
    ).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [{"mediaType": OCI_LAYER, "digest": sha256(layer), "size": len(layer)}],
    }).encode()  # fmt: skip
    provider = Provider.of(registry.host, repository)

    async def push(client: RegistryClient) -> list[Digest]:
        for data in (layer, config):
            await client.upload(provider, described(data), stream_of(data))
        return [await client.put_manifest(provider, name, OCI_MANIFEST, manifest) for name in ("1.0", sha256(manifest))]

    assert use(push) == [sha256(manifest)] * 2
    command = ["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/{repository}:1.0"]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert seen["Digest"] == sha256(manifest)
    assert seen["Layers"] == [sha256(layer)]
    assert get_json(registry.host, f"/v2/{repository}/tags/list")["tags"] == ["1.0"]


def test_I3_registry_that_keeps_another_manifest_than_it_was_given_is_not_believed(
    registry: RegistryProcess, repository: str
) -> None:
    def other(answer: Answer) -> None:
        answer.headers["docker-content-digest"] = sha256(b"other")

    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    with FaultyProxy(registry.host, Fault("PUT", "/manifests/", edit_answer=other)) as proxy:
        provider = Provider.of(proxy.host, repository)
        with pytest.raises(VerificationError, match="the registry stored the manifest as 'sha256:") as caught:
            use(lambda client: client.put_manifest(provider, "1.0", OCI_INDEX, manifest))
    assert caught.value.where == f"{proxy.host}/{repository}:1.0"
