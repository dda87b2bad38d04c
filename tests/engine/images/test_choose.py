"""Which part of an index is taken, whatever the index says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.images.choose import ATTESTED, chosen
from engine.images.read import ImageReader, Manifest
from storage.blobs import DirectoryBlobs
from storage.digest import canonical_json, sha256
from storage.errors import VerificationError
from storage.interfaces.images import Platform, Provider
from storage.media_types import INDEX, MANIFEST

AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")


def _entry(platform: Platform | None, **more: Any) -> dict[str, Any]:
    where = {"os": platform.os, "architecture": platform.architecture} if platform else {"os": "unknown"}
    digest = str(sha256(f"{platform} {sorted(more)}".encode()))
    return {"mediaType": MANIFEST, "digest": digest, "size": 1, "platform": where, **more}


def _chosen(tmp_path: Path, *more: Any) -> Manifest:
    entries = [_entry(AMD), _entry(ARM), _entry(Platform("linux", "s390x")), *more]
    fields = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    data = canonical_json(fields)
    images = ImageReader(None, DirectoryBlobs(tmp_path, owner="test"))  # type: ignore[arg-type]  # nothing is fetched
    top = Manifest(sha256(data), data, fields)
    return asyncio.run(chosen(images, Provider.of("h", "r"), top, [AMD, ARM], "h/r"))


def test_several_platforms_keep_what_attests_them(tmp_path: Path) -> None:
    about = {name: _entry(None, annotations={ATTESTED: _entry(of)["digest"]}, artifactType=name)
             for name, of in (("arm", ARM), ("z", Platform("linux", "s390x")))}  # fmt: skip
    kept = _chosen(tmp_path, *about.values()).fields["manifests"]
    assert kept == [_entry(AMD), _entry(ARM), about["arm"]]


@pytest.mark.parametrize(
    "entry", [_entry(None, annotations={ATTESTED: []}), _entry(None, annotations=[1]), _entry(None, digest=[])]
)
def test_an_index_with_an_entry_that_is_no_descriptor_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="lists what is no descriptor"):
        _chosen(tmp_path, entry)
