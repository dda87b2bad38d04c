"""Tags and referrers of OCI layouts on this disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from storage.digest import Digest, canonical_json, sha256
from storage.errors import InputError
from storage.interfaces.images import Provider, Referrer
from storage.layout.listing import WithLayoutListing
from storage.layout.target import REF_NAME, WithLayoutTargets
from storage.reference import LAYOUT_REGISTRY
from tests.storage.layout.test_target import MANIFEST, Elsewhere, put

SBOM = "application/vnd.example.sbom"


class Others:
    """The listing of registries."""

    async def tags(self, _provider: Provider) -> tuple[str, ...]:
        return ("elsewhere",)

    async def referrers(self, _provider: Provider, _subject: Digest, _kind: str = "") -> tuple[Referrer, ...]:
        return ()


LISTING = WithLayoutListing(Others())


def of(path: Path) -> Provider:
    return Provider.of(LAYOUT_REGISTRY, str(path))


def artifact(subject: Digest) -> bytes:
    refers = {"mediaType": MANIFEST, "digest": str(subject), "size": 1}
    return canonical_json({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": SBOM, "subject": refers})


def test_tags_of_a_layout_and_of_a_registry(tmp_path: Path) -> None:
    put(tmp_path, "v1")
    put(tmp_path, "v2", "other")
    index = json.loads((tmp_path / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": "docker.io/library/a:v3"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert asyncio.run(LISTING.tags(of(tmp_path))) == ("v3", "v2")
    assert asyncio.run(LISTING.tags(Provider.of("127.0.0.1:1", "a"))) == ("elsewhere",)


def test_tags_where_there_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no OCI layout"):
        asyncio.run(LISTING.tags(of(tmp_path)))


def test_what_is_put_with_a_subject_is_listed(tmp_path: Path) -> None:
    subject = put(tmp_path, "v1")
    made = artifact(subject)
    asyncio.run(WithLayoutTargets(Elsewhere(), "b1").put_manifest(of(tmp_path), sha256(made), MANIFEST, made))
    for kind, count in (("", 1), (SBOM, 1), ("application/x", 0)):
        found = asyncio.run(LISTING.referrers(of(tmp_path), subject, kind))
        assert [one.manifest.digest for one in found] == [sha256(made)] * count
    assert f"sha256-{subject.hex}" in asyncio.run(LISTING.tags(of(tmp_path)))


def test_what_others_put_beside_the_images_is_listed_too(tmp_path: Path) -> None:
    subject = put(tmp_path, "v1")
    made = artifact(subject)
    asyncio.run(WithLayoutTargets(Elsewhere(), "b1").put_manifest(of(tmp_path), "sbom", MANIFEST, made))
    index = json.loads((tmp_path / "index.json").read_text())
    index["manifests"] = [
        entry for entry in index["manifests"] if not entry["annotations"][REF_NAME].startswith("sha256-")
    ]  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert [one.artifact_type for one in asyncio.run(LISTING.referrers(of(tmp_path), subject))] == [SBOM]
