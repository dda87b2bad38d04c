"""Images on other bases, from the command line to a registry: judged by its log, by other tools, and by running."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image, busybox_layer
from tests.registry_fixture import (
    OCI_MANIFEST,
    RegistryProcess,
    get_json,
    push_image,
    push_manifest,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
BASE_NAME, BASE_DIGEST = "org.opencontainers.image.base.name", "org.opencontainers.image.base.digest"
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def manifest(registry: RegistryProcess, name: str, tag: str = "latest") -> Any:
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/{name}:{tag}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def config(registry: RegistryProcess, name: str, tag: str = "latest") -> Any:
    digest = manifest(registry, name, tag)["config"]["digest"]
    return get_json(registry.host, f"/v2/{name}/blobs/{digest}")


def unpacked_and_run(image: str, directory: Path, args: Sequence[str] = ()) -> tuple[Path, str]:
    """`image` (as skopeo names it) as umoci unpacks it, and what it prints when runc runs it, or `args` in it."""
    layout, bundle = directory / "layout", directory / "bundle"
    subprocess.run(["skopeo", "copy", "-q", "--src-tls-verify=false", image, f"oci:{layout}:x"], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:x", str(bundle)], check=True, capture_output=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": list(args) or spec["process"]["args"]}
    spec["process"].pop("rlimits", None)
    (bundle / "config.json").write_text(json.dumps(spec))
    done = subprocess.run(
        ["runc", "run", "-b", str(bundle), f"edited-{os.getpid()}-{directory.name}"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return bundle / "rootfs", done.stdout


def blobs(image: Mapping[str, Any]) -> list[str]:
    return [layer["digest"] for layer in image["layers"]]


class Bases:
    """An old base, a new one, and an image that was built on the old one (by us), in one registry."""

    def __init__(self, builder: Builder, registry: RegistryProcess, repository: str) -> None:
        self.builder, self.registry, self.repository = builder, registry, repository
        layer = {**busybox_layer(), "etc/release": b"1\n", "etc/gone": b"of the base\n"}
        common = {"Env": ["PATH=/bin", "TZ=UTC", "VERSION=1"], "Labels": {"base": "1"}, "WorkingDir": "/"}
        self.old = push_image(
            registry.host, f"{repository}/base", [layer, {"data/old": b"old" * 9000}], tag="1",
            config={**common, "Cmd": ["sh"]},
        )  # fmt: skip
        self.new = push_image(
            registry.host, f"{repository}/base", [layer | {"etc/release": b"2\n", "data/new": b"new" * 9000}], tag="2",
            config={
                "Env": ["PATH=/usr/local/bin:/bin", "TZ=UTC", "VERSION=2", "NEW=yes"], "Labels": {"base": "2"},
                "WorkingDir": "/", "Cmd": ["sh", "-l"], "StopSignal": "SIGINT",
            },
        )  # fmt: skip
        self.app = f"{registry.host}/{repository}/app:1"
        builder.write({"app.txt": "the app\n"})
        builder.must_build(
            f"FROM {self.old['reference']}\nENV PATH=/app:$PATH MODE=fast\nLABEL app=yes\n"
            "COPY app.txt /app/app.txt\nRUN rm /etc/gone && echo ran > /app/ran\nCMD [\"cat\", \"/etc/release\"]\n",
            "-t", self.app, "--push",
        )  # fmt: skip
        self.mark = registry.mark()

    def rebase(self, *args: str) -> Any:
        return self.builder.run("rebase", self.app, "--progress", "plain", *args)

    def must_rebase(self, *args: str) -> None:
        done = self.rebase("--from", self.old["reference"], "--to", self.new["reference"], *args)
        assert done.code == 0, done.err

    @property
    def tag(self) -> str:
        return f"{self.registry.host}/{self.repository}/app:2"


@pytest.fixture
def bases(builder: Builder, registry: RegistryProcess, repository: str) -> Bases:
    return Bases(builder, registry, repository)


def test_I2_rebase_in_one_registry_moves_no_layer(bases: Bases, registry: RegistryProcess, repository: str) -> None:
    app = manifest(registry, f"{repository}/app", "1")
    mark = registry.mark()
    bases.must_rebase("-t", bases.tag, "--push")
    made = manifest(registry, f"{repository}/app", "2")
    assert made["layers"] == [*bases.new["manifest"]["layers"], *app["layers"][2:]]  # each as it was, bit for bit
    assert registry.layer_gets(blobs(made), since=mark) == []
    sent = [line.path for line in registry.requests()[mark:] if line.method in {"PUT", "PATCH"}]
    assert sum("/uploads/" in path for path in sent) == 1  # the config
    (exported,) = [event for event in bases.builder.events("Exported") if event["data"]["target"].endswith("app:2")]
    assert {layer["transport"] for layer in exported["data"]["layers"]} <= {"mounted", "present"}


def test_the_config_is_what_a_build_on_the_new_base_gives(
    bases: Bases, registry: RegistryProcess, repository: str
) -> None:
    bases.must_rebase("-t", bases.tag, "--push")
    built = f"{registry.host}/{repository}/app:built"
    dockerfile = (bases.builder.context / "Dockerfile").read_text()
    again = dockerfile.replace(bases.old["reference"], bases.new["reference"])
    bases.builder.must_build(again, "-t", built, "--push")
    rebased, rebuilt = (config(registry, f"{repository}/app", tag) for tag in ("2", "built"))
    assert rebased["config"] == rebuilt["config"]
    assert rebased["config"]["Env"] == [
        "PATH=/app:/usr/local/bin:/bin", "TZ=UTC", "VERSION=2", "NEW=yes", "MODE=fast"
    ]  # fmt: skip
    assert rebased["config"]["Labels"] == {"base": "2", "app": "yes"}
    told = [[entry.get("created_by", "").split()[0] for entry in image["history"]] for image in (rebased, rebuilt)]
    assert told[0] == told[1]
    assert sum(not entry.get("empty_layer") for entry in rebased["history"]) == len(rebased["rootfs"]["diff_ids"])


def test_keep_config_keeps_all_of_it(bases: Bases, registry: RegistryProcess, repository: str) -> None:
    bases.must_rebase("-t", bases.tag, "--push", "--keep-config")
    before, after = (config(registry, f"{repository}/app", tag) for tag in ("1", "2"))
    assert after["config"] == before["config"]


def test_rebased_image_runs_with_whiteouts_over_the_new_base(bases: Bases, tmp_path: Path) -> None:
    bases.must_rebase("-t", bases.tag, "--push")
    args = ["/bin/sh", "-c", "cat /etc/release; echo $PATH $VERSION"]
    root, said = unpacked_and_run(f"docker://{bases.tag}", tmp_path, args)
    assert said == "2\n/app:/usr/local/bin:/bin 2\n"
    assert (root / "etc/release").read_text() == "2\n"
    assert (root / "app/app.txt").read_text() == "the app\n"
    assert (root / "data/new").exists()
    assert not (root / "data/old").exists()
    assert not (root / "etc/gone").exists()  # the new base has it; the image had removed it


def test_annotations_say_what_it_stands_on_and_are_enough_the_next_time(
    bases: Bases, registry: RegistryProcess, repository: str
) -> None:
    bases.must_rebase("-t", bases.tag, "--push")
    base = f"{registry.host}/{repository}/base"
    said = manifest(registry, f"{repository}/app", "2")["annotations"]
    assert said == {BASE_NAME: f"{base}:2", BASE_DIGEST: bases.new["digest"]}
    third = push_image(registry.host, f"{repository}/base", [{**busybox_layer(), "etc/release": b"3\n"}], tag="2")
    done = bases.builder.run("rebase", bases.tag, "--push", "--progress", "plain")  # no -t: its own tag moves
    assert done.code == 0, done.err
    made = manifest(registry, f"{repository}/app", "2")
    assert made["annotations"] == {BASE_NAME: f"{base}:2", BASE_DIGEST: third["digest"]}
    assert blobs(made)[:1] == blobs(third)
    assert len(made["layers"]) == 3
    again = bases.builder.run("rebase", bases.tag, "--push", "--progress", "plain")
    assert again.code == 0, again.err
    assert "stands on" in again.err
    assert manifest(registry, f"{repository}/app", "2") == made  # nothing to do changes nothing


def test_an_image_on_another_base_is_refused_in_one_line(bases: Bases) -> None:
    done = bases.rebase("--from", bases.new["reference"], "--to", bases.old["reference"], "-t", bases.tag, "--push")
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert f"{bases.app} is not based on {bases.new['reference']} (linux/amd64)" in line
    assert f"layer 1 of 1 is {bases.new['layers'][0]['diff_id']} in the base" in line
    assert f"{bases.old['layers'][0]['diff_id']} in the image" in line


def test_a_base_with_more_layers_than_the_image_is_refused(
    bases: Bases, registry: RegistryProcess, repository: str
) -> None:
    tall = base_image(registry, f"{repository}/tall", layers=6, size=10)
    done = bases.rebase("--from", tall["reference"], "--to", bases.new["reference"], "-t", bases.tag, "--push")
    assert done.code == 2
    assert "is not based on" in done.err
    assert "it has 4 layers, the base 6" in done.err


def test_the_log_knows_what_it_was_built_on(bases: Bases, registry: RegistryProcess, repository: str) -> None:
    moved = push_image(registry.host, f"{repository}/base", [busybox_layer()], tag="1")  # another image by now
    done = bases.rebase("--push")
    assert done.code == 0, done.err
    made = manifest(registry, f"{repository}/app", "1")
    assert blobs(made)[:1] == blobs(moved)
    assert len(made["layers"]) == 3
    assert made["annotations"][BASE_NAME] == f"{registry.host}/{repository}/base:1"
    assert bases.rebase("--to", bases.new["reference"], "--push").code == 0
    assert blobs(manifest(registry, f"{repository}/app", "1"))[:1] == blobs(bases.new)


def test_what_nobody_says_is_asked_for(bases: Bases, tmp_path: Path) -> None:
    done = bases.rebase("--from", bases.old["reference"], "--to", bases.new["reference"])
    assert done.code == 2
    assert "-t NAME --push" in done.err
    done = Builder(tmp_path / "another root").run("rebase", bases.app, "--push")
    assert done.code == 2
    assert f"no annotation {BASE_NAME}" in done.err
    assert "--from OLD_BASE --to NEW_BASE" in done.err


def test_an_annotation_cannot_make_us_read_this_machine(
    bases: Bases, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    data = manifest(registry, f"{repository}/app", "1")
    data["annotations"] = {BASE_NAME: f"oci-layout://{tmp_path}", BASE_DIGEST: "sha256:" + "0" * 64}
    push_manifest(registry.host, f"{repository}/app", "evil", json.dumps(data).encode(), OCI_MANIFEST)
    done = bases.builder.run("rebase", bases.app.replace(":1", ":evil"), "-t", bases.tag, "--push")
    assert done.code == 2
    assert BASE_NAME in done.err


# ---------------------------------------------------------------- several platforms


def index(registry: RegistryProcess, name: str, tag: str, images: Mapping[str, Mapping[str, Any]]) -> str:
    entries = [
        {
            "mediaType": OCI_MANIFEST, "digest": image["digest"], "size": image["size"],
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, image in images.items()
    ]  # fmt: skip
    data = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    push_manifest(registry.host, name, tag, json.dumps(data).encode(), INDEX)
    return f"{registry.host}/{name}:{tag}"


def several(registry: RegistryProcess, name: str, tag: str, text: str, *architectures: str) -> str:
    images = {
        architecture: push_image(
            registry.host, name, [{"base": f"{text} {architecture}".encode()}], tag=f"{tag}-{architecture}",
            architecture=architecture,
        )
        for architecture in architectures
    }  # fmt: skip
    return index(registry, name, tag, images)


@pytest.fixture
def platforms(builder: Builder, registry: RegistryProcess, repository: str) -> tuple[str, str, str]:
    """An image for three platforms, its base, and a new base that is there for two of them."""
    old = several(registry, f"{repository}/many", "1", "one", "amd64", "arm64", "s390x")
    new = several(registry, f"{repository}/many", "2", "two", "amd64", "arm64")
    app = f"{registry.host}/{repository}/tool:1"
    builder.write({"tool": "t\n"})
    builder.must_build(
        f"FROM {old}\nCOPY tool /tool\n", "-t", app, "--push", "--platform", "linux/amd64,linux/arm64,linux/s390x"
    )
    return app, old, new


def test_all_platforms_that_the_bases_have_are_rebased(
    builder: Builder, registry: RegistryProcess, repository: str, platforms: tuple[str, str, str]
) -> None:
    app, old, new = platforms
    done = builder.run("rebase", app, "--from", old, "--to", new, "-t", app, "--push", "--progress", "plain")
    assert done.code == 0, done.err
    assert "linux/s390x is left out" in done.err
    made = manifest(registry, f"{repository}/tool", "1")
    assert [entry["platform"]["architecture"] for entry in made["manifests"]] == ["amd64", "arm64"]
    for architecture in ("amd64", "arm64"):
        done_ = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", "--override-arch", architecture, f"docker://{app}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        base = manifest(registry, f"{repository}/many", f"2-{architecture}")
        seen = json.loads(done_.stdout)
        assert seen["Layers"][0] == base["layers"][0]["digest"]
        assert len(seen["Layers"]) == 2
        assert seen["Architecture"] == architecture


def test_a_platform_that_was_asked_for_must_be_there(
    builder: Builder, platforms: tuple[str, str, str]
) -> None:
    app, old, new = platforms
    args = ("rebase", app, "--from", old, "--to", new, "--push")
    done = builder.run(*args, "--platform", "linux/s390x")
    assert done.code == 2
    assert "no manifest for linux/s390x" in done.err
    done = builder.run(*args, "--output", "type=docker,dest=/nowhere.tar")
    assert done.code == 2
    assert "type=docker holds one platform" in done.err


# ---------------------------------------------------------------- in the log


def test_a_rebase_is_a_build_like_any_other(bases: Bases) -> None:
    bases.must_rebase("-t", bases.tag, "--push")
    build = bases.builder.builds()[0]
    assert build["status"] == "completed"
    started = bases.builder.events("BuildStarted", build=build["id"])[0]["data"]
    assert started["frontend"] == "rebase.v0"
    shown = bases.builder.run("show", build["id"])
    assert shown.code == 0, shown.err
    assert "rebase" in shown.out
    for command in (["why"], ["report", "-o", "-"]):
        assert bases.builder.run(*command, build["id"]).code == 0
    verified = bases.builder.run("replay", build["id"], "--verify", "--progress", "quiet")
    assert verified.code == 0, verified.out + verified.err
