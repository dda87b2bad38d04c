"""What a manifest says of itself: is it about another one?"""

from __future__ import annotations

import asyncio

import pytest

from storage.digest import Digest, canonical_json, sha256
from storage.errors import InputError, RegistryError
from storage.interfaces.images import Descriptor, Provider, Referrer
from storage.media_types import CONFIG, MANIFEST
from storage.referrers import FallbackTag, fallback_tag, is_fallback_tag, read_referrers, referring

SUBJECT = {"mediaType": MANIFEST, "digest": str(sha256(b"image")), "size": 5}


@pytest.mark.parametrize("data", [b"{}", b'"subject"', b'{"subject"', b'{"subject":null}', b'["subject"]'])
def test_what_has_no_subject_refers_to_nothing(data: bytes) -> None:
    assert referring(data, MANIFEST) is None


def test_the_entry_tells_what_the_manifest_tells_of_itself() -> None:
    data = canonical_json({"subject": SUBJECT, "annotations": {"by": "me"}, "config": {"mediaType": CONFIG}})
    found = referring(data, MANIFEST)
    assert found is not None
    subject, entry = found
    assert subject == SUBJECT["digest"]
    assert (entry.manifest.digest, entry.manifest.size) == (sha256(data), len(data))
    assert (entry.manifest.annotations, entry.artifact_type) == ({"by": "me"}, CONFIG)


@pytest.mark.parametrize("subject", [5, [], {}, {**SUBJECT, "size": -1}, {**SUBJECT, "digest": "sha256:x"}])
def test_a_subject_that_is_no_descriptor_is_an_input_error(subject: object) -> None:
    with pytest.raises(InputError):
        referring(canonical_json({"subject": subject}), MANIFEST)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"manifests":7}', b'{"manifests":[7]}', b'{"manifests":[{}]}'])
def test_a_list_that_is_none_is_another_s_tag(data: bytes) -> None:
    with pytest.raises(RegistryError, match="somebody else uses that tag") as caught:
        read_referrers(data, "r/x:sha256-0")
    assert caught.value.kind == "transport"


def test_an_entry_that_is_listed_already_is_not_put_again() -> None:
    """What else the list has stays as it is."""
    provider = Provider.of("r.example", "x")
    lists: dict[str, bytes] = {}
    puts: list[str] = []

    async def read(_: Provider, tag: str) -> bytes | None:
        return lists.get(tag)

    async def put(_: Provider, tag: str, _media_type: str, data: bytes) -> Digest:
        lists[tag] = data
        puts.append(tag)
        return sha256(data)

    async def main() -> None:
        listed, subject = FallbackTag(read, put), sha256(b"image")
        assert await listed.list(provider, subject) == []
        entries = [Referrer(Descriptor(MANIFEST, sha256(b"%d" % number), 1), "x/y") for number in range(2)]
        for entry in (*entries, *entries):
            await listed.add(provider, subject, entry)
        assert await listed.list(provider, subject) == entries

    asyncio.run(main())
    assert puts == [fallback_tag(sha256(b"image"))] * 2
    assert is_fallback_tag(puts[0])
    assert not is_fallback_tag("latest")
