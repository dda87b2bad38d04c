"""What one result becomes in each form: media types, annotations, foreign layers. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.exporters.image import Bundle, bundle, compose
from engine.graph import Result
from engine.output import Annotation, Form
from engine.refs.ref import Layer
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor

OCI, DOCKER = "application/vnd.oci.image", "application/vnd.docker"
URLS = ("https://elsewhere.test/layer",)


def layer(media_type: str, *, urls: tuple[str, ...] = (), note: str = "") -> Layer:
    blob = Descriptor(media_type, sha256(media_type.encode()), 7, {"note": note} if note else {}, urls)
    return Layer(diff_id=sha256(b"diff " + media_type.encode()), blob=blob)


def made(form: Form, *layers: Layer, platforms: tuple[str, ...] = ("linux/amd64",)) -> Bundle:
    images = [
        compose(
            Result(vertex=Digest(sha256(b"v")), image={"os": "linux"}, history=(), base_history=(), platform=platform),
            layers, len(layers), 0, now=0, extra={}, form=form,
        )
        for platform in platforms
    ]  # fmt: skip
    return bundle(images, form)


def manifest(one: Bundle) -> Any:
    return json.loads(one.images[0].manifest)


def test_a_form_has_one_kind_of_media_types_throughout() -> None:
    mixed = (layer(f"{DOCKER}.image.rootfs.diff.tar.gzip"), layer(f"{OCI}.layer.v1.tar+zstd", note="x"))
    both = ("linux/amd64", "linux/arm/v7")
    oci, docker = made(Form(), *mixed, platforms=both), made(Form(oci=False), *mixed, platforms=both)
    assert oci.media_type == f"{OCI}.index.v1+json"
    assert [item["mediaType"] for item in json.loads(oci.index)["manifests"]] == [f"{OCI}.manifest.v1+json"] * 2
    assert manifest(oci)["config"]["mediaType"] == f"{OCI}.config.v1+json"
    types = [item["mediaType"] for item in manifest(oci)["layers"]]
    assert types == [f"{OCI}.layer.v1.tar+gzip", f"{OCI}.layer.v1.tar+zstd"]
    assert docker.media_type == f"{DOCKER}.distribution.manifest.list.v2+json"
    index = json.loads(docker.index)
    assert index["mediaType"] == docker.media_type
    assert index["manifests"][1]["mediaType"] == f"{DOCKER}.distribution.manifest.v2+json"
    assert index["manifests"][1]["platform"] == {"os": "linux", "architecture": "arm", "variant": "v7"}
    assert manifest(docker)["config"]["mediaType"] == f"{DOCKER}.container.image.v1+json"
    assert [(item["mediaType"], "annotations" in item) for item in manifest(docker)["layers"]] == [
        (f"{DOCKER}.image.rootfs.diff.tar.gzip", False), (f"{DOCKER}.image.rootfs.diff.tar.zstd", False),
    ]  # fmt: skip
    assert [image.config for image in oci.images] == [image.config for image in docker.images]


def test_annotations_are_where_they_were_asked_for() -> None:
    form = Form(annotations=(
        Annotation("manifest", "k", "all"), Annotation("manifest", "k", "arm", "linux/arm64"),
        Annotation("manifest-descriptor", "d", "amd", "linux/amd64"), Annotation("index", "i", "1"),
        Annotation("index-descriptor", "t", "2"),
    ))  # fmt: skip
    several = made(form, platforms=("linux/amd64", "linux/arm64"))
    amd, arm = (json.loads(image.manifest) for image in several.images)
    assert (amd["annotations"], arm["annotations"]) == ({"k": "all"}, {"k": "arm"})
    index = json.loads(several.index)
    assert index["annotations"] == {"i": "1"}
    assert [item.get("annotations") for item in index["manifests"]] == [{"d": "amd"}, None]
    assert several.descriptor.annotations == {"t": "2"}


def test_the_one_image_has_its_descriptors_annotations_in_the_layout() -> None:
    one = made(Form(annotations=(Annotation("manifest-descriptor", "d", "1"),)))
    assert one.descriptor.annotations == {"d": "1"}
    assert "annotations" not in manifest(one)


@pytest.mark.parametrize("oci", [True, False])
@pytest.mark.parametrize(
    "written", [f"{OCI}.layer.nondistributable.v1.tar+gzip", f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip"]
)
def test_a_foreign_layer_becomes_one_as_all_others_unless_it_is_to_stay(written: str, oci: bool) -> None:
    foreign = layer(written, urls=URLS)
    plain = f"{OCI}.layer.v1.tar+gzip" if oci else f"{DOCKER}.image.rootfs.diff.tar.gzip"
    kept = f"{OCI}.layer.nondistributable.v1.tar+gzip" if oci else f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip"
    given_out = made(Form(oci=oci), foreign)
    assert manifest(given_out)["layers"] == [{"mediaType": plain, "digest": str(sha256(written.encode())), "size": 7}]
    assert len(given_out.layers) == 1
    staying = made(Form(oci=oci, foreign=True), foreign)
    (described,) = manifest(staying)["layers"]
    assert (described["mediaType"], described["urls"]) == (kept, list(URLS))
    assert staying.layers == {}


def test_a_foreign_layer_that_can_be_had_nowhere_else_is_given_out() -> None:
    nowhere = layer(f"{OCI}.layer.nondistributable.v1.tar+zstd")
    (described,) = manifest(made(Form(foreign=True), nowhere))["layers"]
    assert described["mediaType"] == f"{OCI}.layer.v1.tar+zstd"


def test_a_layer_of_an_unknown_kind_is_described_as_it_was() -> None:
    (described,) = manifest(made(Form(), layer("application/x-odd", note="kept")))["layers"]
    assert (described["mediaType"], described["annotations"]) == ("application/x-odd", {"note": "kept"})


def test_urls_of_a_descriptor_survive_json() -> None:
    blob = Descriptor("t", sha256(b""), 1, {}, URLS)
    assert Descriptor.from_json(blob.to_json()) == blob
    assert "urls" not in Descriptor("t", sha256(b""), 1).to_json()
    with pytest.raises(TypeError, match="urls is not a list"):
        Descriptor.from_json({**blob.to_json(), "urls": "https://elsewhere.test"})
