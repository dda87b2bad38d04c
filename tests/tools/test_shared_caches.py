"""Caches between machines: one root builds, a fresh one is told of the cache, the registry's log judges."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builder import Builder, Done, base_image, layer_digests
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import (
    HTPASSWD,
    PASSWORD,
    USER,
    WEB,
    AccessLine,
    RegistryProcess,
    push_blob,
    push_manifest,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

DOCKERFILE = """\
FROM {base} AS tool
WORKDIR /tool
RUN echo tool > made && cat /etc/passwd > copied

FROM {base}
COPY file /file
RUN cat /file > /seen
COPY --from=tool /tool/made /made
ENV A=1
"""
STEPS = 5


class Two:
    """Two machines with the same project, a registry between them."""

    def __init__(self, directory: Path, registry: RegistryProcess, repository: str) -> None:
        self.registry = registry
        self.repository = repository
        self.image = base_image(registry, f"{repository}/base")
        self.dockerfile = DOCKERFILE.format(base=self.image["reference"])
        self.one, self.other = Builder(directory / "one"), Builder(directory / "other")
        self.cache = f"{registry.host}/{repository}/cache:main"
        for builder in (self.one, self.other):
            builder.write({"file": b"content " * 1000})

    def name(self, of: str) -> str:
        return f"{self.registry.host}/{self.repository}/{of}:1"

    def export(self, *args: str) -> Done:
        return self.one.must_build(self.dockerfile, "-t", self.name("app"), "--push", *args)

    def reuse(self, *args: str, dockerfile: str = "") -> Done:
        return self.other.must_build(dockerfile or self.dockerfile, "-t", self.name("app-2"), "--push", *args)

    def digest(self, of: str) -> str:
        return self.head(of).headers["docker-content-digest"]

    def head(self, of: str) -> httpx.Response:
        url = f"http://{self.registry.host}/v2/{self.repository}/{of}/manifests/1"
        accept = "application/vnd.oci.image.manifest.v1+json"
        return WEB.get(url, headers={"Accept": accept}).raise_for_status()

    def layers(self) -> list[str]:
        """All blobs that are layers: of the base, the image and the cache."""
        described = [*layer_digests(self.image), *(one["digest"] for one in self.head("app").json()["layers"])]
        for event in self.one.events("CacheExported"):
            described += [layer["digest"] for layer in event["data"]["layers"]]
        return list(dict.fromkeys(described))


@pytest.fixture
def two(tmp_path: Path, registry: RegistryProcess, repository: str) -> Two:
    return Two(tmp_path, registry, repository)


def outcomes(builder: Builder) -> dict[str, int]:
    """How the steps of the last build ended, less its sources."""
    build = builder.builds()[0]["id"]
    found = {"cached": 0, "ran": 0}
    for event in builder.events("VertexCached", "VertexCompleted", build=build):
        if event["data"]["outputs"] and not re.search(r"\bFROM\b|load|context", event["data"]["name"]):
            found["cached" if event["type"] == "VertexCached" else "ran"] += 1
    return found


def queried(builder: Builder) -> list[dict[str, Any]]:
    build = builder.builds()[0]["id"]
    return [event["data"] for event in builder.events("CacheQueried", build=build)]


def read(lines: list[AccessLine]) -> list[str]:
    return [line.path.partition("?")[0] for line in lines if line.method == "GET" and line.status == 200]


def test_I2_a_fresh_machine_with_a_full_hit_pushes_without_reading_a_layer(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    assert outcomes(two.one) == {"cached": 0, "ran": STEPS}
    mark = two.registry.mark()
    done = two.reuse("--cache-from", f"type=registry,ref={two.cache}")
    since = two.registry.requests()[mark:]
    assert two.registry.layer_gets(two.layers(), since=mark) == []
    assert [line for line in since if line.method in ("PUT", "PATCH") and "/blobs/" in line.path] == [
        line for line in since if line.method == "PUT" and "/app-2/blobs/uploads/" in line.path
    ], "of blobs only the image's config is uploaded"
    assert len([line for line in since if line.method == "PUT" and "/blobs/" in line.path]) == 1
    assert all("/manifests/" in path or "/blobs/" in path for path in read(since))
    assert len(two.registry.mounts(since=mark)) == len(two.head("app").json()["layers"])
    assert two.digest("app-2") == two.digest("app"), "the same image, byte for byte"
    assert outcomes(two.other)["ran"] == 0
    assert [event["outcome"] for event in queried(two.other)] == ["hit"] * STEPS
    origin = two.one.builds()[0]["id"]
    assert {(event["importer"], event["origin_build"]) for event in queried(two.other)} == {
        (f"type=registry,ref={two.cache}", origin)
    }
    assert "MaterializationRequested" not in {event["type"] for event in two.other.events()}
    assert f"importing cache from type=registry,ref={two.cache}" in done.err
    assert done.err.count("CACHED") >= 3


def test_a_cache_beside_the_image_is_mounted_from_it_and_only_what_it_has_more_is_uploaded(two: Two) -> None:
    mark = two.registry.mark()
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    sent = [line.path for line in two.registry.requests()[mark:] if line.method == "PUT" and "/blobs/" in line.path]
    digests = [path.partition("digest=")[2] for path in sent]
    assert len(digests) == len(set(digests)), "no blob travels twice to one registry"
    (exported,) = two.one.events("CacheExported")
    mounted = {layer["digest"] for layer in exported["data"]["layers"] if layer["transport"] == "mounted"}
    assert mounted >= {layer["digest"] for layer in two.head("app").json()["layers"]}


@pytest.mark.parametrize("kind", ["zstd", "estargz"])
def test_a_cache_in_another_compression_serves_and_the_image_stays_what_it_is(two: Two, kind: str) -> None:
    wish = f"compression={kind},force-compression=true"
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max,{wish}")
    url = f"http://{two.registry.host}/v2/{two.repository}/cache/manifests/main"
    manifest = WEB.get(url, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}).raise_for_status()
    layers = [layer for layer in manifest.json()["layers"] if "image.layer" in layer["mediaType"]]
    toc = "containerd.io/snapshot/stargz/toc.digest"
    assert {(layer["mediaType"].rpartition("+")[2], toc in layer["annotations"]) for layer in layers} == {
        ("zstd", False) if kind == "zstd" else ("gzip", True)
    }
    image = two.head("app").json()["layers"]
    assert {layer["mediaType"].rpartition("+")[2] for layer in image} == {"gzip"}
    base = {line.blob for line in two.registry.layer_gets(layer_digests(two.image))}
    assert base <= set(layer_digests(two.image)), "the base was fetched to be converted"

    mark = two.registry.mark()
    two.reuse("--cache-from", two.cache)
    assert outcomes(two.other) == {"cached": STEPS, "ran": 0}
    assert two.registry.layer_gets([layer["digest"] for layer in layers], since=mark) == []
    two.other.write({"file": b"changed"})
    two.reuse("--cache-from", two.cache)
    assert outcomes(two.other)["ran"] == 3, "on the layers that the cache has"
    assert two.registry.layer_gets([layer["digest"] for layer in layers], since=mark) != []


def test_a_full_hit_costs_each_of_its_requests_once(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    mark = two.registry.mark()
    two.reuse("--cache-from", f"type=registry,ref={two.cache}")
    asked = [(line.method, line.path.partition("&_state")[0]) for line in two.registry.requests()[mark:]]
    assert len(asked) == len(set(asked))
    put = [path for method, path in asked if method == "PUT" and "/manifests/" in path]
    assert put == [f"/v2/{two.repository}/app-2/manifests/1"], "the manifest is sent under its tag alone"


def test_a_change_runs_what_it_changes_on_the_bytes_of_the_cache(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    changed = two.dockerfile.replace("ENV A=1", "RUN cat /seen /made > /both")
    two.reuse("--cache-from", two.cache, dockerfile=changed)
    assert outcomes(two.other)["ran"] == 1
    pulled = two.other.events("LayerPulled")
    assert {event["data"]["provider"]["repository"] for event in pulled} <= {
        f"{two.repository}/cache", f"{two.repository}/base"
    }  # fmt: skip
    out = two.other.must_build(changed, "-o", f"type=local,dest={two.other.root}/../out", "--cache-from", two.cache)
    assert out.code == 0
    assert (two.other.root.parent / "out/both").read_bytes() == b"content " * 1000 + b"tool\n"


def test_a_stage_made_anew_to_the_same_files_hits_by_content(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    again = two.dockerfile.replace("cat /etc/passwd > copied", "cat /etc/group > copied")
    two.reuse("--cache-from", two.cache, dockerfile=again)
    assert outcomes(two.other)["ran"] == 1, "the changed RUN alone: what COPY --from takes of it is what it was"
    late = [event for event in queried(two.other) if event["by"] == "content" and event["outcome"] == "hit"]
    assert [event["importer"] for event in late] == [two.cache]
    assert two.digest("app-2") == two.digest("app")


def test_a_cache_is_passed_on_by_a_build_that_ran_nothing(two: Two, tmp_path: Path) -> None:
    """The second machine imports and exports; a third one has a full hit, by both keys, from what the second wrote."""
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    onward = f"{two.registry.host}/{two.repository}/onward:main"
    mark = two.registry.mark()
    two.reuse("--cache-from", two.cache, "--cache-to", f"type=registry,ref={onward},mode=max")
    assert two.registry.layer_gets(two.layers(), since=mark) == []
    first, second = (builder.events("CacheExported")[-1]["data"] for builder in (two.one, two.other))
    assert first["records"] == second["records"]
    third = Builder(tmp_path / "third")
    third.write({"file": b"content " * 1000})
    third.must_build(two.dockerfile, "-t", two.name("app-3"), "--push", "--cache-from", onward)
    assert outcomes(third)["ran"] == 0
    assert {event["origin_build"] for event in queried(third)} == {two.one.builds()[0]["id"]}
    assert two.digest("app-3") == two.digest("app")


def test_mode_min_hits_what_the_image_is_made_of(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache}")
    two.reuse("--cache-from", two.cache)
    missed = [event for event in queried(two.other) if event["outcome"] == "miss"]
    assert len(missed) == 2, "both steps of the other stage, which a full hit does not need"
    assert outcomes(two.other)["ran"] == 0
    assert two.digest("app-2") == two.digest("app")


def test_an_image_carries_its_cache_inline(two: Two) -> None:
    two.export("--cache-to", "type=inline")
    mark = two.registry.mark()
    two.reuse("--cache-from", two.name("app"), "--cache-to", "type=inline")
    assert two.registry.layer_gets(two.layers(), since=mark) == []
    assert outcomes(two.other)["ran"] == 0
    assert two.digest("app-2") == two.digest("app")


def test_an_inline_cache_is_not_inherited_by_what_stands_on_the_image(two: Two) -> None:
    two.export("--cache-to", "type=inline")
    child = f"FROM {two.name('app')}\nLABEL x=y\n"
    two.other.must_build(child, "-t", two.name("child"), "--push")
    config = two.head("child").json()["config"]["digest"]
    document = WEB.get(f"http://{two.registry.host}/v2/{two.repository}/child/blobs/{config}").json()
    assert "moby.buildkit.cache.v0" not in document
    assert "refledger.cache.v1" not in document


def test_an_inline_cache_without_an_image_is_a_warning(two: Two) -> None:
    done = two.one.must_build(two.dockerfile, "--cache-to", "type=inline")
    assert "WARNING: --cache-to type=inline: no image was exported" in done.err


def test_a_directory_serves_as_a_cache_and_its_layers_are_read_from_it(two: Two, tmp_path: Path) -> None:
    layout = tmp_path / "kept"
    two.export("--cache-to", f"type=local,dest={layout},mode=max")
    mark = two.registry.mark()
    target = f"type=local,dest={tmp_path / 'out'}"
    two.other.must_build(two.dockerfile, "-o", target, "--cache-from", f"type=local,src={layout}")
    assert outcomes(two.other)["ran"] == 0
    assert (tmp_path / "out/seen").read_bytes() == b"content " * 1000
    base = layer_digests(two.image)
    own = [digest for digest in two.layers() if digest not in base]
    assert two.registry.layer_gets(own, since=mark) == []
    providers = {event["data"]["provider"]["repository"] for event in two.other.events("LayerPulled")}
    assert str(layout) in providers


def test_sources_that_fail_are_told_calmly_and_the_others_serve(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    nothing = f"{two.registry.host}/{two.repository}/cache:never-written"
    done = two.reuse(
        "--cache-from", nothing, "--cache-from", "type=registry,ref=127.0.0.1:9/nobody/home",
        "--cache-from", f"type=local,src={two.other.root}/none", "--cache-from", two.cache,
    )  # fmt: skip
    assert outcomes(two.other)["ran"] == 0
    assert f"importing cache from {nothing}: nothing there yet" in done.err
    assert re.search(r"WARNING: .*127\.0\.0\.1:9.*the build goes on without this cache", done.err)
    failed = {event["data"]["source"]: event["data"]["class"] for event in two.other.events("CacheImportFailed")}
    assert sorted(failed.values()) == ["missing", "missing", "transport"]


def test_a_cache_that_cannot_be_written_fails_the_build_behind_the_image(two: Two) -> None:
    with FaultyProxy(two.registry.host, Fault("POST", "/nobody/home/", status=403)) as forbids:
        bad = f"type=registry,ref={forbids.host}/nobody/home:c"
        export = ("-t", two.name("app"), "--push", "--cache-to")
        done = two.one.build(two.dockerfile, *export, bad)
        assert done.code == 3
        assert "the cache could not be exported: " in done.err
        assert two.digest("app"), "the image is there"
        assert [event["data"]["exit_code"] for event in two.one.events("BuildFailed")] == [3]
        done = two.one.must_build(two.dockerfile, *export, f"{bad},ignore-error=true")
    assert "WARNING: cache not exported to " in done.err
    assert [event["data"]["target"] for event in two.one.events("CacheExportFailed")] == [f"{bad},ignore-error=true"]


def test_a_layer_that_the_registry_lost_is_no_promised_hit(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    lost = two.head("app").json()["layers"][-1]["digest"]
    for name in ("app", "cache"):
        url = f"http://{two.registry.host}/v2/{two.repository}/{name}/blobs/{lost}"
        WEB.delete(url).raise_for_status()
    done = two.reuse("--cache-from", two.cache)
    assert done.code == 0
    assert outcomes(two.other)["ran"] == 1, "the last COPY, on what is still there"
    assert [event["reason"] for event in queried(two.other) if event["outcome"] == "miss"] == ["bytes-lost"]
    assert two.head("app-2").json()["layers"][:-1] == two.head("app").json()["layers"][:-1]


def test_a_hostile_cache_is_one_line_and_the_build_goes_on(two: Two) -> None:
    two.export("--cache-to", f"type=registry,ref={two.cache},mode=max")
    url = f"http://{two.registry.host}/v2/{two.repository}/cache"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    manifest = WEB.get(f"{url}/manifests/main", headers=accept).json()
    loop = json.dumps({"records": [{"digest": "a", "inputs": [[{"link": 0}]]}]}).encode()
    manifest["config"] |= {"digest": push_blob(two.registry.host, f"{two.repository}/cache", loop), "size": len(loop)}
    data = json.dumps(manifest).encode()
    push_manifest(two.registry.host, f"{two.repository}/cache", "evil", data, accept["Accept"])
    done = two.reuse("--cache-from", two.cache.replace(":main", ":evil"))
    assert outcomes(two.other)["ran"] == STEPS
    assert len(re.findall(r"WARNING: .*its records go in a circle.*", done.err)) == 1


def test_layers_of_another_registry_are_streamed_once_and_mounted_from_then_on(
    two: Two, second_registry: RegistryProcess
) -> None:
    """The cache holds the base's layers too, as BuildKit's does: the second machine mounts them from there."""
    cache, target = (f"{second_registry.host}/{two.repository}/{name}:1" for name in ("cache", "app"))
    done = two.one.must_build(two.dockerfile, "--cache-to", f"type=registry,ref={cache}")
    assert "passed on" in done.err
    (exported,) = two.one.events("CacheExported")
    base = set(layer_digests(two.image))
    transports = {layer["digest"]: layer["transport"] for layer in exported["data"]["layers"]}
    assert {transports[digest] for digest in base & transports.keys()} == {"streamed"}
    marks = two.registry.mark(), second_registry.mark()
    two.other.must_build(two.dockerfile, "-t", target, "--push", "--cache-from", cache)
    assert two.registry.layer_gets(base, since=marks[0]) == []
    assert second_registry.layer_gets(transports, since=marks[1]) == []
    assert len(second_registry.mounts(since=marks[1])) == len(transports)


def test_I9_a_cache_behind_a_password(two: Two, tmp_path: Path) -> None:
    with RegistryProcess(tmp_path / "guarded", htpasswd=HTPASSWD) as guarded:
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {guarded.host: {"auth": secret}}}))
        env = {"DOCKER_CONFIG": str(tmp_path / "docker")}
        cache = f"type=registry,ref={guarded.host}/cache"
        two.one.must_build(two.dockerfile, "--cache-to", f"{cache},mode=max", env=env)
        done = two.other.must_build(two.dockerfile, "--cache-from", cache)
        assert [event["data"]["class"] for event in two.other.events("CacheImportFailed")] == ["auth"]
        assert re.search(r"WARNING: .*401", done.err)
        third = Builder(tmp_path / "third")
        third.write({"file": b"content " * 1000})
        third.must_build(two.dockerfile, "--cache-from", cache, env=env)
        assert outcomes(third)["ran"] == 0
    for root in (two.one.root, two.other.root, third.root):
        for path in root.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert PASSWORD.encode() not in data and secret.encode() not in data, path


def test_images_for_several_platforms_carry_their_caches(two: Two) -> None:
    dockerfile = "FROM scratch\nCOPY file /a\nCOPY file /b\n"
    args = ("--platform", "linux/amd64,linux/arm64", "--push", "--cache-to", "type=inline")
    two.one.must_build(dockerfile, "-t", two.name("app"), *args)
    two.other.must_build(dockerfile, "-t", two.name("app-2"), *args, "--cache-from", two.name("app"))
    assert outcomes(two.other)["ran"] == 0
    digests = [builder.events("Exported")[0]["data"]["digest"] for builder in (two.one, two.other)]
    assert digests[0] == digests[1]


# ---------------------------------------------------------------- the flags


def test_caches_are_in_the_log_as_written(two: Two) -> None:
    target = f"type=local,dest={two.one.root}/../kept,mode=max"
    two.export("--cache-from", two.cache, "--cache-to", target)
    (started,) = two.one.events("BuildStarted")
    assert started["data"]["options"]["cache_from"] == [two.cache]
    assert started["data"]["options"]["cache_to"] == [target]


def test_a_wrong_flag_is_one_line_that_tells_no_secret(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    done = builder.build("FROM scratch\n", "--cache-from", "type=s3,access_key_id=AKIA,secret_access_key=hunter2")
    assert done.code == 2
    assert "no cache type 's3'" in done.err
    assert "hunter2" not in done.err
    assert len(done.err.strip().splitlines()) == 1
