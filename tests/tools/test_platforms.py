"""Several platforms in one build: one index, what is common done once, nothing emulated that need not be."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from engine.ops.emulation import probe_program, run_in_empty_root
from storage.platform import host_platform
from tests.builder import Builder, busybox_layer, layer_digests
from tests.registry_fixture import RegistryProcess, get_json, push_image, push_manifest

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="builds need root"),
    pytest.mark.skipif(str(host_platform()) != "linux/amd64", reason="the images are made for amd64 hosts"),
]
INDEX = "application/vnd.oci.image.index.v1+json"
BOTH = ("--platform", "linux/amd64,linux/arm64")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def push_index(registry: RegistryProcess, name: str, layers: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """An image of one layer for each architecture of `layers`, below one index; by architecture, and `reference`."""
    made: dict[str, Any] = {}
    for architecture, files in layers.items():
        config = {"Env": ["PATH=/bin"]}
        made[architecture] = push_image(
            registry.host, name, [files], tag=architecture, config=config, architecture=architecture
        )
    manifests = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image["digest"], "size": image["size"],
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, image in made.items()
    ]  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    push_manifest(registry.host, name, "latest", index, INDEX)
    return made | {"reference": f"{registry.host}/{name}:latest"}


def two(registry: RegistryProcess, repository: str) -> dict[str, Any]:
    """A base with a shell for amd64, and with nothing that runs here for arm64."""
    return push_index(
        registry, f"{repository}/base", {"amd64": busybox_layer(), "arm64": {"bin/sh": b"not for us", "only": b"arm"}}
    )


def pushed(registry: RegistryProcess, name: str) -> dict[str, dict[str, Any]]:
    """The configs below the index that `name`:1 is, by platform."""
    with_accept = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/{name}:1"]
    index = json.loads(subprocess.run(with_accept, capture_output=True, check=True).stdout)
    assert index["mediaType"] == INDEX
    found = {}
    for entry in index["manifests"]:
        manifest = get_json_manifest(registry, name, entry["digest"])
        config = get_json(registry.host, f"/v2/{name}/blobs/{manifest['config']['digest']}")
        platform = entry["platform"]
        assert (platform["os"], platform["architecture"]) == (config["os"], config["architecture"])
        found[f"{platform['os']}/{platform['architecture']}"] = config | {"manifest": manifest}
    return found


def get_json_manifest(registry: RegistryProcess, name: str, digest: str) -> dict[str, Any]:
    raw = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/{name}@{digest}"]
    manifest: dict[str, Any] = json.loads(subprocess.run(raw, capture_output=True, check=True).stdout)
    return manifest


# ---------------------------------------------------------------- laziness


def test_I2_labels_for_two_platforms_fetch_nothing_and_make_one_index(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = two(registry, repository)
    layers = [digest for architecture in ("amd64", "arm64") for digest in layer_digests(base[architecture])]
    mark = registry.mark()
    target = f"{registry.host}/{repository}/app:1"
    builder.must_build(
        f"FROM {base['reference']}\nARG TARGETPLATFORM\nLABEL for=$TARGETPLATFORM\n", *BOTH, "-t", target, "--push"
    )
    assert registry.layer_gets(layers, since=mark) == []
    found = pushed(registry, f"{repository}/app")
    labels = {platform: config["config"]["Labels"]["for"] for platform, config in found.items()}
    assert labels == {"linux/amd64": "linux/amd64", "linux/arm64": "linux/arm64"}
    for architecture in ("amd64", "arm64"):
        manifest = found[f"linux/{architecture}"]["manifest"]
        assert [layer["digest"] for layer in manifest["layers"]] == layer_digests(base[architecture])
    (completed,) = builder.events("BuildCompleted")
    assert [result["platform"] for result in completed["data"]["results"]] == ["linux/amd64", "linux/arm64"]


def test_one_name_is_asked_for_once(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    base = two(registry, repository)
    mark = registry.mark()
    builder.must_build(f"FROM {base['reference']}\nLABEL a=b\n", *BOTH)
    asked = [line for line in registry.requests()[mark:] if line.path.endswith("/base/manifests/latest")]
    assert len([line for line in asked if line.method == "HEAD"]) == 1


def test_copies_for_another_platform_need_no_emulation(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = two(registry, repository)
    builder.write({"file": "content"})
    target = f"{registry.host}/{repository}/app:1"
    builder.must_build(f"FROM {base['reference']}\nWORKDIR /w\nCOPY file .\n", *BOTH, "-t", target, "--push")
    found = pushed(registry, f"{repository}/app")
    assert {platform: len(config["rootfs"]["diff_ids"]) for platform, config in found.items()} == {
        "linux/amd64": 3, "linux/arm64": 3,
    }  # fmt: skip


def test_I11_the_index_comes_after_its_manifests_and_the_tag_last(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = two(registry, repository)
    mark = registry.mark()
    target = f"{registry.host}/{repository}/app:1"
    builder.must_build(f"FROM {base['reference']}\nLABEL a=b\n", *BOTH, "-t", target, "--push")
    put = [line.path.rpartition("/")[2] for line in registry.requests()[mark:]
           if line.method == "PUT" and "/manifests/" in line.path]  # fmt: skip
    (exported,) = builder.events("Exported")
    assert len(put) == 4
    assert put[2:] == [exported["data"]["digest"], "1"]


# ---------------------------------------------------------------- running


def test_cross_compiling_runs_on_this_machine_and_shares_what_is_common(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = two(registry, repository)["reference"]
    dockerfile = (
        f"FROM --platform=$BUILDPLATFORM {base} AS build\n"
        "RUN echo common > /common\n"
        "ARG TARGETARCH\n"
        "RUN echo $TARGETARCH > /arch\n"
        f"FROM {base}\n"
        "COPY --from=build /common /arch /out/\n"
    )
    out = builder.root.parent / "out"
    done = builder.must_build(dockerfile, *BOTH, "--output", f"type=local,dest={out}")
    for architecture in ("amd64", "arm64"):
        assert (out / f"linux_{architecture}/out/arch").read_text() == f"{architecture}\n"
        assert (out / f"linux_{architecture}/out/common").read_text() == "common\n"
    assert (out / "linux_arm64/only").read_text() == "arm"
    started = [event["data"]["name"] for event in builder.events("VertexStarted")]
    assert sum("echo common" in name for name in started) == 1
    assert "[linux/amd64->arm64 build 3/3] RUN echo arm64 > /arch" in started
    assert "[linux/arm64 stage-1 2/2] COPY --from=build /common /arch /out/" in started
    assert "[linux/arm64 stage-1 2/2]" in done.err


def test_a_command_for_another_platform_fails_before_anything_runs_and_says_what_to_do(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    program = probe_program("arm64")
    assert program is not None
    if run_in_empty_root(lambda: Path(mkdtemp(dir=tmp_path)), program):
        pytest.skip("this machine runs arm64 programs")
    base = two(registry, repository)["reference"]
    failed = builder.build(f"FROM {base}\nRUN echo ran > /ran\n", *BOTH)
    assert failed.code == 3
    assert "a linux/arm64 command cannot run on this linux/amd64 machine" in failed.err
    assert "qemu-user-static" in failed.err
    assert "Dockerfile:2" in failed.err
    assert builder.events("MaterializationRequested") == []
    assert [event for event in builder.events("VertexStarted") if "linux/amd64 2/2" in event["data"]["name"]] == []
    alone = builder.build(f"FROM {base}\nRUN echo ran > /ran\n", "--platform", "linux/arm64")
    assert alone.code == 3


def test_what_the_kernel_can_run_itself_is_run(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    program = probe_program("386")
    assert program is not None
    if not run_in_empty_root(lambda: Path(mkdtemp(dir=tmp_path)), program):
        pytest.skip("this kernel does not run 386 programs")
    base = push_image(registry.host, f"{repository}/base", [{"bin/true": program}], architecture="386")
    builder.must_build(f'FROM {base["reference"]}\nRUN ["/bin/true"]\n', "--platform", "linux/386")


# ---------------------------------------------------------------- outputs


def test_an_oci_archive_holds_the_index(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    base = two(registry, repository)
    archive, ids, facts = tmp_path / "app.tar", tmp_path / "iid", tmp_path / "facts.json"
    builder.must_build(
        f"FROM {base['reference']}\nLABEL a=b\n", *BOTH, "-t", "app:1", "--output", f"type=oci,dest={archive}",
        "--iidfile", str(ids), "--metadata-file", str(facts),
    )  # fmt: skip
    with tarfile.open(archive) as tar:
        (top,) = json.load(tar.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
    assert top["mediaType"] == INDEX
    for architecture in ("amd64", "arm64"):
        inspect = ["skopeo", f"--override-arch={architecture}", "inspect", f"oci-archive:{archive}"]
        seen = json.loads(subprocess.run(inspect, capture_output=True, check=True).stdout)
        assert (seen["Architecture"], seen["Layers"]) == (architecture, layer_digests(base[architecture]))
    assert ids.read_text() == top["digest"]
    assert json.loads(facts.read_text())["containerimage.digest"] == top["digest"]


def test_a_docker_archive_holds_one_platform(builder: Builder, tmp_path: Path) -> None:
    failed = builder.build("FROM scratch\nLABEL a=b\n", *BOTH, "--output", f"type=docker,dest={tmp_path / 'x.tar'}")
    assert (failed.code, "type=oci" in failed.err) == (2, True)


def test_one_platform_twice_is_one_image(builder: Builder, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    platforms = ("--platform", "linux/arm64/v8,linux/arm64", "--platform", "linux/arm64")
    builder.must_build("FROM scratch\nCOPY <<x /x\nx\n", *platforms, "--output", f"type=oci,dest={archive}")
    with tarfile.open(archive) as tar:
        (top,) = json.load(tar.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
    assert top["mediaType"] != INDEX


def test_a_platform_that_is_none_is_refused(builder: Builder) -> None:
    failed = builder.build("FROM scratch\n", "--platform", "linux/amd64,arm64")
    assert (failed.code, "not a platform: 'arm64'" in failed.err) == (2, True)
