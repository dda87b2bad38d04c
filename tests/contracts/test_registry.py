"""What the engine relies on of registries and of a client of theirs, whoever they are: the real ones, and those that
stand in for them in simulations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from storage.digest import Digest, sha256
from storage.errors import InputError, RefledgerError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider
from storage.media_types import CONFIG, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST
from storage.reference import parse_reference
from tests.contracts.registries import (
    Client,
    MemoryKit,
    RealRegistries,
    Registries,
    failing_stream,
    index,
    manifest,
    put,
    put_image,
    read,
)
from tests.registry_fixture import OCI_LAYER
from tests.storage.registry.kit import described, missing_digest, noise, stream_of

BIG = noise(1 << 20, seed=3)
GONE = missing_digest()
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"


@pytest.fixture(params=["docker-registry", "memory"])
def registries(request: pytest.FixtureRequest) -> Registries:
    if request.param == "memory":
        return MemoryKit()
    return RealRegistries(request.getfixturevalue("registry"), request.getfixturevalue("second_registry"))


@pytest.fixture
def here(registries: Registries, repository: str) -> Provider:
    """A repository of this test's own."""
    return Provider.of(registries.one, repository)


# ---------------------------------------------------------------- reading


def test_tag_and_digest_resolve_to_the_manifest(registries: Registries, here: Provider) -> None:
    image, data = registries.use(lambda client: put_image(client, here, [b"layer"], "v1"))
    for written in (f"{here}:v1", f"{here}@{image.digest}", f"{here}:other@{image.digest}"):
        assert registries.use(lambda client, name=written: client.resolve(parse_reference(name))) == image
    assert registries.use(lambda client: client.manifest(here, image.digest)) == (MANIFEST, data)


def test_indexes_and_docker_manifests_keep_their_media_types(registries: Registries, here: Provider) -> None:
    async def main(client: Client) -> None:
        image, data = await put_image(client, here, [b"layer"])
        docker = data.replace(MANIFEST.encode(), DOCKER_MANIFEST.encode())
        digest = await client.put_manifest(here, "docker", DOCKER_MANIFEST, docker)
        one = Descriptor(DOCKER_MANIFEST, digest, len(docker))
        both = index(image)
        listing = index(one).replace(INDEX.encode(), DOCKER_LIST.encode())
        assert await client.put_manifest(here, "all", INDEX, both) == sha256(both)
        await client.put_manifest(here, "list", DOCKER_LIST, listing)
        assert await client.manifest(here, one.digest) == (DOCKER_MANIFEST, docker)
        assert await client.resolve(parse_reference(f"{here}:all")) == Descriptor(INDEX, sha256(both), len(both))
        assert (await client.resolve(parse_reference(f"{here}:list"))).media_type == DOCKER_LIST

    registries.use(main)


def test_blob_arrives_in_one_piece_and_is_counted_as_the_registry_counts(
    registries: Registries, here: Provider
) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    mark = len(registries.requests())
    assert registries.use(lambda client: read(client, here, blob)) == (BIG, len(BIG), 0, False)
    assert registries.requests()[mark:] == [("GET", blob.digest, 200, len(BIG))]


def test_empty_blob_is_a_blob(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, b""))
    assert registries.use(lambda client: read(client, here, blob))[0] == b""


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, 400_000), (400_000, 900_000), (900_000, None), (len(BIG) - 1, len(BIG)), (1, len(BIG))],
)
def test_only_the_bytes_asked_for_are_sent(
    registries: Registries, here: Provider, start: int, end: int | None
) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    mark = len(registries.requests())
    data, wire, resumed, ranged = registries.use(lambda client: read(client, here, blob, start, end))
    assert data == BIG[start:end]
    assert (wire, resumed, ranged) == (len(data), 0, True)
    assert registries.requests()[mark:] == [("GET", blob.digest, 206, len(data))]


def test_a_range_that_is_all_of_the_blob_is_asked_for_without_range(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    mark = len(registries.requests())
    assert registries.use(lambda client: read(client, here, blob, 0, len(BIG))) == (BIG, len(BIG), 0, False)
    assert registries.requests()[mark:] == [("GET", blob.digest, 200, len(BIG))]


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, 5), (0, len(BIG) + 1), (len(BIG), None)])
def test_a_range_that_the_blob_does_not_have_is_a_mistake_of_the_caller(
    registries: Registries, here: Provider, start: int, end: int | None
) -> None:
    mark = len(registries.requests())
    with pytest.raises(ValueError, match="no range"):
        registries.use(lambda client: read(client, here, described(BIG), start, end))
    assert len(registries.requests()) == mark


