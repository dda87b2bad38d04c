"""`refledger copy`: what moves, what stays where it is, and what a person is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.images.copy import Copier, CopyRequest
from storage.digest import Digest
from storage.errors import VerificationError
from storage.interfaces.images import Provider
from storage.platform import host_platform
from storage.reference import parse_reference
from storage.referrers import fallback_tag
from tests.builder import Builder, layer_digests
from tests.faulty import Answering, Fault, FaultyProxy, Seen
from tests.registry_fixture import (
    HTPASSWD,
    OCI_MANIFEST,
    WEB,
    RegistryProcess,
    digest_of,
    nanoseconds,
    push_blob,
    push_image,
    push_manifest,
)
from tests.storage.registry.kit import use
from tests.waiting import wait_until
from tools.imaging import passing_imaging

INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = {"Accept": f"{OCI_MANIFEST}, {INDEX}, {DOCKER}"}


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def image(registry: RegistryProcess, name: str, *, layers: int = 3, size: int = 100_000, **more: Any) -> dict[str, Any]:
    """Layers of `size` bytes that do not compress."""
    rng = random.Random(f"{name}{more}")
    return push_image(registry.host, name, [{f"f{i}": rng.randbytes(size)} for i in range(layers)], **more)


def index(registry: RegistryProcess, name: str, tag: str = "all") -> tuple[bytes, dict[str, dict[str, Any]]]:
    """An index as BuildKit makes it: two platforms, each with an attestation; its bytes, and images by architecture."""
    images = {arch: image(registry, name, layers=2, tag=arch, architecture=arch) for arch in ("amd64", "arm64")}
    entries: list[dict[str, Any]] = []
    for arch, made in images.items():
        entries.append(entry_of(made, {"os": "linux", "architecture": arch}))
    for arch, made in images.items():
        proof = image(registry, name, layers=1, tag=f"proof-{arch}", architecture="unknown")
        notes = {"vnd.docker.reference.digest": made["digest"], "vnd.docker.reference.type": "attestation-manifest"}
        platform = {"os": "unknown", "architecture": "unknown"}
        entries.append({**entry_of(proof, platform), "annotations": notes})
    # reason for the blank: bytes that no encoder of ours would write
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, indent=1).encode()
    push_manifest(registry.host, name, tag, data, INDEX)
    return data, images


def entry_of(made: Mapping[str, Any], platform: Mapping[str, str]) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": made["digest"], "size": made["size"], "platform": dict(platform)}


def artifact(registry: RegistryProcess, name: str, subject: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Something that refers to `subject`, and is in the list that stands in for the referrers API."""
    payload = f"{kind} of {subject['digest']}".encode()
    made = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
                   "digest": push_blob(registry.host, name, b"{}")},
        "layers": [{"mediaType": kind, "digest": push_blob(registry.host, name, payload), "size": len(payload)}],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject["digest"], "size": subject["size"]},
    }  # fmt: skip
    data = json.dumps(made).encode()
    target, digest = Provider.of(registry.host, name), digest_of(data)
    use(lambda client: client.put_manifest(target, digest, OCI_MANIFEST, data))
    return {"digest": digest, "size": len(data), "payload": digest_of(payload)}


def raw(host: str, name: str, tag: str) -> bytes:
    """The manifest that a registry has under a name, byte for byte."""
    return WEB.get(f"http://{host}/v2/{name}/manifests/{tag}", headers=ACCEPT).raise_for_status().content


def has(host: str, name: str, what: str, digest: str) -> bool:
    return WEB.head(f"http://{host}/v2/{name}/{what}/{digest}", headers=ACCEPT).status_code == 200


def copied(builder: Builder, *args: str) -> dict[str, Any]:
    """What `copy --json` says of the one image."""
    done = builder.run("copy", "--json", "--progress", "plain", *args)
    assert done.code == 0, done.err
    [told] = [json.loads(line) for line in done.out.splitlines()]
    assert isinstance(told, dict)
    return told


def ways(told: Mapping[str, Any]) -> list[str]:
    return sorted({layer["transport"] for layer in told["layers"]})


# ---------------------------------------------------------------- what moves


