"""What an image inherited from its base, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest

from engine.frontend.config import ImageConfig
from engine.images.inherited import entries, fitted, moved, own_history


def config(**values: Any) -> ImageConfig:
    return ImageConfig.of_image({"architecture": "amd64", "os": "linux", "config": values})


def rebased(image: ImageConfig, old: ImageConfig, new: ImageConfig) -> dict[str, Any]:
    found: dict[str, Any] = moved(image, old, new).to_json()["config"]
    return found


@pytest.mark.parametrize(
    ("field", "one", "two", "three"),
    [
        ("User", "root", "app", "me"),
        ("WorkingDir", "/", "/srv", "/app"),
        ("StopSignal", "SIGTERM", "SIGINT", "SIGQUIT"),
        ("Shell", ["/bin/sh"], ["/bin/bash"], ["/bin/zsh"]),
        ("Entrypoint", ["/old"], ["/new"], ["/own"]),
        ("Cmd", ["sh"], ["bash"], ["app"]),
        ("Healthcheck", {"Test": ["CMD", "a"]}, {"Test": ["CMD", "b"]}, {"Test": ["NONE"]}),
        ("StopTimeout", 1, 2, 3),  # a field that Refledger does not know
    ],
)
def test_a_field_is_the_bases_as_long_as_the_image_had_it_so(field: str, one: Any, two: Any, three: Any) -> None:
    old, new = config(**{field: one}), config(**{field: two})
    assert rebased(config(**{field: one}), old, new) == {field: two}
    assert rebased(config(**{field: three}), old, new) == {field: three}
    assert rebased(config(**{field: one}), old, config()) == {}  # gone with the base
    assert rebased(config(), config(), new) == {field: two}  # new in the base
    assert rebased(config(**{field: three}), config(), new) == {field: three}
    assert rebased(config(), old, new) == {}  # the image had taken it away


@pytest.mark.parametrize("field", ["Labels", "ExposedPorts", "Volumes"])
def test_entries_with_a_name_are_merged_one_by_one(field: str) -> None:
    old = config(**{field: {"kept": "1", "changed": "1", "gone": "1", "removed": "1"}})
    new = config(**{field: {"kept": "2", "changed": "2", "more": "2", "removed": "2"}})
    image = config(**{field: {"kept": "1", "changed": "own", "gone": "1", "own": "own"}})
    assert rebased(image, old, new) == {field: {"kept": "2", "changed": "own", "more": "2", "own": "own"}}


def test_env_is_merged_by_name_in_the_new_bases_order() -> None:
    old = config(Env=["PATH=/bin", "A=1", "B=1"])
    new = config(Env=["B=2", "NEW=", "A=2", "PATH=/usr/bin:/bin"])
    image = config(Env=["PATH=/bin", "A=own", "B=1", "C=c=c"])
    assert rebased(image, old, new) == {"Env": ["B=2", "NEW=", "A=own", "PATH=/usr/bin:/bin", "C=c=c"]}


@pytest.mark.parametrize(
    ("ours", "wanted"),
    [
        ("/app:/bin:/sbin", "/app:/new/bin:/bin:/sbin"),
        ("/bin:/sbin:/app", "/new/bin:/bin:/sbin:/app"),
        ("/a:/bin:/sbin:/b", "/a:/new/bin:/bin:/sbin:/b"),
        ("/app", "/app"),
        ("/app/bin:/sbin", "/app/bin:/sbin"),  # only as a whole part
    ],
)
def test_a_list_that_the_image_put_more_on_stands_on_the_new_bases(ours: str, wanted: str) -> None:
    old, new = config(Env=["PATH=/bin:/sbin"]), config(Env=["PATH=/new/bin:/bin:/sbin"])
    assert rebased(config(Env=[f"PATH={ours}"]), old, new) == {"Env": [f"PATH={wanted}"]}


def test_a_command_belongs_to_its_entrypoint() -> None:
    old, new = config(Entrypoint=["/old"], Cmd=["a"]), config(Entrypoint=["/new"], Cmd=["b"])
    assert rebased(config(Entrypoint=["/own"]), old, new) == {"Entrypoint": ["/own"]}
    assert rebased(config(Entrypoint=["/own"]), config(), config(Cmd=["b"])) == {"Entrypoint": ["/own"]}
    assert rebased(config(Entrypoint=["/old"], Cmd=["own"]), old, new) == {"Entrypoint": ["/new"], "Cmd": ["own"]}


def test_triggers_of_a_base_are_not_inherited() -> None:
    own = config(OnBuild=["RUN own"])
    assert rebased(own, config(OnBuild=["RUN old"]), config(OnBuild=["RUN new"])) == {"OnBuild": ["RUN own"]}
    assert rebased(config(), config(), config(OnBuild=["RUN new"])) == {}


def test_the_platform_is_the_new_bases_and_the_author_stays() -> None:
    image = ImageConfig.of_image({"architecture": "arm", "os": "linux", "variant": "v7", "author": "me", "x": 1})
    new = ImageConfig.of_image({"architecture": "arm", "os": "linux", "os.version": "9", "author": "other"})
    assert moved(image, image, new).to_json() == {
        "architecture": "arm", "os": "linux", "os.version": "9", "author": "me", "x": 1, "config": {}
    }  # fmt: skip


def test_nothing_that_is_given_is_changed() -> None:
    image, old, new = (config(Env=["A=1"], Labels={"a": text}, Cmd=["x"]) for text in "123")
    made = moved(image, old, new)
    made.config["Labels"]["b"] = "b"
    made.config["Cmd"].append("y")
    assert [item.config["Labels"] for item in (image, old, new)] == [{"a": "1"}, {"a": "2"}, {"a": "3"}]
    assert [item.config["Cmd"] for item in (image, old, new)] == [["x"], ["x"], ["x"]]


# ---------------------------------------------------------------- history


def entry(text: str, *, layer: bool = True) -> dict[str, Any]:
    return {"created_by": text} | ({} if layer else {"empty_layer": True})


def test_the_own_history_begins_where_the_bases_ends() -> None:
    base = [entry("ADD"), entry("CMD", layer=False)]
    own = [entry("ENV", layer=False), entry("COPY")]
    assert own_history([*base, *own], base, 1) == own


def test_a_base_that_tells_it_in_other_words_is_cut_by_its_layers() -> None:
    image = [entry("ADD"), entry("CMD", layer=False), entry("COPY")]
    assert own_history(image, [entry("#(nop) ADD")], 1) == image[1:]
    assert own_history(image, [], 1) == image[1:]
    assert own_history([], [entry("ADD")], 1) == []


def test_a_history_that_does_not_fit_is_not_believed() -> None:
    assert fitted([entry("a"), entry("b", layer=False)], 1, "x") == [entry("a"), entry("b", layer=False)]
    assert len(fitted([entry("a")], 3, "x")) == 3
    assert "whose history does not fit" in fitted([], 1, "example.com/x:1")[0]["comment"]
    assert entries({"history": [1, {"created_by": "a"}, None]}) == [entry("a")]
    assert entries({"history": "?"}) == entries({}) == []
