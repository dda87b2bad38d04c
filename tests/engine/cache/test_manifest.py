"""A cache's manifest in both forms, and the facts beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cache import facts
from engine.cache.config import MEDIA_TYPE, ConfigLayer
from engine.cache.facts import CacheFacts, KeyFacts
from engine.cache.manifest import IMAGES, CacheManifest, ImageIndex, ImageManifest, described, layer_of, read, write
from engine.errors import VerificationError
from engine.refs.ref import Layer
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor
from storage.media_types import DOCKER_LIST, INDEX, MANIFEST

GOLDEN = Path(__file__).parent / "golden"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = Descriptor(MEDIA_TYPE, sha256(b"config"), 6)
EXTRA = Descriptor(facts.MEDIA_TYPE, sha256(b"facts"), 5)
LAYER = Layer(sha256(b"tar"), Descriptor(GZIP, sha256(b"tgz"), 3, {"x": "y"}), created=1_700_000_000_123_456_789)


@pytest.mark.parametrize(
    ("image_manifest", "oci", "form"), [(True, True, MANIFEST), (False, True, INDEX), (False, False, DOCKER_LIST)]
)
def test_all_forms_are_read_again(image_manifest: bool, oci: bool, form: str) -> None:
    media_type, data = write(CONFIG, [described(LAYER, oci)], EXTRA, image_manifest=image_manifest, oci=oci)
    assert json.loads(data)["mediaType"] == media_type == form
    found = read(data, "here")
    assert isinstance(found, CacheManifest)
    assert (found.config, found.facts) == (CONFIG, EXTRA)
    (blob,) = found.layers.values()
    assert blob.media_type == (GZIP if oci else "application/vnd.docker.image.rootfs.diff.tar.gzip")
    layer = layer_of(blob, ConfigLayer(blob.digest))
    assert layer is not None and layer.blob is not None
    assert (layer.diff_id, layer.blob.digest, layer.created) == (LAYER.diff_id, sha256(b"tgz"), LAYER.created)
    assert layer.blob.annotations == {"x": "y"}, "what the cache says of a layer must not change the image it goes into"


def test_index_is_laid_out_as_buildkit_has_it() -> None:
    """Layers, then whatever it does not know, then the config: its importer takes the config by media type."""
    _, data = write(CONFIG, [described(LAYER, True)], EXTRA, image_manifest=False, oci=True)
    types = [entry["mediaType"] for entry in json.loads(data)["manifests"]]
    assert types == [GZIP, facts.MEDIA_TYPE, MEDIA_TYPE]


def test_golden_index_of_buildkit_is_read() -> None:
    found = read((GOLDEN / "index.json").read_bytes(), "golden")
    assert isinstance(found, CacheManifest)
    assert found.facts is None
    assert found.config.size == 55
    first, _, third, fourth = found.layers.values()
    layer = layer_of(first, ConfigLayer(first.digest))
    assert layer is not None and layer.blob is not None
    assert layer.diff_id == "sha256:" + "d1" * 32
    assert layer.created == 1_714_979_288_000_000_000
    stargz = layer_of(third, ConfigLayer(third.digest))
    assert stargz is not None and stargz.blob is not None
    assert list(stargz.blob.annotations) == ["containerd.io/snapshot/stargz/toc.digest"]
    assert layer_of(fourth, ConfigLayer(fourth.digest)) is None, "without a diff ID nothing can be verified"
    told = layer_of(fourth, ConfigLayer(fourth.digest, diff_id=Digest("sha256:" + "d4" * 32), created=9))
    assert told is not None and (told.diff_id, told.created) == ("sha256:" + "d4" * 32, 9)


def test_images_are_told_from_caches() -> None:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(sha256(b"c")), "size": 1}
    assert isinstance(read(json.dumps({"config": config, "layers": []}).encode(), "x"), ImageManifest)
    entries = [{**config, "mediaType": MANIFEST}, config] * 100
    index = read(json.dumps({"manifests": entries}).encode(), "x")
    assert isinstance(index, ImageIndex)
    assert len(index.manifests) == IMAGES


@pytest.mark.parametrize(
    "document",
    [
        7, [], {}, {"config": {}}, {"manifests": [{}]}, {"manifests": ["x"]}, {"config": None, "layers": None},
        {"manifests": [{"mediaType": GZIP, "digest": "sha256:x", "size": 1}]},
        {"manifests": [{"mediaType": GZIP, "digest": str(sha256(b"")), "size": -1}]},
        {"manifests": [{"mediaType": GZIP, "digest": str(sha256(b"")), "size": {}}]},
        {"manifests": [{"mediaType": GZIP, "digest": str(sha256(b"")), "size": 10**30}]},
        {"manifests": [{"mediaType": GZIP, "digest": str(sha256(b"")), "size": "x" * 10**6}]},
        {"manifests": [{"mediaType": GZIP, "digest": str(sha256(b"")), "size": 1, "annotations": {"a": 5}}]},
        {"manifests": [{"mediaType": GZIP, "digest": str(sha256(b"")), "size": 1, "annotations": {"a": "x" * 9000}}]},
        {"manifests": [{"mediaType": "x" * 9000, "digest": str(sha256(b"")), "size": 1}]},
    ],
)  # fmt: skip
def test_malformed_manifest_is_one_clear_error(document: Any) -> None:
    with pytest.raises(VerificationError, match="neither a cache nor an image") as caught:
        read(json.dumps(document).encode(), "registry/cache")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# ---------------------------------------------------------------- facts

KEY = str(sha256(b"key"))
FULL = CacheFacts(
    {KEY: KeyFacts("b1-abc-1", "b1", str(sha256(b"r")), (0, 5), (("op", "run"), ("argv", "x")))}, {"b1": 1234}
)


def test_facts_are_read_again() -> None:
    assert facts.read(facts.write(FULL, 1 << 20), "here") == FULL
    assert facts.read(facts.write(CacheFacts(), 1 << 20), "here") == CacheFacts()


def test_too_many_components_are_left_out_and_nothing_else() -> None:
    one = FULL.keys[KEY]
    bare = CacheFacts({KEY: KeyFacts(one.ref, one.build, one.resolved, one.created)}, FULL.builds)
    assert facts.read(facts.write(FULL, 10), "here") == bare


def test_facts_of_a_later_version_are_no_facts() -> None:
    assert facts.read(b'{"version": 99, "keys": "of another shape"}', "here") == CacheFacts()


@pytest.mark.parametrize(
    "change",
    [
        {"version": None}, {"keys": []}, {"builds": {"../up": 1}}, {"builds": {"b": -1}}, {"builds": {"b": "1"}},
        {"builds": {"b": 1 << 70}}, {"keys": {"not a digest": {"ref": "r"}}}, {"keys": {KEY: {}}}, {"keys": {KEY: []}},
        {"keys": {KEY: {"ref": "../../snapshots"}}}, {"keys": {KEY: {"ref": ""}}}, {"keys": {KEY: {"ref": "a" * 999}}},
        {"keys": {KEY: {"ref": "r", "build": "a/b"}}}, {"keys": {KEY: {"ref": "r", "resolved": "x"}}},
        {"keys": {KEY: {"ref": "r", "created": [1.5]}}}, {"keys": {KEY: {"ref": "r", "created": 7}}},
        {"keys": {KEY: {"ref": "r", "components": [["a"]]}}}, {"keys": {KEY: {"ref": "r", "components": [["a", 7]]}}},
    ],
)  # fmt: skip
def test_malformed_facts_are_one_clear_error(change: dict[str, Any]) -> None:
    document = {**FULL.to_json(), **change}
    if document["version"] is None:
        del document["version"]
    with pytest.raises(VerificationError, match="facts beside the cache cannot be used") as caught:
        facts.read(json.dumps(document).encode(), "registry/cache")
    assert "\n" not in str(caught.value)
