"""The manifest that is chosen is one the platform runs."""

from __future__ import annotations

from typing import Any

import pytest

from storage.errors import InputError
from storage.interfaces.images import Platform
from storage.platform import (
    NoPlatformError,
    choose_platform,
    host_platform,
    list_platforms,
    normalise,
    parse_platform,
)


def entry(platform: str | None, number: int) -> dict[str, Any]:
    out: dict[str, Any] = {"mediaType": "m", "digest": f"sha256:{number:064x}", "size": number}
    if platform is not None:
        out["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
    return out


def chosen(platforms: list[str | None], wanted: str) -> int:
    index = {"manifests": [entry(one, number) for number, one in enumerate(platforms)]}
    return choose_platform(index, parse_platform(wanted)).size


@pytest.mark.parametrize(
    ("platforms", "wanted", "index"),
    [
        (["linux/amd64", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/amd64", "linux/arm64"], "linux/aarch64/v8", 1),
        (["unknown/unknown", "linux/amd64"], "linux/amd64", 1),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm", 2),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v3", 1),
        ([None], "linux/amd64", 0),
        ([None, "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
    ],
)
def test_the_best_entry_is_chosen(platforms: list[str | None], wanted: str, index: int) -> None:
    assert chosen(platforms, wanted) == index


def test_platforms_of_an_index_are_those_of_its_images() -> None:
    listed = ["linux/arm64/v8", "unknown/unknown", None, "linux/aarch64", "linux/arm"]
    found = list_platforms({"manifests": [entry(one, number) for number, one in enumerate(listed)]})
    assert list(map(str, found)) == ["linux/arm64", "linux/arm/v7"]
    with pytest.raises(NoPlatformError):
        choose_platform({"manifests": [entry("linux/arm64", 1)]}, parse_platform("linux/amd64"))


def test_what_there_is_is_named_when_nothing_fits() -> None:
    with pytest.raises(InputError) as caught:
        chosen(["linux/arm64/v8", "unknown/unknown", "linux/amd64/v3"], "linux/amd64")
    assert "linux/amd64" in caught.value.what
    assert caught.value.hint == "it has: linux/amd64/v3, linux/arm64"


@pytest.mark.parametrize("index", [{}, {"manifests": 1}, {"manifests": [1]}, {"manifests": [{"platform": 3}]}])
def test_a_malformed_index_is_an_input_error(index: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="malformed"):
        choose_platform(index, Platform("linux", "amd64"))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"])
def test_bad_platforms_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_platform(text)


def test_host_platform_is_in_its_one_spelling() -> None:
    assert host_platform() == normalise(host_platform())
    assert host_platform().os == "linux"


def test_a_variant_that_is_a_number_is_a_version() -> None:
    assert str(parse_platform("linux/arm/6")) == "linux/arm/v6"