def test_I2_copy_in_one_registry_moves_no_layer(registry: RegistryProcess, repository: str, builder: Builder) -> None:
    made = image(registry, repository)
    mark = registry.mark()
    done = builder.run("copy", f"{registry.host}/{repository}", f"{registry.host}/{repository}/b:2")
    assert done.code == 0, done.err
    summary = f"copied {registry.host}/{repository}:latest to {registry.host}/{repository}/b:2: {made['digest']}, "
    assert f"{summary}3 layers mounted, nothing moved in" in done.err
    requests = registry.requests()[mark:]
    assert not [line for line in requests if line.method == "GET" and line.blob]
    assert len(registry.mounts(since=mark)) == 4  # three layers and the config
    assert {line.path for line in requests if line.method == "PUT"} == {f"/v2/{repository}/b/manifests/2"}
    assert digest_of(raw(registry.host, f"{repository}/b", "2")) == made["digest"]


def test_copy_to_another_registry_streams_and_then_skips_what_is_there(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository, size=300_000)
    names = f"{registry.host}/{repository}", f"{second_registry.host}/{repository}:1"
    told = copied(builder, *names)
    assert (told["digest"], ways(told)) == (made["digest"], ["streamed"])
    assert told["bytes"] == sum(layer["size"] for layer in made["layers"])
    assert raw(second_registry.host, repository, "1") == raw(registry.host, repository, "latest")
    # no layer came to lie here
    assert not [path for path in builder.root.rglob("*") if path.is_file() and path.stat().st_size > 200_000]
    mark, there = registry.mark(), second_registry.mark()
    told = copied(builder, *names)
    assert (ways(told), told["bytes"]) == (["present"], 0)
    assert not [line for line in registry.requests()[mark:] if line.blob]
    assert [line.path for line in second_registry.requests()[there:] if line.method != "HEAD"] == [
        f"/v2/{repository}/manifests/1"
    ]


