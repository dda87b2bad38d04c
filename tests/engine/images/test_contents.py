"""Manifests and configs that a hostile registry may serve: refused in one line, whatever they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import VerificationError
from engine.images.contents import (
    platform_of,
    read_annotations,
    read_config_blob,
    read_layers,
)
from engine.refs.ref import DESCRIBED_LIMIT, MOST_LAYERS
from storage.digest import sha256
from storage.interfaces.images import Provider

TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
PROVIDER = Provider.of("registry.example", "a/b")


def descriptor(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"mediaType": TYPE, "digest": str(sha256(b"%d" % number)), "size": 9} | changes


def image(count: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = {"config": descriptor(), "layers": [descriptor(n) for n in range(count)]}
    return manifest, {"rootfs": {"diff_ids": [str(sha256(b"d%d" % n)) for n in range(count)]}, "config": {}}


def annotated(count: int, each: int) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest, config = image(count)
    for layer in manifest["layers"]:
        layer["annotations"] = {"a": "x" * each}
    return manifest, config


def read(manifest: dict[str, Any], config: Any) -> Any:
    return read_layers(manifest, json.dumps(config).encode(), PROVIDER, "example")


def test_layers_have_their_diff_ids_and_annotations() -> None:
    manifest, config = image()
    manifest["layers"][1] |= {"annotations": {"a": "b"}, "urls": ["https://elsewhere.test/x"]}
    layers, fields = read(manifest, config)
    assert [str(layer.diff_id) for layer in layers] == config["rootfs"]["diff_ids"]
    assert [dict(layer.blob.annotations) for layer in layers] == [{}, {"a": "b"}]
    assert [layer.blob.urls for layer in layers] == [(), ("https://elsewhere.test/x",)]
    assert fields == config
    assert str(read_config_blob(manifest, "example").digest) == manifest["config"]["digest"]


def change(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda manifest, _: manifest["layers"][1].update(values)


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "negative size": change(size=-1),
    "huge size": change(size=1 << 60),
    "larger than an event holds": change(size=1 << 70),
    "size as text": change(size="9"),
    "URLs as text": change(urls="https://elsewhere.test/x"),
    "URLs as numbers": change(urls=[7]),
    "size as truth": change(size=True),
    "size as fraction": change(size=9.5),
    "no size": lambda m, _: m["layers"][0].pop("size"),
    "no media type": lambda m, _: m["layers"][0].pop("mediaType"),
    "media type as number": change(mediaType=1),
    "media type with an escape": change(mediaType="a\x1b[2Jb"),
    "long media type": change(mediaType="a" * 300),
    "no digest": change(digest=None),
    "digest that is none": change(digest="sha256:../../etc/passwd"),
    "annotations as list": change(annotations=["a"]),
    "annotations of numbers": change(annotations={"a": 1}),
    "annotations of megabytes": change(annotations={"a": "x" * 2_000_000}),
    "layer as text": lambda m, _: m["layers"].append("sha256:"),
    "layers as object": lambda m, _: m.update(layers={}),
    "no layers": lambda m, _: m.pop("layers"),
    "another number of diff IDs": lambda _, c: c["rootfs"]["diff_ids"].pop(),
    "diff ID that is none": lambda _, c: c["rootfs"]["diff_ids"].__setitem__(0, "x"),
    "diff ID as number": lambda _, c: c["rootfs"]["diff_ids"].__setitem__(0, 1),
    "rootfs as list": lambda _, c: c.update(rootfs=[]),
    "config as list": lambda _, c: c.update(config=["a"]),
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_image_is_refused_in_one_short_line(
    spoil: Callable[[dict[str, Any], dict[str, Any]], None],
) -> None:
    manifest, config = image()
    spoil(manifest, config)
    with pytest.raises(VerificationError, match="not an image Refledger understands") as caught:
        read(manifest, config)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("config", [[], None, "x", {"rootfs": None}])
def test_a_config_that_is_none_is_refused(config: Any) -> None:
    with pytest.raises(VerificationError):
        read(image()[0], config)
    with pytest.raises(VerificationError):
        read_layers(image()[0], b"{", PROVIDER, "example")
    with pytest.raises(VerificationError):
        read_config_blob({"config": config}, "example")


def test_layers_are_bounded_in_number_and_in_what_they_take() -> None:
    assert len(read(*image(500))[0]) == 500
    with pytest.raises(VerificationError, match=f"more than {MOST_LAYERS}"):
        read(*image(MOST_LAYERS + 1))
    with pytest.raises(VerificationError, match=f"more than {DESCRIBED_LIMIT}"):
        read(*annotated(500, DESCRIBED_LIMIT // 500))


def test_a_platform_is_what_the_config_says_or_nothing() -> None:
    assert platform_of(b'{"os": "linux", "architecture": "arm64", "variant": "v8"}', "x") == "linux/arm64"
    assert platform_of(b'{"os": "linux"}', "x") == ""
    assert platform_of(b'{"os": 1, "architecture": "\\u001b"}', "x") == ""
    assert platform_of(b"[]", "x") == ""
    with pytest.raises(VerificationError):
        platform_of(b"?", "x")


def test_annotations_of_a_manifest_are_texts() -> None:
    assert read_annotations({"annotations": {"a": "b", "c": 1}}) == {"a": "b"}
    assert read_annotations({"annotations": []}) == read_annotations({}) == {}