def test_existence_is_asked_of_one_repository_by_head(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, b"data"))
    other = Provider.of(here.registry, f"{here.repository}-b")
    mark = len(registries.requests())
    assert registries.use(lambda client: client.exists(here, blob.digest)) is True
    assert registries.use(lambda client: client.exists(here, GONE)) is False
    assert registries.use(lambda client: client.exists(other, blob.digest)) is False
    assert [method for method, *_ in registries.requests()[mark:]] == ["HEAD", "HEAD", "HEAD"]


def test_a_lost_blob_is_missing(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, b"lost by " + here.repository.encode()))
    registries.lose(blob.digest)
    assert registries.use(lambda client: client.exists(here, blob.digest)) is False
    with pytest.raises(RegistryError) as caught:
        registries.use(lambda client: read(client, here, blob))
    assert (caught.value.kind, caught.value.status) == ("missing", 404)
    assert caught.value.where == f"{here}@{blob.digest}"


@pytest.mark.parametrize("size", [-1, 1])
def test_I3_a_blob_of_another_size_than_promised_is_refused(
    registries: Registries, here: Provider, size: int
) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    promised = Descriptor(blob.media_type, blob.digest, blob.size + size)
    for start in (0, 1000):
        with pytest.raises(VerificationError, match="promised") as caught:
            registries.use(lambda client, start=start: read(client, here, promised, start))
        assert caught.value.where == f"{here}@{blob.digest}"


@pytest.mark.parametrize("name", ["a b", "../x", "A/b", ""])
def test_what_could_be_no_repository_is_the_callers_mistake(registries: Registries, name: str) -> None:
    nobody = Provider.of(registries.one, name)
    for work in (
        lambda client: client.exists(nobody, GONE),
        lambda client: client.manifest(nobody, GONE),
        lambda client: read(client, nobody, described(BIG)),
        lambda client: client.tags(nobody),
        lambda client: client.mount(nobody, GONE, nobody),
        lambda client: put(client, nobody, b"x"),
        lambda client: client.put_manifest(nobody, "t", MANIFEST, b"{}"),
    ):
        with pytest.raises(InputError):
            registries.use(work)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("data", [BIG, b"x", b""])
def test_upload_is_one_put(registries: Registries, here: Provider, data: bytes) -> None:
    mark = len(registries.requests())
    blob = registries.use(lambda client: put(client, here, data))
    assert [method for method, *_ in registries.requests()[mark:]] == ["POST", "PUT"]
    assert registries.use(lambda client: read(client, here, blob))[0] == data


@pytest.mark.parametrize("wrong", [-1, 1])
def test_I3_source_of_another_length_is_refused(registries: Registries, here: Provider, wrong: int) -> None:
    data = BIG + here.repository.encode()
    claimed = Descriptor("x", sha256(data), len(data) + wrong)
    with pytest.raises(VerificationError, match="promised"):
        registries.use(lambda client: client.upload(here, claimed, stream_of(data)))
    assert registries.use(lambda client: client.exists(here, claimed.digest)) is False


def test_I3_registry_that_received_other_bytes_is_believed(registries: Registries, here: Provider) -> None:
    other = BIG[:-1] + bytes([BIG[-1] ^ 1])
    with pytest.raises(VerificationError, match="arrived"):
        registries.use(lambda client: client.upload(here, described(BIG), stream_of(other)))
    assert registries.use(lambda client: client.exists(here, sha256(BIG))) is False
    assert registries.use(lambda client: client.exists(here, sha256(other))) is False


@pytest.mark.parametrize(
    "error", [RegistryError("the source is gone", kind="missing", status=404), VerificationError("wrong all along")]
)
def test_I3_failing_source_stores_nothing_and_is_raised_as_it_is(
    registries: Registries, here: Provider, error: RefledgerError
) -> None:
    with pytest.raises(type(error)) as caught:
        registries.use(lambda client: client.upload(here, described(BIG), failing_stream(BIG, error)))
    assert caught.value is error
    assert registries.use(lambda client: client.exists(here, sha256(BIG))) is False


def test_sources_are_closed_however_an_upload_ends(registries: Registries, here: Provider) -> None:
    async def main(client: Client) -> list[str]:
        seen: list[str] = []

        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield BIG
                await asyncio.sleep(0)
                yield b"more than promised"
            finally:
                seen.append("closed")

        with pytest.raises(VerificationError):
            await client.upload(here, described(BIG), chunks)
        return seen

    assert registries.use(main) == ["closed"]