def test_what_was_copied_to_a_registry_is_mounted_there_the_next_time(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    source, there = f"{registry.host}/{repository}", f"{second_registry.host}/{repository}"
    assert ways(copied(builder, source, f"{there}:1")) == ["streamed"]
    mark = registry.mark()
    told = copied(builder, source, f"{there}/other:1")
    assert (ways(told), told["bytes"]) == (["mounted"], 0)
    assert not registry.layer_gets(layer_digests(made), since=mark)


def test_destination_by_digest_must_be_what_comes(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made, other = image(registry, repository), image(registry, repository, tag="other")
    source, there = f"{registry.host}/{repository}", f"{second_registry.host}/{repository}"
    done = builder.run("copy", source, f"{there}@{other['digest']}")
    assert (done.code, f"the copy has the digest {made['digest']}" in done.err) == (2, True)
    copied(builder, source, f"{there}@{made['digest']}")
    assert digest_of(raw(second_registry.host, repository, made["digest"])) == made["digest"]
    assert not has(second_registry.host, repository, "manifests", "latest")


def test_I2_no_byte_is_asked_for_before_the_log_says_so(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    mark = registry.mark()
    copied(builder, f"{registry.host}/{repository}", f"{second_registry.host}/{repository}")
    [started] = builder.events("ExportStarted")
    gets = registry.layer_gets(layer_digests(made), since=mark)
    assert len(gets) == 3
    said = nanoseconds(started["time"])
    assert all(line.started > said for line in gets)
    assert set(started["data"]["layers"]) > set(layer_digests(made))


def test_I11_what_a_tag_needs_is_there_before_it(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    data, images = index(registry, repository)
    artifact(registry, repository, images["arm64"], "application/vnd.example.sbom")
    mark = second_registry.mark()
    names = f"{registry.host}/{repository}:all", f"{second_registry.host}/{repository}:all"
    copied(builder, "--all", "--referrers", *names)
    puts = [line.path.partition("?")[0] for line in second_registry.requests()[mark:] if line.method == "PUT"]
    manifests = [path.rpartition("/")[2] for path in puts if "/manifests/" in path]
    assert all("/blobs/" in path for path in puts[: puts.index(f"/v2/{repository}/manifests/{manifests[0]}")])
    top = digest_of(data)
    assert manifests[-1] == "all"
    assert set(manifests[: manifests.index(top)]) == {entry["digest"] for entry in json.loads(data)["manifests"]}
    assert fallback_tag(Digest(images["arm64"]["digest"])) in manifests[manifests.index(top) : -1]


# ---------------------------------------------------------------- platforms


def test_all_keeps_the_index_byte_for_byte_with_its_attestations(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    data, _ = index(registry, repository)
    told = copied(builder, "--all", f"{registry.host}/{repository}:all", f"{second_registry.host}/{repository}:all")
    assert told["digest"] == digest_of(data)
    assert raw(second_registry.host, repository, "all") == data
    for entry in json.loads(data)["manifests"]:
        assert raw(second_registry.host, repository, entry["digest"]) == raw(registry.host, repository, entry["digest"])


def test_one_platform_is_its_manifest_alone(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    _, images = index(registry, repository)
    source = f"{registry.host}/{repository}:all"
    there = f"{second_registry.host}/{repository}"
    assert copied(builder, "--platform", "linux/arm64", source, f"{there}:arm")["digest"] == images["arm64"]["digest"]
    assert not has(second_registry.host, repository, "blobs", images["amd64"]["layers"][0]["digest"])
    own = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    assert copied(builder, source, f"{there}:own")["digest"] == images[own]["digest"]


def test_several_platforms_are_an_index_of_these_and_their_attestations(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    data, _ = index(registry, repository)
    entries = json.loads(data)["manifests"]
    extra = {**entries[0], "platform": {"os": "linux", "architecture": "s390x"}}
    other = image(registry, repository, layers=1, tag="s390x", architecture="s390x")
    extra |= {"digest": other["digest"], "size": other["size"]}
    wide = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, extra]}).encode()
    push_manifest(registry.host, repository, "wide", wide, INDEX)
    names = f"{registry.host}/{repository}:wide", f"{second_registry.host}/{repository}:two"
    copied(builder, "--platform", "linux/amd64,linux/arm64", *names)
    assert json.loads(raw(second_registry.host, repository, "two"))["manifests"] == entries
    # within the repository nothing but the new index is put
    both = "--platform", "linux/arm64", "--platform", "linux/s390x"
    copied(builder, *both, names[0], f"{registry.host}/{repository}:x")
    assert json.loads(raw(registry.host, repository, "x"))["manifests"] == [entries[1], entries[3], extra]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--platform", "linux/s390x", "{r}:all"], "has no manifest for linux/s390x"),
        (["--platform", "linux/s390x", "{r}:amd64"], "is for linux/amd64, not linux/s390x"),
        (["--platform", "linux/s390x", "--all", "{r}:all"], "contradict"),
        (["--tags", "*", "{r}:all"], "are repositories"),
        (["--tags", "v*", "{r}"], "no tag matches 'v*'"),
        (["{r}:all?"], "not a tag"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    registry: RegistryProcess, repository: str, builder: Builder, args: list[str], said: str
) -> None:
    index(registry, repository)
    name = f"{registry.host}/{repository}"
    done = builder.run("copy", *(arg.format(r=name) for arg in args), f"{name}/b")
    assert done.code == 2
    assert said in done.err.splitlines()[-1]


# ---------------------------------------------------------------- referrers and tags


def test_referrers_come_along_and_what_refers_to_them(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    sbom = artifact(registry, repository, made, "application/vnd.example.sbom")
    signature = artifact(registry, repository, sbom, "application/vnd.example.signature")
    told = copied(builder, "--referrers", f"{registry.host}/{repository}", f"{second_registry.host}/{repository}")
    assert told["referrers"] == 2
    provider = Provider.of(second_registry.host, repository)
    for subject, referrer in ((made, sbom), (sbom, signature)):
        found = use(lambda client, of=subject: client.referrers(provider, Digest(of["digest"])))
        assert [str(one.manifest.digest) for one in found] == [referrer["digest"]]
        assert has(second_registry.host, repository, "blobs", referrer["payload"])


def test_more_referrers_than_anybody_makes_are_not_followed(
    registry: RegistryProcess, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.images.copy.REFERRERS", 3)
    subject = image(registry, repository)
    target = parse_reference(f"{registry.host}/{repository}-copy:1")
    request = CopyRequest(parse_reference(f"{registry.host}/{repository}"), target, referrers=True)

    async def referrers() -> int:
        async with passing_imaging() as made:
            [told] = await Copier(made.placer, made.listing, made.facts, host_platform()).foresee(request)
            return told.referrers

    for number in (1, 2):
        subject = artifact(registry, repository, subject, f"application/vnd.example.{number}")
        assert asyncio.run(referrers()) == number
    artifact(registry, repository, subject, "application/vnd.example.3")
    with pytest.raises(VerificationError, match="too many manifests refer to the image"):
        asyncio.run(referrers())


def test_without_referrers_nobody_asks_for_them(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    artifact(registry, repository, made, "application/vnd.example.sbom")
    mark = registry.mark()
    copied(builder, f"{registry.host}/{repository}", f"{second_registry.host}/{repository}")
    assert not [line for line in registry.requests()[mark:] if "/referrers/" in line.path or "sha256-" in line.path]


def test_tags_by_pattern_each_with_its_digest(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    data, _ = index(registry, repository, "v1.2")
    one = image(registry, repository, tag="v1.1")
    image(registry, repository, tag="v2.0")
    names = f"{registry.host}/{repository}", f"{second_registry.host}/{repository}"
    done = builder.run("copy", "--tags", "v1.*", *names)
    assert done.code == 0, done.err
    assert f"copied 2 tags of {names[0]} to {names[1]}:" in done.err
    assert raw(second_registry.host, repository, "v1.2") == data
    assert digest_of(raw(second_registry.host, repository, "v1.1")) == one["digest"]
    assert not has(second_registry.host, repository, "manifests", "v2.0")
    [ended] = builder.events("BuildCompleted")
    assert {item["digest"] for item in ended["data"]["results"]} == {digest_of(data), one["digest"]}


# ---------------------------------------------------------------- anything that is a manifest


def test_any_artifact_is_copied_as_it_is(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    chart, config = b"a chart, compressed somehow", b'{"name": "shop", "version": "1.2.3"}'
    made = json.dumps({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "size": len(config),
                   "digest": push_blob(registry.host, repository, config)},
        "layers": [{"mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "size": len(chart),
                    "digest": push_blob(registry.host, repository, chart)}],
        "annotations": {"org.opencontainers.image.title": "shop"},
    }).encode()  # fmt: skip
    push_manifest(registry.host, repository, "1.2.3", made, OCI_MANIFEST)
    copied(builder, f"{registry.host}/{repository}:1.2.3", f"{second_registry.host}/{repository}:1.2.3")
    assert raw(second_registry.host, repository, "1.2.3") == made
    assert has(second_registry.host, repository, "blobs", digest_of(chart))


def test_an_index_that_lists_blobs_is_copied_with_them(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    """As the caches of BuildKit that are no image manifests."""
    layer, config = "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.buildkit.cacheconfig.v0"
    parts = {layer: b"a layer", config: b"{}"}
    made = json.dumps({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [
            {"mediaType": kind, "size": len(data), "digest": push_blob(registry.host, repository, data)}
            for kind, data in parts.items()
        ],
    }).encode()  # fmt: skip
    push_manifest(registry.host, repository, "cache", made, INDEX)
    copied(builder, f"{registry.host}/{repository}:cache", f"{second_registry.host}/{repository}:cache", "--all")
    assert raw(second_registry.host, repository, "cache") == made
    assert all(has(second_registry.host, repository, "blobs", digest_of(data)) for data in parts.values())


def test_docker_schema_2_stays_what_it_is(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    command = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", "--format", "v2s2"]
    name = f"{registry.host}/{repository}:v2s2"
    subprocess.run([*command, f"docker://{made['reference']}", f"docker://{name}"], check=True)
    told = copied(builder, name, f"{second_registry.host}/{repository}:v2s2")
    there = raw(second_registry.host, repository, "v2s2")
    assert there == raw(registry.host, repository, "v2s2")
    assert (json.loads(there)["mediaType"], digest_of(there)) == (DOCKER, told["digest"])


def test_docker_schema_1_is_refused_in_one_line(registry: RegistryProcess, builder: Builder) -> None:
    body = json.dumps({"schemaVersion": 1, "name": "old", "fsLayers": []}).encode()
    headers = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    with Answering(lambda seen: (200, headers, b"" if seen.method == "HEAD" else body)) as server:
        done = builder.run("copy", f"{server.host}/old", f"{registry.host}/old")
    assert done.code == 3
    assert "docker's schema 1" in done.err.splitlines()[-1]


def test_layers_that_are_elsewhere_stay_there(builder: Builder, tmp_path: Path) -> None:
    own, foreign = b"a layer", b"a layer that only its vendor may give away"
    layout = tmp_path / "source"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        (blobs / digest_of(data).partition(":")[2]).write_bytes(data)
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data), **more}

    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    elsewhere = {"mediaType": kind, "digest": digest_of(foreign), "size": len(foreign), "urls": ["https://v.example/l"]}
    layers = [put(own, "application/vnd.oci.image.layer.v1.tar"), elsewhere]
    config = put(b"{}", "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    top = put(json.dumps(manifest).encode(), OCI_MANIFEST)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    told = copied(builder, f"oci-layout://{layout}", f"oci-layout://{tmp_path}/copy:1")
    assert [layer["digest"] for layer in told["layers"]] == [layers[0]["digest"]]
    stored = tmp_path / "copy/blobs/sha256"
    assert json.loads((stored / told["digest"].partition(":")[2]).read_bytes())["layers"][1] == elsewhere


def test_round_trip_through_a_layout_that_others_read(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder, tmp_path: Path
) -> None:
    data, images = index(registry, repository)
    artifact(registry, repository, images["arm64"], "application/vnd.example.sbom")
    layout = tmp_path / "a layout"
    copied(builder, "--all", "--referrers", f"{registry.host}/{repository}:all", f"oci-layout://{layout}:all")
    inspected = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{layout}:all"], check=True, capture_output=True
    ).stdout
    assert inspected == data
    there = f"{second_registry.host}/{repository}:all"
    told = copied(builder, "--all", "--referrers", f"oci-layout://{layout}:all", there)
    assert (told["digest"], told["referrers"]) == (digest_of(data), 1)
    assert raw(second_registry.host, repository, "all") == data


# ---------------------------------------------------------------- when it goes wrong


def test_denied_destination_is_told_in_one_line(
    registry: RegistryProcess, repository: str, builder: Builder, tmp_path: Path
) -> None:
    image(registry, repository)
    with RegistryProcess(tmp_path / "closed", htpasswd=HTPASSWD) as closed:
        done = builder.run("copy", f"{registry.host}/{repository}", f"{closed.host}/{repository}")
    assert done.code == 3
    [line] = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert f"{closed.host}/{repository}" in line
    assert "denies access" in line
    assert builder.builds()[0]["status"] == "failed"


def test_missing_source_is_told_in_one_line(registry: RegistryProcess, repository: str, builder: Builder) -> None:
    done = builder.run("copy", f"{registry.host}/{repository}:nope", f"{registry.host}/{repository}/b")
    assert done.code == 3
    assert f"{registry.host}/{repository}:nope: the registry does not have the manifest" in done.err.splitlines()[-1]


SOUND = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(b"x"), "size": 1}


@pytest.mark.parametrize(
    "manifest",
    [
        {"layers": [{**SOUND, "digest": "sha256:12"}]},
        {"layers": [{**SOUND, "size": -1}]},
        {"layers": [{**SOUND, "size": "many"}]},
        {"layers": [{**SOUND, "annotations": 7}]},
        {"layers": ["x"]},
        {"layers": {"a": 1}},
        {"layers": 7},
        {"config": []},
        {"config": "x\u001b[31m"},
        {"config": [SOUND, SOUND]},
        {"manifests": 7},
        {"manifests": [7]},
        {"manifests": [{**SOUND, "mediaType": OCI_MANIFEST, "platform": {"os": 7}}]},
        {"manifests": [{**SOUND, "mediaType": OCI_MANIFEST, "annotations": [1]}]},
        {"manifests": []},
        {"subject": 7},
        {"mediaType": 7, "config": SOUND, "layers": []},
        {"schemaVersion": 1},
    ],
)
def test_whatever_a_manifest_holds_it_is_copied_or_refused(
    tmp_path: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: a start of Python for each would take longer than all of it."""
    from click import ClickException

    from storage.errors import RefledgerError
    from tools.cli.copy import copy

    data = json.dumps({"schemaVersion": 2, **manifest}).encode()
    kind = INDEX if "manifests" in manifest else OCI_MANIFEST
    headers = {"Content-Type": kind, "Docker-Content-Digest": digest_of(data)}

    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        if "/manifests/sha256" in seen.path and seen.path.endswith(digest_of(data)):
            return 200, headers, data
        if "/manifests/1" in seen.path:
            return 200, headers, b"" if seen.method == "HEAD" else data
        return 404, {}, b""

    monkeypatch.setenv("REFLEDGER_ROOT", str(tmp_path / "root"))
    with Answering(answer) as server:
        names = f"{server.host}/a:1", f"oci-layout://{tmp_path}/copy:1"
        for args in (["--all", "--referrers"], ["--platform", "linux/amd64,linux/arm64"], ["--dry-run"]):
            with contextlib.suppress(RefledgerError, ClickException):
                copy.main([*args, "--progress", "quiet", *names], standalone_mode=False)


def test_I3_wrong_bytes_of_the_source_reach_nobody(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    bad = made["layers"][1]["digest"]
    with FaultyProxy(registry.host, Fault("GET", f"/blobs/{bad}", flip=True)) as proxy:
        done = builder.run("copy", f"{proxy.host}/{repository}", f"{second_registry.host}/{repository}")
    assert done.code == 4
    assert bad in done.err.splitlines()[-1]
    assert not has(second_registry.host, repository, "blobs", bad)
    assert not has(second_registry.host, repository, "manifests", "latest")


def test_I12_killed_at_half_and_run_again_only_the_rest_moves(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository, layers=4, size=400_000)
    digests = layer_digests(made)
    stalled = [Fault("GET", f"/blobs/{digest}", stall_after=100_000) for digest in digests[2:]]
    with FaultyProxy(registry.host, *stalled) as proxy:
        names = f"{proxy.host}/{repository}", f"{second_registry.host}/{repository}:1"
        process = builder.start("copy", *names)
        wait_until(
            lambda: all(has(second_registry.host, repository, "blobs", digest) for digest in digests[:2]), process
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not has(second_registry.host, repository, "manifests", "1")
        proxy.faults.clear()
        told = copied(builder, *names)
    assert {layer["digest"] for layer in told["layers"] if layer["transport"] == "streamed"} == set(digests[2:])
    assert told["bytes"] == sum(layer["size"] for layer in made["layers"][2:])
    assert digest_of(raw(second_registry.host, repository, "1")) == made["digest"]
    assert [build["status"] for build in builder.builds()] == ["completed", "interrupted"]


def test_interrupted_within_a_layer_and_run_again_only_the_rest_of_it_moves(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository, layers=1, size=10_000_000)
    [layer] = made["layers"]
    with FaultyProxy(registry.host, Fault("GET", f"/blobs/{layer['digest']}", stall_after=4_000_000)) as proxy:
        names = f"{proxy.host}/{repository}", f"{second_registry.host}/{repository}:1"
        process = builder.start("copy", *names)
        upload = second_registry.directory / "data/docker/registry/v2/repositories" / repository / "_uploads"
        wait_until(lambda: sum(path.stat().st_size for path in upload.glob("*/data")) >= 3_000_000, process)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
        assert not has(second_registry.host, repository, "blobs", layer["digest"])
        proxy.faults.clear()
        mark = registry.mark()
        told = copied(builder, *names)
    [got] = registry.layer_gets([layer["digest"]], since=mark)
    assert got.partial
    assert told["bytes"] == got.bytes < layer["size"] - 2_500_000
    assert digest_of(raw(second_registry.host, repository, "1")) == made["digest"]
    assert has(second_registry.host, repository, "blobs", layer["digest"])
    # the location of an upload may be signed: it is in no event, and forgotten when it is done
    assert "_state" not in builder.run("events", "--json").out
    assert not list((builder.root / "uploads").iterdir())


def test_killed_within_a_layer_what_the_registry_cannot_go_on_with_begins_anew(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository, layers=1, size=10_000_000)
    [layer] = made["layers"]
    with FaultyProxy(registry.host, Fault("GET", f"/blobs/{layer['digest']}", stall_after=4_000_000)) as proxy:
        names = f"{proxy.host}/{repository}", f"{second_registry.host}/{repository}:1"
        process = builder.start("copy", *names)
        upload = second_registry.directory / "data/docker/registry/v2/repositories" / repository / "_uploads"
        wait_until(lambda: any(path.stat().st_size for path in upload.glob("*/data")), process)
        assert list((builder.root / "uploads").iterdir())
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        proxy.faults.clear()
        told = copied(builder, *names)
    assert told["bytes"] == layer["size"]
    assert digest_of(raw(second_registry.host, repository, "1")) == made["digest"]


# ---------------------------------------------------------------- what people and programs see


def test_dry_run_asks_and_changes_nothing(
    registry: RegistryProcess, second_registry: RegistryProcess, repository: str, builder: Builder
) -> None:
    made = image(registry, repository)
    push_blob(second_registry.host, repository, WEB.get(
        f"http://{registry.host}/v2/{repository}/blobs/{made['layers'][0]['digest']}"
    ).content)  # fmt: skip
    marks = registry.mark(), second_registry.mark()
    done = builder.run("copy", "--dry-run", f"{registry.host}/{repository}", f"{second_registry.host}/{repository}")
    assert done.code == 0
    assert "would copy" in done.err
    assert "3 layers: 2 streamed, 1 present" in done.err
    asked = [*registry.requests()[marks[0] :], *second_registry.requests()[marks[1] :]]
    assert {line.method for line in asked if "/manifests/" not in line.path} == {"HEAD"}
    assert not builder.root.exists()


def test_quiet_prints_the_digest_only(registry: RegistryProcess, repository: str, builder: Builder) -> None:
    made = image(registry, repository)
    done = builder.run("copy", "-q", f"{registry.host}/{repository}", f"{registry.host}/{repository}/b")
    assert (done.code, done.out, done.err) == (0, f"{made['digest']}\n", "")


def test_commands_that_look_back_know_copies(registry: RegistryProcess, repository: str, builder: Builder) -> None:
    image(registry, repository)
    names = f"{registry.host}/{repository}", f"{registry.host}/{repository}/b:1"
    for args in (["copy", *names], ["copy", f"{names[0]}:nope", names[1]]):
        builder.run(*args)
    failed, done = (build["id"] for build in builder.builds())
    assert f"copy {names[0]} to {names[1]}" in builder.run("history").out
    assert f"copying to {names[1]}" in builder.run("show", done, env={"COLUMNS": "250"}).out
    assert "mounted" in builder.run("show", done, "--play").out
    assert "it has no steps" in builder.run("why", done).out
    assert "results" in builder.run("diff", failed, done).out
    report = builder.root.parent / "report.html"
    assert builder.run("report", done, "-o", str(report)).code == 0
    assert names[1] in report.read_text()
    replayed = builder.run("replay", done)
    assert (replayed.code, "had no steps" in replayed.err) == (2, True)
    for command in (["output", done], ["events", "--build", done], ["refs"], ["du"], ["rebuild"], ["show", failed]):
        assert builder.run(*command).code == 0


def test_copy_needs_no_privileges(
    registry: RegistryProcess, repository: str, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.cli.copy import copy

    image(registry, repository)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # what asks whether mounts can be made asks this
    monkeypatch.setenv("REFLEDGER_ROOT", str(builder.root))
    names = f"{registry.host}/{repository}", f"{registry.host}/{repository}/b:1"
    copy.main([*names, "--progress", "plain"], standalone_mode=False)
    assert has(registry.host, f"{repository}/b", "manifests", "1")
