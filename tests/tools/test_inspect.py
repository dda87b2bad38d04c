"""`refledger inspect`: what is told of an image, what is asked for it, and that nothing changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage.platform import host_platform
from tests.builder import Builder, base_image, layer_digests
from tests.registry_fixture import (
    OCI_CONFIG,
    OCI_MANIFEST,
    RegistryProcess,
    digest_of,
    push_blob,
    push_image,
    push_manifest,
)
from tests.state import state_of
from tests.terminal import AtTerminal

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
Json = dict[str, Any]
INDEX = "application/vnd.oci.image.index.v1+json"
RUNS = {
    "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["serve --now"], "Env": ["PATH=/bin", "LANG=C.UTF-8"], "User": "app",
    "WorkingDir": "/srv", "ExposedPorts": {"8080/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}},
    "Labels": {"org.example.b": "2", "org.example.a": "1"}, "StopSignal": "SIGINT",
}  # fmt: skip


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "a root")


def image(registry: RegistryProcess, name: str, architecture: str = "amd64", config: Json | None = None) -> Json:
    layers = [{"etc/a": architecture.encode()}, {"etc/b": b"b" * 5000}]
    return push_image(registry.host, name, layers, architecture=architecture, config=config)


def index(registry: RegistryProcess, name: str, architectures: tuple[str, ...]) -> Json:
    """An index `name`:1, its images by architecture, and `raw`."""
    made = {architecture: image(registry, name, architecture) for architecture in architectures}
    entries: list[Json] = [
        {"mediaType": OCI_MANIFEST, "digest": one["digest"], "size": one["size"],
         "platform": {"os": "linux", "architecture": architecture}, "annotations": {"for": architecture}}
        for architecture, one in made.items()
    ]  # fmt: skip
    attests = {"vnd.docker.reference.type": "attestation-manifest",
               "vnd.docker.reference.digest": entries[0]["digest"]}  # fmt: skip
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries.append({**entries[-1], "platform": unknown, "annotations": attests})
    data = json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, "annotations": {"of": "all"}}, indent=2
    ).encode()
    push_manifest(registry.host, name, "1", data, INDEX)
    return {**made, "raw": data, "reference": f"{registry.host}/{name}:1"}


def told(builder: Builder, *args: str) -> Json:
    done = builder.run("inspect", "--json", *args)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    found: Json = json.loads(done.out)
    return found


# ---------------------------------------------------------------- what it says


def test_all_of_an_image_is_told_by_stable_names(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = image(registry, repository, config=RUNS)
    found = told(builder, made["reference"])
    assert found["reference"] == made["reference"]
    assert (found["digest"], found["size"], found["media_type"]) == (made["digest"], made["size"], OCI_MANIFEST)
    assert found["manifests"] == []
    said = found["image"]
    assert said["platform"] == "linux/amd64"
    assert said["created"] == "2024-01-01T00:00:00Z"
    assert said["config"]["digest"] == made["manifest"]["config"]["digest"]
    assert {key: said[key] for key in ("entrypoint", "cmd", "env", "user", "workdir", "stop_signal")} == {
        "entrypoint": ["/bin/sh", "-c"], "cmd": ["serve --now"], "env": RUNS["Env"], "user": "app",
        "workdir": "/srv", "stop_signal": "SIGINT",
    }  # fmt: skip
    assert (said["ports"], said["volumes"]) == (["53/udp", "8080/tcp"], ["/data"])
    assert said["labels"] == RUNS["Labels"]
    assert [(one["digest"], one["size"], one["diff_id"], one["made_by"]) for one in said["layers"]] == [
        (layer["digest"], layer["size"], layer["diff_id"], f"layer {number}")
        for number, layer in enumerate(made["layers"])
    ]
    assert said["layers_size"] == said["to_pull"] == sum(layer["size"] for layer in made["layers"])
    assert [step["layer"] for step in said["history"]] == [0, 1]


def test_lines_for_people_say_the_same_and_skopeo_agrees(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = image(registry, repository, config=RUNS)
    done = builder.run("inspect", made["reference"])
    assert done.code == 0, done.err
    for line in (
        "entrypoint   [\"/bin/sh\", \"-c\"]", "user         app", "ports        53/udp, 8080/tcp",
        f"digest       {made['digest']}", "labels       org.example.a=1", "linux/amd64",
    ):  # fmt: skip
        assert line in done.out
    skopeo = json.loads(subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{made['reference']}"], capture_output=True, check=True
    ).stdout)  # fmt: skip
    found = told(builder, made["reference"])
    assert skopeo["Digest"] == found["digest"]
    assert skopeo["Layers"] == [layer["digest"] for layer in found["image"]["layers"]]
    assert skopeo["Labels"] == found["image"]["labels"]
    assert skopeo["Env"] == found["image"]["env"]


def test_history_lines_without_a_layer_match_no_layer(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = image(registry, repository)
    config = {**made["config"], "history": [
        {"created_by": "first"}, {"created_by": "ENV a=b", "empty_layer": True}, {"created_by": "second   one"},
        {"created_by": "one that is too much"}, "nonsense",
    ]}  # fmt: skip
    data = json.dumps(config).encode()
    blob = {"mediaType": OCI_CONFIG, "digest": push_blob(registry.host, repository, data), "size": len(data)}
    manifest = json.dumps({**made["manifest"], "config": blob}).encode()
    push_manifest(registry.host, repository, "2", manifest, OCI_MANIFEST)
    said = told(builder, f"{registry.host}/{repository}:2")["image"]
    assert [layer["made_by"] for layer in said["layers"]] == ["first", "second   one"]
    assert [step["layer"] for step in said["history"]] == [0, None, 1, None]
    lines = builder.run("inspect", f"{registry.host}/{repository}:2").out
    assert "second one" in lines
    assert "made without a layer\n  ENV a=b\n" in lines


def test_an_index_tells_its_platforms_and_one_image(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = index(registry, repository, ("riscv64", "arm64"))
    found = told(builder, made["reference"])
    assert found["annotations"] == {"of": "all"}
    assert [(one["platform"], one["attests"]) for one in found["manifests"]] == [
        ("linux/riscv64", ""), ("linux/arm64", ""), ("", made["riscv64"]["digest"]),
    ]  # fmt: skip
    assert found["image"]["platform"] == "linux/riscv64", "the first, as none is for this machine"
    arm = told(builder, made["reference"], "--platform", "linux/arm64/v8")["image"]
    assert arm["digest"] == made["arm64"]["digest"]
    assert told(builder, made["reference"], "--all")["image"] is None
    lines = builder.run("inspect", "--all", made["reference"]).out
    assert re.search(rf"linux/riscv64 +\d+B +{made['riscv64']['digest']}\n", lines)
    assert "attestation of linux/riscv64" in lines
    assert "linux/arm64 annotated for=arm64" in lines
    failed = builder.run("inspect", made["reference"], "--platform", "linux/s390x")
    assert failed.code == 2
    assert "it has: linux/arm64, linux/riscv64" in failed.err


def test_this_machines_image_is_the_one_that_is_told(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    own = host_platform().architecture
    made = index(registry, repository, ("s390x", own))
    assert told(builder, made["reference"])["image"]["digest"] == made[own]["digest"]


def test_raw_is_byte_for_byte_what_is_stored(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = index(registry, repository, ("amd64", "arm64"))

    def raw(*args: str) -> bytes:
        done = builder.run("inspect", "--raw", *args, made["reference"])
        assert done.code == 0, done.err
        return done.out.encode()

    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{made['reference']}"]
    assert raw() == made["raw"] == subprocess.run(command, capture_output=True, check=True).stdout
    arm = raw("--platform", "linux/arm64")
    assert digest_of(arm) == made["arm64"]["digest"]
    config = raw("--config", "--platform", "linux/arm64")
    assert digest_of(config) == made["arm64"]["manifest"]["config"]["digest"]


def test_what_refers_to_an_image_is_listed(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = image(registry, repository)
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": push_blob(registry.host, repository, b"{}"),
             "size": 2}  # fmt: skip
    sbom = json.dumps({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/spdx+json", "config": empty,
        "layers": [empty], "annotations": {"a": "b"},
        "subject": {"mediaType": OCI_MANIFEST, "digest": made["digest"], "size": made["size"]},
    }).encode()  # fmt: skip
    push_manifest(registry.host, repository, digest_of(sbom), sbom, OCI_MANIFEST)
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(sbom), "size": len(sbom),
             "artifactType": "application/spdx+json", "annotations": {"a": "b"}}  # fmt: skip
    listing = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    push_manifest(registry.host, repository, made["digest"].replace(":", "-"), listing, INDEX)
    found = told(builder, "--referrers", made["reference"])
    assert found["referrers"] == [{
        "subject": made["digest"], "digest": digest_of(sbom), "media_type": OCI_MANIFEST, "size": len(sbom),
        "artifact_type": "application/spdx+json", "annotations": {"a": "b"},
    }]  # fmt: skip
    assert "application/spdx+json" in builder.run("inspect", "--referrers", made["reference"]).out
    artifact = told(builder, f"{registry.host}/{repository}@{digest_of(sbom)}")
    assert (artifact["artifact_type"], artifact["subject"]) == ("application/spdx+json", made["digest"])
    assert artifact["image"]["platform"] == ""


# ---------------------------------------------------------------- what is where


@needs_root
def test_I7_mountable_stored_and_known_are_told_apart(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    base = base_image(registry, f"{repository}/base", size=20_000)
    layers = layer_digests(base)

    def facts() -> list[tuple[bool, bool, list[str]]]:
        said = told(builder, base["reference"])["image"]["layers"]
        assert [layer["digest"] for layer in said] == layers
        return [
            (one["mountable"], one["stored"], [f"{at['registry']}/{at['repository']}" for at in one["providers"]])
            for one in said
        ]

    asked, copied = f"{registry.host}/{repository}/base", f"{second_registry.host}/{repository}/copy"
    assert facts() == [(False, False, [asked])] * 3
    builder.must_build(f"FROM {base['reference']}\nLABEL a=b\n", "-t", f"{copied}:1", "--push")
    assert facts() == [(False, False, [asked, copied])] * 3
    builder.must_build(f"FROM {base['reference']}\nRUN true\n")
    assert facts() == [(True, False, [asked, copied])] * 3
    stored = builder.root / "blobs/sha256" / layers[0].removeprefix("sha256:")
    stored.write_bytes(registry.blob_path(layers[0]).read_bytes())
    assert facts()[0] == (True, True, [asked, copied])


@needs_root
def test_a_run_pulls_what_inspect_says(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    base = base_image(registry, f"{repository}/base", size=20_000)
    two = push_image(registry.host, f"{repository}/two", [{"x": b"y"}])
    builder.must_build(f"FROM {two['reference']} AS two\nFROM {base['reference']}\nRUN true\n")
    assert told(builder, base["reference"])["image"]["to_pull"] == 0
    assert "a RUN here pulls nothing" in builder.run("inspect", base["reference"]).out
    other = push_image(registry.host, f"{repository}/other", [{"new": os.urandom(30_000)}])
    said = told(builder, other["reference"])["image"]
    assert said["to_pull"] == other["layers"][0]["size"]
    assert re.search(r"a RUN here pulls 1 of them, 30\.\dkB", builder.run("inspect", other["reference"]).out)


def test_I13_only_manifests_and_configs_are_asked_for_and_nothing_is_written(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = index(registry, repository, ("amd64", "arm64"))
    mark = registry.mark()
    told(builder, made["reference"])
    assert not builder.root.exists()
    lines = registry.requests()[mark:]
    assert [(line.method, line.blob or "manifest") for line in lines] == [
        ("HEAD", "manifest"), ("GET", "manifest"), ("GET", "manifest"),
        ("GET", made["amd64"]["manifest"]["config"]["digest"]),
    ]  # fmt: skip
    assert builder.run("index", "create", "-q", made["reference"], made["amd64"]["digest"], "--append").code == 0
    before, mark = state_of(builder.root), registry.mark()
    assert builder.run("inspect", "--referrers", made["reference"]).code == 0
    assert state_of(builder.root) == before
    assert [line.method for line in registry.requests()[mark:] if line.path.endswith("/manifests/1")] == ["HEAD"]
    assert registry.layer_gets(layer_digests(made["amd64"]), since=mark) == []


@needs_root
def test_offline_tells_what_is_here_and_says_what_is_not(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    base = base_image(registry, f"{repository}/base", size=20_000)
    builder.must_build(f"FROM {base['reference']}\nRUN true\n")
    online = told(builder, base["reference"])
    mark = registry.mark()
    assert told(builder, "--offline", base["reference"]) == online
    failed = builder.run("inspect", "--offline", f"{registry.host}/{repository}/unknown")
    assert failed.code == 3
    assert "the log does not know what the name is" in failed.err
    referrers = builder.run("inspect", "--offline", "--referrers", base["reference"])
    assert (referrers.code, "leave --referrers out" in referrers.err) == (2, True)
    assert registry.requests()[mark:] == []


def test_an_index_that_was_made_here_can_be_looked_at_offline(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = index(registry, f"{repository}/from", ("amd64", "arm64"))
    target = f"{registry.host}/{repository}/to:1"
    assert builder.run("index", "create", "-q", target, made["reference"], "--annotation", "index:a=b").code == 0
    found = told(builder, "--offline", "--all", target)
    assert found["annotations"] == {"of": "all", "a": "b"}
    assert told(builder, builder.builds()[0]["id"], "--all") == {**found, "reference": f"{target}@{found['digest']}"}


@needs_root
def test_builds_and_refs_are_named_by_their_ids(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    base = base_image(registry, f"{repository}/base", size=20_000)
    target = f"{registry.host}/{repository}/app:1"
    builder.must_build(f"FROM {base['reference']}\nRUN echo x > /x\n", "-t", target, "--push")
    build = builder.builds()[0]["id"]
    found = told(builder, build)
    assert found["digest"] == told(builder, target)["digest"]
    assert found["image"]["layers"][3]["made_by"].endswith("echo x > /x")
    refs = [json.loads(line) for line in builder.run("refs", "--json").out.splitlines()]
    step = next(ref for ref in refs if ref["kind"] == "local")
    said = told(builder, step["ref"])
    assert (said["kind"], said["build"], said["to_pull"]) == ("local", build, 0)
    assert [layer["digest"] for layer in said["layers"]] == [layer["digest"] for layer in found["image"]["layers"]]
    assert said["layers"][3]["snapshot"] == step["ref"]
    chain = next(ref["ref"] for ref in refs if ref["kind"] == "remote")
    assert told(builder, chain[:20])["ref"] == chain
    assert f"{chain}\n  kind   an image's layers" in builder.run("inspect", chain).out
    unknown = builder.run("inspect", "sha256:" + "0" * 64)
    assert (unknown.code, "no ref" in unknown.err) == (2, True)
    builder.must_build(f"FROM {base['reference']}\nLABEL a=b\n")
    nothing = builder.run("inspect", builder.builds()[0]["id"])
    assert nothing.code == 2
    assert "put no image into a registry" in nothing.err


def test_layouts_are_looked_into(builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path) -> None:
    made = image(registry, repository, config=RUNS)
    layout = tmp_path / "a layout"
    subprocess.run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{made['reference']}",
                    f"oci:{layout}:x"], check=True)  # fmt: skip
    mark = registry.mark()
    assert told(builder, f"oci-layout://{layout}:x")["digest"] == made["digest"]
    assert registry.requests()[mark:] == []


# ---------------------------------------------------------------- whoever wrote it


def test_control_characters_of_an_image_reach_no_terminal(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\nfine\u202e"
    made = image(registry, repository, config={
        "Labels": {evil: evil}, "Env": [evil], "User": evil, "Cmd": [evil], "WorkingDir": evil,
        "ExposedPorts": {evil: {}}, "Volumes": {evil: {}},
    })  # fmt: skip
    config = {**made["config"], "author": evil, "created": evil, "history": [{"created_by": evil}] * 2}
    data = json.dumps(config).encode()
    blob = {"mediaType": OCI_CONFIG, "digest": push_blob(registry.host, repository, data), "size": len(data)}
    manifest = json.dumps({**made["manifest"], "config": blob, "annotations": {evil: evil}, "artifactType": evil})
    push_manifest(registry.host, repository, "evil", manifest.encode(), OCI_MANIFEST)
    for mode in ([], ["--json"]):
        done = builder.run("inspect", *mode, f"{registry.host}/{repository}:evil")
        assert done.code == 0, done.err
        assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.out) is None
        assert "fine" in done.out


@pytest.mark.parametrize(
    "config",
    [[], {"config": []}, {"rootfs": [], "history": {}, "created": 3}, {"rootfs": {"diff_ids": ["x", 1]}},
     {"config": {"Env": {"a": 1}, "Labels": ["x"], "Cmd": "x", "ExposedPorts": [1], "User": 7}}],
)  # fmt: skip
def test_a_config_of_nonsense_is_no_bug(
    builder: Builder, registry: RegistryProcess, repository: str, config: object
) -> None:
    made = image(registry, repository)
    data = json.dumps(config).encode()
    blob = {"mediaType": OCI_CONFIG, "digest": push_blob(registry.host, repository, data), "size": len(data)}
    manifest = json.dumps({**made["manifest"], "config": blob}).encode()
    push_manifest(registry.host, repository, "odd", manifest, OCI_MANIFEST)
    for mode in ([], ["--json"]):
        done = builder.run("inspect", *mode, f"{registry.host}/{repository}:odd")
        assert (done.code, "internal error" in done.err) == (0 if isinstance(config, dict) else 4, False), done.err


def test_it_fits_into_60_columns(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    made = index(registry, repository, ("amd64", "arm64"))
    with AtTerminal("inspect", made["reference"], env={**builder.env, "COLUMNS": "60"}) as terminal:
        assert terminal.end() == 0
    lines = terminal.screen.splitlines()
    assert [line for line in lines if len(line) > 60] == []
    assert any(line.startswith("sha256:") and "layer 1" in line for line in lines)
