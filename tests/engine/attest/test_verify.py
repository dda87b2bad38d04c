"""Attestations of whoever controls the registry: what vouches for an image, what does not, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.attest import verify
from engine.attest.signed import Attestations, signed_by
from engine.attest.statement import PREDICATE_TYPE, SBOM, Statement, statement
from engine.attest.verify import Claim, ImageVerifier, Verified
from engine.errors import RegistryError, VerificationError
from engine.images.read import ImageReader
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider, Referrer
from storage.media_types import EMPTY_CONFIG, MANIFEST
from storage.reference import parse_reference
from storage.signing.dsse import ENVELOPE, IN_TOTO, sign
from storage.signing.notes import new_signer
from tests.contracts.registries import Client, MemoryKit, index, manifest, put_image
from tests.storage.registry.kit import stream_of

OURS, OTHER = new_signer("ours.example", b"1" * 32), new_signer("other.example", b"2" * 32)
KIT = MemoryKit.one
HERE = Provider.of(KIT, "app")
EMPTY = Descriptor(EMPTY_CONFIG, sha256(b"{}"), 2)
SAID: dict[str, Any] = {"components": []}


def about(image: Digest) -> bytes:
    return statement({image: "linux/amd64"}, SBOM, SAID)


async def put(client: Client, media_type: str, data: bytes, **more: Any) -> Descriptor:
    blob = Descriptor(media_type, sha256(data), len(data), more)
    await client.upload(HERE, blob, stream_of(data))
    return blob


async def refer(client: Client, image: Descriptor, *blobs: Descriptor, artifact: str = ENVELOPE, **more: Any) -> None:
    """Put a manifest with `blobs` that refers to `image`."""
    await client.upload(HERE, EMPTY, stream_of(b"{}"))
    data = manifest(EMPTY, blobs, artifactType=artifact, subject={**image.to_json(), **more})
    await client.put_manifest(HERE, str(sha256(data)), MANIFEST, data)


Attack = Callable[[Client, Descriptor], Awaitable[None]]


async def nothing(_client: Client, _image: Descriptor) -> None:
    pass


async def announced_otherwise(client: Client, image: Descriptor) -> None:
    said = about(image.digest)
    blob = await put(client, IN_TOTO, said, **{PREDICATE_TYPE: "https://slsa.dev/provenance/v1"})
    await refer(client, image, blob, artifact=IN_TOTO)


async def no_statement(client: Client, image: Descriptor) -> None:
    await refer(client, image, await put(client, IN_TOTO, b'{"_type": "another"}'), artifact=IN_TOTO)


async def no_predicate(client: Client, image: Descriptor) -> None:
    fields = json.loads(about(image.digest))
    said = json.dumps({**fields, "predicate": "text"}).encode()
    await refer(client, image, await put(client, IN_TOTO, said), artifact=IN_TOTO)


async def too_many_blobs(client: Client, image: Descriptor) -> None:
    blob = await put(client, IN_TOTO, about(image.digest))
    await refer(client, image, *[blob] * (verify.MOST + 1))


async def too_many_referrers(client: Client, image: Descriptor) -> None:
    for number in range(verify.MOST + 1):
        await refer(client, image, await put(client, ENVELOPE, b"%d" % number))


async def too_large(client: Client, image: Descriptor) -> None:
    blob = await put(client, ENVELOPE, b"x")
    await refer(client, image, Descriptor(ENVELOPE, blob.digest, verify.LIMIT + 1))


ATTACKS: dict[str, tuple[Attack, str]] = {
    "announced as another type": (announced_otherwise, "is announced as another type than it is"),
    "no statement": (no_statement, "no in-toto statement"),
    "a predicate that is none": (no_predicate, "no in-toto statement: its predicate is none"),
    "more blobs than are looked at": (too_many_blobs, "lists more than 64 attestations"),
    "more referrers than are looked at": (too_many_referrers, "more than 64 attestations are attached"),
    "a blob larger than memory": (too_large, "is larger than"),
}


def check(kit: MemoryKit, path: Path, platform: str = "") -> tuple[Verified, ...]:
    async def run(client: Client) -> tuple[Verified, ...]:
        images = ImageReader(client, DirectoryBlobs(path, owner="t"))
        found = ImageVerifier(images, client, OURS.verifier)
        return await found.verify(parse_reference(f"{HERE}:v1"), platform=platform)

    return kit.use(run)


@pytest.fixture
def kit() -> MemoryKit:
    return MemoryKit()


def attested(kit: MemoryKit, attack: Attack = nothing) -> Descriptor:
    """An image that we vouch for, and what else somebody put beside that."""

    async def make(client: Client) -> Descriptor:
        image, _ = await put_image(client, HERE, [b"layer"], "v1")
        await refer(client, image, await put(client, ENVELOPE, sign(IN_TOTO, about(image.digest), OURS)))
        await attack(client, image)
        return image

    return kit.use(make)


def test_what_is_signed_is_told(kit: MemoryKit, tmp_path: Path) -> None:
    image = attested(kit)
    (found,) = check(kit, tmp_path)
    assert (found.image, [claim.predicate for claim in found.claims]) == (image.digest, [SAID])


@pytest.mark.parametrize("media_type", [IN_TOTO, ENVELOPE])
def test_more_attestations_than_memory_has_are_not_fetched(
    kit: MemoryKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, media_type: str
) -> None:
    """64 manifests with 64 blobs of 64 MiB each were all asked for, and kept."""
    monkeypatch.setattr(verify, "TOTAL", 10_000)

    async def clutter(client: Client, image: Descriptor) -> None:
        for number in range(4):
            said = sign(IN_TOTO, b"x" * 2000, OTHER) + b" " * number
            if media_type == IN_TOTO:
                said = about(image.digest) + b" " * (3000 + number)
            await refer(client, image, *[await put(client, media_type, said)] * 3, artifact=media_type)

    attested(kit, clutter)
    with pytest.raises(VerificationError, match="its attestations have more than 10000 bytes"):
        check(kit, tmp_path)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_lies_beside_what_is_signed_is_not_passed_over(kit: MemoryKit, tmp_path: Path, name: str) -> None:
    attack, why = ATTACKS[name]
    attested(kit, attack)
    with pytest.raises(VerificationError, match=why):
        check(kit, tmp_path)


def test_an_attestation_that_is_gone_is_told(kit: MemoryKit, tmp_path: Path) -> None:
    image = attested(kit)
    kit.lose(sha256(sign(IN_TOTO, about(image.digest), OURS)))
    with pytest.raises(VerificationError, match=r"the attestation sha256:\w+ is gone"):
        check(kit, tmp_path)


def test_an_index_of_too_many_images_is_verified_one_by_one(kit: MemoryKit, tmp_path: Path) -> None:
    async def make(client: Client) -> None:
        image, _ = await put_image(client, HERE, [b"layer"], "one")
        data = index(*[image] * (verify.MOST + 1))
        await client.put_manifest(HERE, "v1", "application/vnd.oci.image.index.v1+json", data)

    kit.use(make)
    with pytest.raises(VerificationError, match="an index of 65 images"):
        check(kit, tmp_path)


# ---------------------------------------------------------------- for a rule of a policy


def signers(kit: MemoryKit, path: Path, subjects: Sequence[Digest]) -> tuple[str, ...]:
    async def run(client: Client) -> tuple[str, ...]:
        found = Attestations(ImageReader(client, DirectoryBlobs(path, owner="t")), client)
        return await found.signers(HERE, subjects, [str(OURS.verifier), str(OTHER.verifier)])

    return kit.use(run)


def test_what_cannot_be_read_vouches_for_nothing_and_hides_nobody(kit: MemoryKit, tmp_path: Path) -> None:
    gone = sign(IN_TOTO, b"gone", OTHER)

    async def clutter(client: Client, image: Descriptor) -> None:
        await refer(client, image, await put(client, ENVELOPE, gone))
        await refer(client, image, await put(client, ENVELOPE, b"no envelope"))
        data = json.loads(manifest(EMPTY, [], artifactType=ENVELOPE, subject=image.to_json()))
        data["layers"] = [{"urls": ["u"], "digest": "none"}, {"urls": ["u"], **EMPTY.to_json()}]
        raw = json.dumps(data).encode()
        await client.put_manifest(HERE, str(sha256(raw)), MANIFEST, raw)

    image = attested(kit, clutter)
    kit.lose(sha256(gone))
    assert signers(kit, tmp_path, [image.digest]) == (str(OURS.verifier),)


def test_I3_only_a_known_key_about_this_very_image_vouches() -> None:
    image, other = sha256(b"image"), sha256(b"other")
    keys = [OURS.verifier]
    assert signed_by(sign(IN_TOTO, about(image), OURS), image, keys) == [str(OURS.verifier)]
    assert signed_by(sign(IN_TOTO, about(image), OTHER), image, keys) == []
    assert signed_by(sign(IN_TOTO, about(other), OURS), image, keys) == []
    assert signed_by(sign("text/plain", about(image), OURS), image, keys) == []
    for payload in (b"", b"[]", b'{"_type": "x", "subject": []}', b'{"_type": "https://in-toto.io/Statement/v1"}'):
        assert signed_by(sign(IN_TOTO, payload, OURS), image, keys) == []
    assert Statement.parse(about(image)).subjects == {str(image)}


# ---------------------------------------------------------------- a registry that lies, or falls silent


class Lying:
    """Of `client`, but that it lists `referrers` of anything, and gives no blob."""

    def __init__(self, client: Client, *referrers: Referrer) -> None:
        self._client, self._referrers = client, referrers

    async def referrers(self, _provider: Provider, _digest: Digest) -> tuple[Referrer, ...]:
        return self._referrers

    def blob(self, _provider: Provider, blob: Descriptor) -> None:
        raise RegistryError(f"{blob.digest} does not come", kind="transport", status=503)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_a_referrer_of_another_image_is_told_of(kit: MemoryKit, tmp_path: Path) -> None:
    async def run(client: Client) -> None:
        image, _ = await put_image(client, HERE, [b"layer"], "v1")
        other, _ = await put_image(client, HERE, [b"other"], "v2")
        await client.upload(HERE, EMPTY, stream_of(b"{}"))
        data = manifest(EMPTY, [], artifactType=ENVELOPE, subject=other.to_json())
        digest = await client.put_manifest(HERE, str(sha256(data)), MANIFEST, data)
        lying: Any = Lying(client, Referrer(Descriptor(MANIFEST, digest, len(data)), ENVELOPE))
        verifier = ImageVerifier(ImageReader(client, DirectoryBlobs(tmp_path, owner="t")), lying, OURS.verifier)
        with pytest.raises(VerificationError, match=f"{digest} is listed as a referrer and refers elsewhere"):
            await verifier.verify(parse_reference(f"{HERE}@{image.digest}"))

    kit.use(run)


def test_a_registry_that_falls_silent_is_no_proof_of_anything(kit: MemoryKit, tmp_path: Path) -> None:
    image = attested(kit)

    async def run(client: Client) -> None:
        lying: Any = Lying(client)
        images = ImageReader(lying, DirectoryBlobs(tmp_path, owner="t"))
        with pytest.raises(RegistryError, match="does not come"):
            await ImageVerifier(images, client, OURS.verifier).verify(parse_reference(f"{HERE}:v1"))
        with pytest.raises(RegistryError, match="does not come"):
            await Attestations(images, client).signers(HERE, [image.digest], [str(OURS.verifier)])

    kit.use(run)


def test_a_manifest_that_is_none_vouches_for_nothing(kit: MemoryKit, tmp_path: Path) -> None:
    image = attested(kit)

    async def run(client: Client) -> tuple[str, ...]:
        data = b"no JSON"
        blobs = DirectoryBlobs(tmp_path, owner="t")
        blobs.put(data)
        lying: Any = Lying(client, Referrer(Descriptor(MANIFEST, sha256(data), len(data)), ENVELOPE))
        return await Attestations(ImageReader(client, blobs), lying).signers(
            HERE, [image.digest], [str(OURS.verifier)]
        )

    assert kit.use(run) == ()


def test_of_a_claim_of_another_type_only_the_type_is_told() -> None:
    claim = Claim("https://other.example/type", sha256(b"statement"), {"anything": 1}, in_index=False)
    assert set(claim.to_json()) == {"predicate_type", "statement", "in_index"}


@pytest.mark.parametrize(("compositions", "incomplete"), [
    (None, False), ([], False), ("incomplete", False), ([1, None, {}], False), ([{"aggregate": "complete"}], False),
    ([{"aggregate": 3}, {"aggregate": "incomplete_first_party_only"}], True),
])  # fmt: skip
def test_an_sbom_that_says_that_there_is_more_is_not_told_of_as_if_it_were_all(
    compositions: object, *, incomplete: bool
) -> None:
    said = verify.summary(SBOM, {"components": [{}], "compositions": compositions})
    assert said == {"components": 1, "incomplete": incomplete}