def test_mount_moves_no_bytes(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    other = Provider.of(here.registry, f"{here.repository}-b")
    mark = len(registries.requests())
    assert registries.use(lambda client: client.mount(other, blob.digest, here)) is True
    assert [(method, status) for method, _, status, _ in registries.requests()[mark:]] == [("POST", 201)]
    assert registries.use(lambda client: read(client, other, blob))[0] == BIG


def test_what_is_not_there_is_not_mounted(registries: Registries, here: Provider) -> None:
    nowhere = Provider.of(here.registry, f"{here.repository}-none")
    assert registries.use(lambda client: client.mount(here, GONE, nowhere)) is False
    assert registries.use(lambda client: client.exists(here, GONE)) is False


def test_mount_between_registries_asks_nobody(registries: Registries, here: Provider) -> None:
    mark = len(registries.requests())
    assert registries.use(lambda client: client.mount(here, GONE, Provider.of(registries.two, "a/b"))) is False
    assert len(registries.requests()) == mark


def test_a_tag_names_what_was_put_last(registries: Registries, here: Provider) -> None:
    async def main(client: Client) -> None:
        first, _ = await put_image(client, here, [b"1"], "v")
        second, _ = await put_image(client, here, [b"2"], "v")
        assert first != second
        assert await client.resolve(parse_reference(f"{here}:v")) == second
        assert (await client.resolve(parse_reference(f"{here}@{first.digest}"))) == first

    registries.use(main)


def test_a_manifest_put_by_digest_has_no_tag(registries: Registries, here: Provider) -> None:
    async def main(client: Client) -> None:
        config = await put(client, here, b"{}", CONFIG)
        data = manifest(config, [])
        assert await client.put_manifest(here, sha256(data), MANIFEST, data) == sha256(data)
        assert (await client.manifest(here, sha256(data)))[1] == data
        with pytest.raises(RegistryError) as caught:
            await client.tags(here)
        assert caught.value.kind == "missing"

    registries.use(main)


def test_manifest_under_anothers_digest_is_refused_before_it_is_sent(registries: Registries, here: Provider) -> None:
    mark = len(registries.requests())
    with pytest.raises(VerificationError):
        registries.use(lambda client: client.put_manifest(here, sha256(b"other"), MANIFEST, b"{}"))
    with pytest.raises(InputError):
        registries.use(lambda client: client.put_manifest(here, "not/a?tag", MANIFEST, b"{}"))
    assert len(registries.requests()) == mark


@pytest.mark.parametrize("lacking", ["config", "layer", "lost layer", "layer of another repository", "manifest"])
def test_I11_manifest_that_needs_what_is_not_there_is_the_registrys_error(
    registries: Registries, here: Provider, lacking: str
) -> None:
    async def prepare(client: Client) -> tuple[str, bytes, Digest]:
        config = await put(client, here, b"{}", CONFIG)
        layer = await put(client, here, b"of " + here.repository.encode())
        if lacking == "manifest":
            return INDEX, index(Descriptor(MANIFEST, GONE, 4)), GONE
        if lacking == "config":
            config = Descriptor(CONFIG, GONE, 4)
        if lacking == "layer":
            layer = Descriptor(OCI_LAYER, GONE, 4)
        if lacking.endswith("repository"):
            layer = await put(client, Provider.of(here.registry, f"{here.repository}-b"), b"there only")
        return MANIFEST, manifest(config, [layer]), layer.digest

    media_type, data, needed = registries.use(prepare)
    if lacking == "lost layer":
        registries.lose(needed)
    with pytest.raises(RegistryError, match="blob unknown to registry") as caught:
        registries.use(lambda client: client.put_manifest(here, "1.0", media_type, data))
    assert caught.value.where == f"{here}:1.0"
    assert caught.value.kind == ("missing" if caught.value.status == 404 else "transport")
    with pytest.raises(RegistryError):
        registries.use(lambda client: client.resolve(parse_reference(f"{here}:1.0")))


# ---------------------------------------------------------------- listing


def test_tags_are_all_listed(registries: Registries, here: Provider) -> None:
    async def main(client: Client) -> tuple[str, ...]:
        for tag in ("v2", "latest", "v1"):
            await put_image(client, here, [b"layer"], tag)
        return await client.tags(here)

    assert registries.use(main) == ("latest", "v1", "v2")


def test_a_repository_that_is_not_there_is_missing(registries: Registries, here: Provider) -> None:
    with pytest.raises(RegistryError, match="list of tags") as caught:
        registries.use(lambda client: client.tags(here))
    assert caught.value.kind == "missing"


def test_what_refers_to_a_manifest_is_listed_however_many_come_at_once(
    registries: Registries, here: Provider
) -> None:
    async def main(client: Client) -> None:
        subject, _ = await put_image(client, here, [b"layer"])
        assert await client.referrers(here, subject.digest) == ()
        config = await put(client, here, b"{}", "application/vnd.oci.empty.v1+json")
        made = [
            manifest(config, [], subject=subject.to_json(), artifactType=kind, annotations={"note": kind})
            for kind in (SBOM, SIGNATURE, "x/y")
        ]
        await asyncio.gather(*(client.put_manifest(here, sha256(one), MANIFEST, one) for one in made))
        await client.put_manifest(here, "again", MANIFEST, made[0])
        found = {one.artifact_type: one.manifest for one in await client.referrers(here, subject.digest)}
        assert {kind: one.digest for kind, one in found.items()} == dict(
            zip((SBOM, SIGNATURE, "x/y"), map(sha256, made), strict=True)
        )
        assert found[SBOM].annotations == {"note": SBOM}
        assert [one.artifact_type for one in await client.referrers(here, subject.digest, SIGNATURE)] == [SIGNATURE]

    registries.use(main)


# ---------------------------------------------------------------- failures


def operations(here: Provider, blob: Descriptor) -> dict[str, Callable[[Client, str], Awaitable[Any]]]:
    """One of each kind, asked at a host."""

    def at(host: str) -> Provider:
        return Provider.of(host, here.repository)

    return {
        "resolve": lambda client, host: client.resolve(parse_reference(f"{at(host)}:latest")),
        "manifest": lambda client, host: client.manifest(at(host), GONE),
        "blob": lambda client, host: read(client, at(host), blob),
        "exists": lambda client, host: client.exists(at(host), blob.digest),
        "tags": lambda client, host: client.tags(at(host)),
        "referrers": lambda client, host: client.referrers(at(host), GONE),
        "mount": lambda client, host: client.mount(at(host), blob.digest, Provider.of(host, "other/one")),
        "upload": lambda client, host: put(client, at(host), b"new"),
        "put": lambda client, host: client.put_manifest(at(host), "new", MANIFEST, b'{"schemaVersion": 2}'),
    }


EXPECTED = {
    "lost connection": ("transport", 0), "503": ("transport", 503), "401": ("auth", 401), "404": ("missing", 404),
}  # fmt: skip
ANSWERS = {("mount", "401"): False, ("exists", "404"): False, ("mount", "404"): False, ("referrers", "404"): ()}


@pytest.mark.parametrize("fault", EXPECTED)
@pytest.mark.parametrize(
    "operation", ["resolve", "manifest", "blob", "exists", "tags", "referrers", "mount", "upload", "put"]
)
def test_what_a_failure_is_called(registries: Registries, here: Provider, operation: str, fault: str) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    work = operations(here, blob)[operation]
    if (operation, fault) in ANSWERS:
        assert registries.failing(fault, work) == ANSWERS[operation, fault]
        return
    with pytest.raises(RegistryError) as caught:
        registries.failing(fault, work)
    assert (caught.value.kind, caught.value.status) == EXPECTED[fault]
    assert here.repository in caught.value.where


def test_I3_other_bytes_never_end_well(registries: Registries, here: Provider) -> None:
    async def prepare(client: Client) -> tuple[Descriptor, Descriptor]:
        image, _ = await put_image(client, here, [BIG])
        return image, described(BIG)

    image, blob = registries.use(prepare)
    asked: list[tuple[Digest, Callable[[Client, Provider], Awaitable[Any]]]] = [
        (blob.digest, lambda client, place: read(client, place, blob)),
        (image.digest, lambda client, place: client.manifest(place, image.digest)),
    ]
    for digest, ask in asked:
        with pytest.raises(VerificationError, match=r"ha(s|ve) the digest") as caught:
            registries.failing(
                "wrong bytes", lambda client, host, ask=ask: ask(client, Provider.of(host, here.repository))
            )
        assert caught.value.where.endswith(f"/{here.repository}@{digest}")


def test_bytes_of_a_range_are_the_callers_to_verify(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    data, *_ = registries.failing(
        "wrong bytes", lambda client, host: read(client, Provider.of(host, here.repository), blob, 1000, 2000)
    )
    assert len(data) == 1000
    assert data != BIG[1000:2000]


def test_a_download_that_never_gets_on_ends(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    with pytest.raises(RegistryError) as caught:
        registries.failing(
            "broken off", lambda client, host: read(client, Provider.of(host, here.repository), blob)
        )
    assert (caught.value.kind, caught.value.status) == ("transport", 0)


def test_a_broken_connection_is_taken_up_again(registries: Registries, here: Provider) -> None:
    blob = registries.use(lambda client: put(client, here, BIG))
    mark = len(registries.requests())
    for start, end in ((0, None), (1000, 5000)):
        data, _, resumed, _ = registries.failing(
            "resumed",
            lambda client, host, start=start, end=end: read(
                client, Provider.of(host, here.repository), blob, start, end
            ),
        )
        assert data == BIG[start:end]
        assert start <= resumed < (end or len(BIG))
    assert json.dumps(registries.requests()[mark:]).count("GET") == 4
