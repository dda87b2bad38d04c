"""Descriptors that somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest

from storage.digest import sha256
from storage.interfaces.images import Compression, Descriptor, Platform, Provider, Reference, Referrer

SAID = {"mediaType": "application/octet-stream", "digest": str(sha256(b"")), "size": 0}


@pytest.mark.parametrize("size", [-1, 1 << 63, 1e30, 5.5, "5", True, None])
def test_a_size_that_no_event_could_tell_is_none(size: Any) -> None:
    with pytest.raises(ValueError, match="no number of bytes"):
        Descriptor.from_json({**SAID, "size": size})


def test_what_was_read_is_told_as_it_was() -> None:
    said = {**SAID, "size": (1 << 63) - 1, "annotations": {"a": "b"}, "urls": ["https://elsewhere.example"]}
    assert Descriptor.from_json(said).to_json() == said


@pytest.mark.parametrize(
    "said",
    [[], "x", {**SAID, "mediaType": 7}, {**SAID, "annotations": [7]}, {**SAID, "annotations": {"a": 7}},
     {**SAID, "urls": "https://elsewhere.example"}],
)  # fmt: skip
def test_what_is_no_descriptor_is_refused(said: Any) -> None:
    with pytest.raises((TypeError, KeyError)):
        Descriptor.from_json(said)


@pytest.mark.parametrize("more", [{}, {"mirrors": ["m.example"]}, {"mirror_of": "r.example/a"}])
def test_a_provider_is_told_as_it_was(more: dict[str, Any]) -> None:
    said = {"registry": "m.example", "repository": "a", "scope": "repository:a:pull", **more}
    provider = Provider.from_json(said)
    assert provider.to_json() == said
    assert provider.coordinates == ("m.example", "a")
    assert str(provider) == "m.example/a"


def test_a_reference_says_where_it_reads_and_where_it_writes() -> None:
    digest = sha256(b"")
    both = Reference("r.example", "a", "v1", digest, "r.example/a:v1", mirror_of="b/c")
    assert str(both) == f"r.example/a:v1@{digest}"
    assert str(Reference("r.example", "a", "v1", None, "")) == "r.example/a:v1"
    assert both.provider == Provider("r.example", "a", "repository:a:pull", mirror_of="b/c")
    assert both.target.scope == "repository:a:pull,push"


def test_names_of_platforms_and_compressions() -> None:
    assert [str(Platform("linux", "arm", variant)) for variant in ("", "v7")] == ["linux/arm", "linux/arm/v7"]
    assert [Compression("zstd", level).written for level in (None, 19)] == ["zstd", "zstd:19"]


@pytest.mark.parametrize("kind", ["", "application/vnd.example"])
def test_a_referrer_is_told_as_it_was(kind: str) -> None:
    said = {**SAID, **({"artifactType": kind} if kind else {})}
    assert Referrer.from_json(said).to_json() == said


@pytest.mark.parametrize(
    "more", [{"registry": 7}, {"repository": None}, {"scope": []}, {"mirrors": [7]}, {"mirrors": 7}, {"mirror_of": {}}]
)
def test_a_provider_whose_names_are_no_texts_is_none(more: Any) -> None:
    with pytest.raises(TypeError):
        Provider.from_json({**Provider.of("r.example", "a").to_json(), **more})
    with pytest.raises(TypeError):
        Provider.from_json("r.example/a")  # type: ignore[arg-type]
