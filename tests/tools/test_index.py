"""`refledger index create` against real registries: what it puts, what it moves, and what the log says of it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, layer_digests
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import (
    OCI_CONFIG,
    OCI_MANIFEST,
    WEB,
    AccessLine,
    RegistryProcess,
    digest_of,
    push_blob,
    push_image,
    push_manifest,
)
from tests.waiting import PATIENCE, wait_until

INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
Json = dict[str, Any]


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "a root")


def image(registry: RegistryProcess, name: str, architecture: str = "amd64", *, size: int = 5000) -> Json:
    """Two layers that do not compress, one of them the same for all architectures."""
    own = random.Random(f"{name}{architecture}").randbytes(size)
    common = random.Random("common").randbytes(size)
    return push_image(registry.host, name, [{"common": common}, {"own": own}], architecture=architecture)


def raw(registry: RegistryProcess, name: str, tag: str = "1") -> bytes:
    """A manifest as another tool sees it."""
    reference = f"docker://{registry.host}/{name}{'@' if ':' in tag else ':'}{tag}"
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", reference]
    return subprocess.run(command, capture_output=True, check=True).stdout


def create(builder: Builder, *args: str) -> str:
    """Run it, and give the digest."""
    done = builder.run("index", "create", "-q", *args)
    assert done.code == 0, done.err
    assert done.err == ""
    return done.out.strip()


def moved(lines: Sequence[AccessLine]) -> list[str]:
    """Digests of blobs of which bytes came or went."""
    put = [line.path.rpartition("digest=")[2].replace("%3A", ":") for line in lines
           if line.method == "PUT" and "/blobs/uploads/" in line.path]  # fmt: skip
    return [line.blob for line in lines if line.method == "GET" and line.blob] + put


def put_order(lines: Sequence[AccessLine]) -> list[str]:
    """Names of the manifests that were put."""
    return [line.path.rpartition("/")[2] for line in lines if line.method == "PUT" and "/manifests/" in line.path]


def push_json(registry: RegistryProcess, name: str, tag: str, fields: Json) -> Json:
    """A manifest made by hand; its descriptor."""
    data = json.dumps(fields, indent=1).encode()
    digest = digest_of(data)
    push_manifest(registry.host, name, tag or digest, data, fields["mediaType"])
    return {"mediaType": fields["mediaType"], "digest": digest, "size": len(data)}


def attested(registry: RegistryProcess, name: str, architectures: Sequence[str]) -> dict[str, Any]:
    """An index `name`:attested of images with what BuildKit attests of them (its docs/attestations)."""
    entries, attests = [], {}
    for architecture in architectures:
        made = image(registry, name, architecture)
        entries.append({"mediaType": OCI_MANIFEST, "digest": made["digest"], "size": made["size"],
                        "platform": {"os": "linux", "architecture": architecture}})  # fmt: skip
        statement = json.dumps({"_type": "https://in-toto.io/Statement/v0.1", "subject": [], "arch": architecture})
        config = b'{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
        layer = {
            "mediaType": "application/vnd.in-toto+json", "digest": push_blob(registry.host, name, statement.encode()),
            "size": len(statement), "annotations": {"in-toto.io/predicate-type": "https://spdx.dev/Document"},
        }  # fmt: skip
        manifest = push_json(registry, name, "", {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer],
            "config": {"mediaType": OCI_CONFIG, "digest": push_blob(registry.host, name, config), "size": len(config)},
        })  # fmt: skip
        attests[architecture] = {
            **manifest, "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest",
                            "vnd.docker.reference.digest": made["digest"]},
        }  # fmt: skip
    top = push_json(registry, name, "attested", {
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, *attests.values()],
    })  # fmt: skip
    return {"digest": top["digest"], "images": entries, "attests": attests}


# ---------------------------------------------------------------- one registry


def test_I2_an_index_within_one_registry_moves_no_byte_of_a_layer(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    images = {arch: image(registry, f"{repository}/{arch}", arch) for arch in ("amd64", "arm64", "riscv64")}
    mark = registry.mark()
    digest = create(
        builder, f"{registry.host}/{repository}/all:1", *(made["reference"] for made in images.values())
    )
    lines = registry.requests()[mark:]
    layers = {layer for made in images.values() for layer in layer_digests(made)}
    assert layers & set(moved(lines)) == set()
    assert len(registry.mounts(since=mark)) == len(layers) + 3  # the configs, too
    data = raw(registry, f"{repository}/all")
    assert digest_of(data) == digest
    assert json.loads(data) == {
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": made["digest"], "size": made["size"],
             "platform": {"os": "linux", "architecture": arch}}
            for arch, made in images.items()
        ],
    }  # fmt: skip


def test_images_of_the_same_repository_need_nothing_but_the_index(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    made = [image(registry, repository, arch) for arch in ("amd64", "arm64")]
    mark = registry.mark()
    digest = create(builder, "-t", f"{registry.host}/{repository}:1", *(one["digest"] for one in made))
    lines = registry.requests()[mark:]
    assert put_order(lines) == [digest, "1"]
    assert [line for line in lines if "/blobs/uploads/" in line.path] == []


# ---------------------------------------------------------------- two registries


def test_I11_layers_come_before_configs_manifests_the_index_and_the_tag(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    here = image(registry, f"{repository}/amd64")
    there = image(second_registry, f"{repository}/arm64", "arm64")
    mark, other = registry.mark(), second_registry.mark()
    digest = create(builder, f"{registry.host}/{repository}/all:1", here["reference"], there["reference"])
    lines = [line for line in registry.requests()[mark:] if line.status == 201]
    done = [
        line.path.partition("mount=")[2].partition("&")[0] or line.path.rpartition("digest=")[2].replace("%3A", ":")
        if "/blobs/uploads/" in line.path else line.path.rpartition("/")[2]
        for line in lines
    ]  # fmt: skip
    done = [name.replace("%3A", ":") for name in done]
    layers = set(layer_digests(here)) | set(layer_digests(there))
    configs = {one["manifest"]["config"]["digest"] for one in (here, there)}
    manifests = {here["digest"], there["digest"]}
    steps = [layers, configs, manifests, {digest}, {"1"}]
    for step in steps:
        assert set(done[: len(step)]) == step
        del done[: len(step)]
    assert done == []
    # what both images have came from the registry itself
    assert moved(second_registry.requests()[other:]).count(layer_digests(there)[0]) == 0
    assert moved(second_registry.requests()[other:]).count(layer_digests(there)[1]) == 1


def test_skopeo_copies_all_of_it(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = [image(second_registry, repository, arch) for arch in ("amd64", "arm64")]
    digest = create(builder, f"{registry.host}/{repository}:1", *(f"{second_registry.host}/{repository}@{one['digest']}"
                                                                for one in made))  # fmt: skip
    copied = tmp_path / "copied"
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--all", "--src-tls-verify=false",
         f"docker://{registry.host}/{repository}:1", f"dir:{copied}"], check=True,
    )  # fmt: skip
    assert digest_of((copied / "manifest.json").read_bytes()) == digest
    for one in made:
        for blob in layer_digests(one):
            assert digest_of((copied / blob.removeprefix("sha256:")).read_bytes()) == blob


def test_podman_makes_an_index_of_the_same_images(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    references = [image(registry, f"{repository}/{arch}", arch)["reference"] for arch in ("amd64", "arm64")]
    create(builder, f"{registry.host}/{repository}/ours:1", *references)

    def podman(*args: str) -> str:
        storage = ["--root", f"{place}/p", "--runroot", f"{place}/r", "--storage-driver", "vfs"]
        done = subprocess.run(["podman", *storage, "manifest", *args], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with tempfile.TemporaryDirectory() as place:  # podman's runroot must be a short path
        podman("create", "made")
        for reference in references:
            podman("add", "--tls-verify=false", "made", f"docker://{reference}")
        theirs = json.loads(podman("inspect", "made"))
    ours = json.loads(raw(registry, f"{repository}/ours"))
    assert ours["manifests"] == theirs["manifests"]
    assert ours["mediaType"] == INDEX


def test_a_second_time_nothing_moves(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    reference = image(second_registry, repository)["reference"]
    first = create(builder, f"{registry.host}/{repository}:1", reference)
    mark, other = registry.mark(), second_registry.mark()
    assert create(builder, f"{registry.host}/{repository}:1", reference) == first
    assert moved(registry.requests()[mark:]) == []
    assert moved(second_registry.requests()[other:]) == []


def test_several_names_name_one_index_and_what_lies_in_a_layout_is_taken(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    made = image(registry, f"{repository}/base")
    layout = tmp_path / "a layout"
    subprocess.run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{made['reference']}",
                    f"oci:{layout}:x"], check=True)  # fmt: skip
    metadata = tmp_path / "metadata.json"
    names = [f"{where.host}/{repository}:{tag}" for where, tag in ((registry, 1), (registry, 2), (second_registry, 1))]
    digest = create(
        builder, *(word for name in names for word in ("-t", name)), "--metadata-file", str(metadata),
        f"oci-layout://{layout}:x",
    )  # fmt: skip
    for where, tag in ((registry, "1"), (registry, "2"), (second_registry, "1")):
        assert digest_of(raw(where, repository, tag)) == digest
    told = json.loads(metadata.read_text())
    assert told["containerimage.digest"] == told["containerimage.descriptor"]["digest"] == digest
    assert told["image.name"] == ",".join(names)
    assert told["refledger.build.id"] == builder.builds()[0]["id"]
    assert [event["data"]["target"] for event in builder.events("Exported")] == names


def test_an_index_can_be_put_into_a_layout(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    references = [image(registry, f"{repository}/{arch}", arch)["reference"] for arch in ("amd64", "arm64")]
    layout = tmp_path / "a layout"
    digest = create(builder, f"oci-layout://{layout}:both", *references)
    command = ["skopeo", "inspect", "--raw", f"oci:{layout}:both"]
    assert digest_of(subprocess.run(command, capture_output=True, check=True).stdout) == digest


# ---------------------------------------------------------------- what goes in


def test_an_index_alone_keeps_its_digest_and_its_attestations(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    source = attested(second_registry, repository, ["amd64", "arm64"])
    reference = f"{second_registry.host}/{repository}:attested"
    assert create(builder, f"{registry.host}/{repository}:1", reference) == source["digest"]
    assert raw(registry, repository) == raw(second_registry, repository, "attested")
    for attests in source["attests"].values():
        manifest = json.loads(raw(registry, repository, attests["digest"]))
        url = f"http://{registry.host}/v2/{repository}/blobs/{manifest['layers'][0]['digest']}"
        assert digest_of(WEB.get(url).content) == manifest["layers"][0]["digest"]


def test_append_replaces_an_image_and_drops_what_was_attested_of_it(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    source = attested(registry, repository, ["amd64", "arm64"])
    new = image(registry, f"{repository}/new", "arm64", size=6000)
    target = f"{registry.host}/{repository}:attested"
    create(builder, target, new["reference"], "--append")
    amd, _ = source["images"]
    listed = [entry["digest"] for entry in json.loads(raw(registry, repository, "attested"))["manifests"]]
    assert listed == [amd["digest"], source["attests"]["amd64"]["digest"], new["digest"]]
    before = raw(registry, repository, "attested")
    create(builder, target, new["reference"], "--append")
    assert raw(registry, repository, "attested") == before, "what is there already changes nothing"


def test_append_to_nothing_is_refused_and_a_platform_can_be_chosen(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    source = attested(registry, repository, ["amd64", "arm64"])
    target, reference = f"{registry.host}/{repository}/new:1", f"{registry.host}/{repository}:attested"
    failed = builder.run("index", "create", target, reference, "--append")
    assert failed.code == 2
    assert "there is nothing to append to (leave out --append to make the index)" in failed.err
    create(builder, target, reference, "--platform", "linux/arm64")
    listed = [entry["digest"] for entry in json.loads(raw(registry, f"{repository}/new"))["manifests"]]
    assert listed == [source["images"][1]["digest"], source["attests"]["arm64"]["digest"]]
    gone = f"http://{registry.host}/v2/{repository}/new/manifests/{source['images'][0]['digest']}"
    assert WEB.head(gone, headers={"Accept": OCI_MANIFEST}).status_code == 404


def test_docker_images_make_a_manifest_list(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    references = []
    for arch in ("amd64", "arm64"):
        made = image(registry, f"{repository}/{arch}", arch)
        subprocess.run(["skopeo", "copy", "--quiet", "--format", "v2s2", "--src-tls-verify=false",
                        "--dest-tls-verify=false", f"docker://{made['reference']}",
                        f"docker://{registry.host}/{repository}/{arch}:docker"], check=True)  # fmt: skip
        references.append(f"{registry.host}/{repository}/{arch}:docker")
    create(builder, f"{registry.host}/{repository}/all:1", *references)
    made = json.loads(raw(registry, f"{repository}/all"))
    assert made["mediaType"] == DOCKER_LIST
    assert [entry["mediaType"] for entry in made["manifests"]] == [DOCKER_MANIFEST] * 2


def test_artifacts_indexes_in_indexes_and_blobs_of_a_cache_are_brought_along(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    host, blob = second_registry.host, b"an SBOM"
    described = {"mediaType": "text/plain", "digest": push_blob(host, repository, blob), "size": len(blob)}
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": push_blob(host, repository, b"{}"), "size": 2}
    artifact = push_json(second_registry, repository, "", {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/x-sbom", "config": empty,
        "layers": [described],
    })  # fmt: skip
    inner = push_json(second_registry, repository, "", {
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [artifact],
    })  # fmt: skip
    push_json(second_registry, repository, "outer", {
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [inner, described],
    })  # fmt: skip
    source = f"{host}/{repository}"
    create(builder, f"{registry.host}/{repository}:1", f"{source}:outer", f"{source}@{artifact['digest']}")
    outer = json.loads(raw(registry, repository))
    assert outer["manifests"] == [inner, described, {**artifact, "artifactType": "application/x-sbom"}]
    assert json.loads(raw(registry, repository, inner["digest"]))["manifests"] == [artifact]
    url = f"http://{registry.host}/v2/{repository}/blobs/{described['digest']}"
    assert WEB.get(url).content == blob


def test_annotations_are_written_as_buildx_takes_them(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    references = [image(registry, f"{repository}/{arch}", arch)["reference"] for arch in ("amd64", "arm64")]
    create(
        builder, f"{registry.host}/{repository}:1", *references,
        "--annotation", "index:org.example.note=a=b, c", "--annotation", "manifest-descriptor[linux/arm64]:for=arm",
        "--annotation", "index,manifest-descriptor:both=yes",
    )  # fmt: skip
    made = json.loads(raw(registry, repository))
    assert made["annotations"] == {"org.example.note": "a=b, c", "both": "yes"}
    assert [entry["annotations"] for entry in made["manifests"]] == [{"both": "yes"}, {"for": "arm", "both": "yes"}]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["{0}"], "there is no REF to make an index of"),
        (["{0}@sha256:" + "0" * 64, "{0}:x"], "an index gets a name, not a digest"),
        (["{0}:1", "{0}:x", "--annotation", "a=b"], "write index:KEY=VALUE or manifest-descriptor:KEY=VALUE"),
        (["{0}:1", "{0}:x", "--annotation", "manifest:a=b"], "the images in an index stay as they are"),
        (["{0}:1", "{0}:x", "--annotation", "index:"], "not an annotation"),
        (["{0}:1", "{0}:x", "--annotation", "index[linux/amd64]:a=b"], "an index is for all platforms"),
        (["{0}:1", "{0}:x", "--platform", "linux"], "not a platform"),
        (["{0}:1", "{0}/UPPER"], "not an image name"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_asked(
    builder: Builder, registry: RegistryProcess, repository: str, args: Sequence[str], said: str
) -> None:
    mark = registry.mark()
    done = builder.run("index", "create", *(arg.format(f"{registry.host}/{repository}") for arg in args))
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert registry.requests()[mark:] == []
    assert not builder.root.exists()


def test_schema_1_is_refused_in_one_line(builder: Builder, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    old = {"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}
    layout.add(old, "application/vnd.docker.distribution.manifest.v1+json")
    done = builder.run("index", "create", f"{layout.name}:new", layout.name, "--dry-run")
    assert done.code == 2
    assert "docker's schema 1 cannot be listed in an index" in done.err


# ---------------------------------------------------------------- looking first, and what goes wrong


def test_dry_run_prints_what_would_be_put_and_touches_nothing(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    references = [image(registry, f"{repository}/{arch}", arch)["reference"] for arch in ("amd64", "arm64")]
    target = f"{second_registry.host}/{repository}:1"
    mark, other = registry.mark(), second_registry.mark()
    done = builder.run("index", "create", target, *references, "--dry-run")
    assert done.code == 0
    assert second_registry.requests()[other:] == []
    assert {line.method for line in registry.requests()[mark:]} <= {"GET", "HEAD"}
    assert not builder.root.exists()
    assert create(builder, target, *references) == digest_of(done.out.removesuffix("\n").encode())


def test_I11_a_layer_that_is_gone_leaves_no_tag(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    made = image(second_registry, repository)
    second_registry.blob_path(layer_digests(made)[1]).unlink()
    done = builder.run("index", "create", f"{registry.host}/{repository}:1", made["reference"], "--progress", "plain")
    assert done.code == 3
    assert layer_digests(made)[1] in done.err
    assert "Traceback" not in done.err
    tags = WEB.get(f"http://{registry.host}/v2/{repository}/tags/list")
    assert tags.status_code == 404 or not tags.json()["tags"]
    (failed,) = builder.events("BuildFailed")
    assert failed["data"]["exit_code"] == 3


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_I11_an_interrupted_one_leaves_no_tag_and_is_told(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str, end: int
) -> None:
    made = image(second_registry, repository, size=400_000)
    target = f"{registry.host}/{repository}:1"
    stalled = Fault(path=f"/blobs/{layer_digests(made)[1]}", stall_after=100_000)
    with FaultyProxy(second_registry.host, stalled) as proxy:
        process = builder.start("index", "create", target, f"{proxy.host}/{repository}", "--progress", "plain")
        wait_until(lambda: any("/blobs/" in seen.path and seen.method == "GET" for seen in proxy.seen), process)
        process.send_signal(end)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == (130 if end == signal.SIGINT else -9)
    tags = WEB.get(f"http://{registry.host}/v2/{repository}/tags/list")
    assert tags.status_code == 404 or not tags.json()["tags"]
    create_again = builder.run("index", "create", target, made["reference"])
    assert create_again.code == 0, create_again.err
    assert [build["status"] for build in builder.builds()] == [
        "completed", "cancelled" if end == signal.SIGINT else "interrupted",
    ]  # fmt: skip
    assert digest_of(raw(registry, repository)) == create_again.out.strip()


# ---------------------------------------------------------------- the log


def by_digest(layers: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {layer["digest"]: layer for layer in layers}


def test_the_log_tells_of_it_as_of_any_build(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    here = image(registry, f"{repository}/amd64")
    there = image(second_registry, f"{repository}/arm64", "arm64")
    target = f"{registry.host}/{repository}/all:1"
    digest = create(builder, target, here["reference"], there["reference"])
    types = [event["type"] for event in builder.events() if event["type"] != "ExportProgressed"]
    assert [name for name in types if name != "SourceTried"] == [
        "BuildStarted", "SourceResolved", "SourceResolved", "ExportStarted", "Exported", "BuildCompleted",
    ]  # fmt: skip
    (started,), (exported,) = builder.events("BuildStarted"), builder.events("Exported")
    assert started["data"]["frontend"] == "index.v0"
    assert started["data"]["options"]["refs"] == [here["reference"], there["reference"]]
    sources = [event["data"] for event in builder.events("SourceResolved")]
    assert [(one["manifest"], one["platform"]) for one in sources] == [
        (here["digest"], "linux/amd64"), (there["digest"], "linux/arm64"),
    ]  # fmt: skip
    layers = by_digest(exported["data"]["layers"])
    common, own = layer_digests(there)
    assert (layers[common]["transport"], layers[common]["bytes"]) == ("mounted", 0)
    assert (layers[own]["transport"], layers[own]["bytes"]) == ("streamed", there["layers"][1]["size"])
    assert second_registry.host in layers[own]["source"]
    assert builder.events("BuildCompleted")[0]["data"]["results"][0]["digest"] == digest

    (record,) = builder.builds()
    assert (record["status"], record["tags"], record["bytes_pulled"]) == ("completed", [target], 0)
    shown = builder.run("show", record["id"], env={"COLUMNS": "400"}).out
    assert f"exporting index to {target}" in shown
    assert "1/1 steps" in shown
    assert f"resolved {here['reference']} → {here['digest']}" in shown
    assert "streamed" in shown
    assert builder.run("history", "--digest", digest).out.count(record["id"]) == 1
    page = tmp_path / "page.html"
    assert builder.run("report", record["id"], "-o", str(page)).code == 0
    assert target in page.read_text()
    assert builder.run("why", record["id"]).code == 0
    assert builder.run("rebuild", "--check").code == 0


def test_a_build_after_it_takes_layers_from_where_the_index_put_them(
    builder: Builder, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    made = image(second_registry, f"{repository}/base")
    create(builder, f"{registry.host}/{repository}/all:1", made["reference"])
    mark = registry.mark()
    create(builder, f"{registry.host}/{repository}/more:1", made["reference"])
    assert len(registry.mounts(since=mark)) == 2  # the layers: the log knows who has them now
    assert set(moved(registry.requests()[mark:])) & set(layer_digests(made)) == set()


# ---------------------------------------------------------------- whoever wrote it


class Layout:
    """An OCI layout made by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"oci-layout://{directory}"
        (directory / "blobs/sha256").mkdir(parents=True)

    def add(self, content: object, media_type: str) -> Json:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.directory / "blobs/sha256" / digest_of(data).removeprefix("sha256:")).write_bytes(data)
        entry = {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
        (self.directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return entry


def test_layers_that_are_elsewhere_are_not_looked_for(builder: Builder, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "from")
    config = {"architecture": "amd64", "os": "windows", "os.version": "10.0.17763.1", "os.features": ["win32k"]}
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layout.add({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layout.add(config, OCI_CONFIG),
        "layers": [{"mediaType": foreign, "digest": digest_of(b"base"), "size": 4, "urls": ["https://example.org/b"]}],
    }, OCI_MANIFEST)  # fmt: skip
    create(builder, f"oci-layout://{tmp_path}/to:1", layout.name)
    command = ["skopeo", "inspect", "--raw", f"oci:{tmp_path}/to:1"]
    (entry,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["manifests"]
    assert entry["platform"] == config
    (exported,) = builder.events("Exported")
    assert exported["data"]["layers"] == []


def test_indexes_without_end_are_refused(builder: Builder, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "from")
    entry = layout.add({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, INDEX)
    for _ in range(20):
        entry = layout.add({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}, INDEX)
    done = builder.run("index", "create", "-q", f"oci-layout://{tmp_path}/to:1", layout.name)
    assert done.code == 4
    assert "too many manifests below one index, or too deep" in done.err
    assert not (tmp_path / "to/index.json").exists()


@pytest.mark.parametrize(
    "index",
    [
        [], {"manifests": "x"}, {"manifests": ["x"]}, {"manifests": [{"digest": "x", "mediaType": "y", "size": 1}]},
        {"manifests": [{"digest": digest_of(b""), "mediaType": OCI_MANIFEST, "size": "x"}]},
        {"manifests": [{"digest": 5, "mediaType": OCI_MANIFEST, "size": 1}]},
        {"manifests": [{"digest": digest_of(b""), "mediaType": "", "size": 1, "annotations": [["a", "b"]]}]},
        {"mediaType": OCI_MANIFEST, "config": []}, {"mediaType": OCI_MANIFEST, "config": {"digest": "x"}},
        {"mediaType": OCI_MANIFEST, "layers": [{}]},
    ],
)  # fmt: skip
def test_nonsense_is_told_in_one_line(builder: Builder, tmp_path: Path, index: object) -> None:
    layout = Layout(tmp_path / "from")
    layout.add(index, INDEX)
    done = builder.run("index", "create", "-q", f"oci-layout://{tmp_path}/to:1", layout.name)
    # an empty list of configs is a manifest of nothing: odd, but nothing stands in its way
    fine = index == {"mediaType": OCI_MANIFEST, "config": []}
    assert done.code in ({0} if fine else {2, 4}), done.err
    assert "internal error" not in done.err
    assert len(done.err.strip().splitlines()) == (0 if fine else 1)


def test_odd_platforms_and_annotations_are_passed_on(builder: Builder, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "from")
    empty = layout.add({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}, OCI_MANIFEST)
    odd: list[Json] = [
        {"platform": {"os": "linux", "architecture": "amd64", "os.features": 5, "os.version": []}}, {"platform": []},
        {"platform": {"os": 3, "architecture": ["x"]}}, {"annotations": {"\x1b[2J": "\x07"}},
    ]  # fmt: skip
    entries = [{**empty, **extra} for extra in odd]
    layout.add({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)
    create(builder, f"oci-layout://{tmp_path}/to:1", layout.name)
    command = ["skopeo", "inspect", "--raw", f"oci:{tmp_path}/to:1"]
    put = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert put["manifests"] == entries
    shown = builder.run("inspect", "--all", layout.name)
    assert shown.code == 0, shown.err
    assert "\x1b" not in shown.out
