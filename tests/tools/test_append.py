"""Layers that are files, put on images: from the command line to a registry, judged by its log and by other tools."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.builder import PROJECT, Builder, base_image, layer_digests
from tests.registry_fixture import OCI_MANIFEST, RegistryProcess, digest_of, layer_tar, push_image, push_manifest
from tests.tools.test_rebase import blobs, config, manifest, several, unpacked_and_run
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
TAR = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A gzip layer that does not compress much."""
    path = tmp_path / "a layer.tar.gz"
    path.write_bytes(gzip.compress(layer_tar({"opt/tool": os.urandom(200_000)}), mtime=0))
    return path


@pytest.fixture
def podman() -> Iterator[list[str]]:
    """The command with a storage of its own, in a directory whose name is short enough for it."""
    with tempfile.TemporaryDirectory(prefix="rl-") as directory:
        command = ["podman", "--root", f"{directory}/p", "--runroot", f"{directory}/r", "--storage-driver", "vfs"]
        try:
            yield command
        finally:
            subprocess.run([*command, "rmi", "-af"], check=True, capture_output=True)


def must(builder: Builder, *args: str, env: dict[str, str] | None = None) -> None:
    done = builder.run(*args, "--progress", "plain", env=env)
    assert done.code == 0, done.err


def sent(registry: RegistryProcess, since: int) -> list[str]:
    """Blobs whose upload was finished."""
    return [
        line.path.rpartition("digest=")[2].replace("%3A", ":")
        for line in registry.requests()[since:] if line.method == "PUT" and "digest=" in line.path
    ]  # fmt: skip


def test_I2_append_sends_the_new_layer_and_nothing_else(
    builder: Builder, registry: RegistryProcess, repository: str, layer: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    mark = registry.mark()
    must(builder, "append", image["reference"], str(layer), "-t", f"{registry.host}/{repository}/app:1", "--push")
    made = manifest(registry, f"{repository}/app", "1")
    data = layer.read_bytes()
    new = {"mediaType": f"{TAR}+gzip", "digest": digest_of(data), "size": len(data)}
    assert made["layers"] == [*image["manifest"]["layers"], new]
    assert registry.layer_gets(blobs(made), since=mark) == []
    assert sorted(sent(registry, mark)) == sorted([new["digest"], made["config"]["digest"]])
    assert len(registry.mounts(since=mark)) == len(image["layers"])
    told = config(registry, f"{repository}/app", "1")
    assert told["rootfs"]["diff_ids"][-1] == digest_of(gzip.decompress(data))
    assert told["config"] == image["config"]["config"]
    assert told["history"][:-1] == image["config"]["history"]
    assert told["history"][-1] == {
        "created": "2024-01-01T00:00:00Z", "created_by": f"refledger append {layer}", "comment": "refledger.append.v0"
    }  # fmt: skip  # the file in it is of 2023: nothing is older than what it stands on


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(bytes, ""), (gzip.compress, "+gzip"), (zstandard.ZstdCompressor().compress, "+zstd")],
    ids=["plain", "gzip", "zstd"],
)
def test_a_layer_goes_into_the_image_as_it_came(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path, pack: Any, suffix: str
) -> None:
    tar = layer_tar({"etc/hello": b"hello\n" * 100})
    (tmp_path / "layer").write_bytes(pack(tar))
    target = f"{registry.host}/{repository}/app:1"
    must(builder, "append", "scratch", str(tmp_path / "layer"), "-t", target, "--push")
    made = manifest(registry, f"{repository}/app", "1")
    data = (tmp_path / "layer").read_bytes()
    assert made["layers"] == [{"mediaType": TAR + suffix, "digest": digest_of(data), "size": len(data)}]
    assert config(registry, f"{repository}/app", "1")["rootfs"]["diff_ids"] == [digest_of(tar)]
    assert registry.blob_path(digest_of(data)).read_bytes() == data
    subprocess.run(
        [
            "skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-decompress", f"docker://{target}",
            f"dir:{tmp_path / 'plain'}",
        ],
        check=True,
    )  # fmt: skip
    assert (tmp_path / "plain" / digest_of(tar).partition(":")[2]).read_bytes() == tar


def test_layers_lie_in_order_and_hide_what_is_below(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = push_image(registry.host, f"{repository}/base", [{"etc/a": b"base", "etc/b": b"base", "var/c": b"base"}])
    for name, files in {
        "1.tar": {"etc/a": b"one", "etc/d": b"one"},
        "2.tar": {"etc/a": b"two", "etc/.wh.b": b"", "var/.wh..wh..opq": b""},
    }.items():
        (tmp_path / name).write_bytes(layer_tar(files))
    out = tmp_path / "out"
    must(
        builder, "append", image["reference"], str(tmp_path / "1.tar"), str(tmp_path / "2.tar"),
        "-o", f"type=local,dest={out}", "-o", f"type=oci,dest={tmp_path / 'image.tar'}",
    )  # fmt: skip
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == {"etc/a": "two", "etc/d": "one"}
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci-archive:{tmp_path / 'image.tar'}", f"oci:{tmp_path / 'l'}:x"], check=True
    )
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path / 'l'}:x", str(tmp_path / "b")], check=True, capture_output=True
    )
    root = tmp_path / "b/rootfs"
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {"etc/a", "etc/d"}


def test_a_layer_from_standard_input_and_an_image_that_runs(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path, podman: list[str]
) -> None:
    image = base_image(registry, f"{repository}/base")
    out = tmp_path / "app.tar"
    done = subprocess.run(
        [
            sys.executable, "-m", "tools.cli.main", "append", image["reference"], "-", "-q",
            "-c", 'ENTRYPOINT ["/bin/sh", "/opt/say"]', "-c", "ENV WHO=you PATH=/opt:$PATH", "-c", "WORKDIR /opt",
            "-c", "LABEL made=here", "-c", "EXPOSE 80",
            "-t", f"localhost/{repository}:1", "-o", f"type=docker,dest={out}",
        ],
        env=builder.env, cwd=PROJECT, input=layer_tar({"opt/say": b"echo hello $WHO from $PWD $PATH\n"}),
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(b"sha256:")
    subprocess.run([*podman, "load", "-q", "-i", str(out)], check=True, capture_output=True)
    name = f"localhost/{repository}:1"
    (found,) = json.loads(subprocess.run([*podman, "inspect", name], check=True, capture_output=True).stdout)
    assert found["Config"]["Labels"] == {"made": "here"}
    assert found["Config"]["ExposedPorts"] == {"80/tcp": {}}
    _, said = unpacked_and_run(f"docker-archive:{out}", tmp_path)
    assert said == "hello you from /opt /opt:/bin\n"


# ---------------------------------------------------------------- the same again


def test_the_same_files_give_the_same_image_in_any_root(
    registry: RegistryProcess, repository: str, layer: Path, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    found = []
    for name in ("one", "two"):
        other = Builder(tmp_path / name)
        for _ in range(2):
            must(other, "append", image["reference"], str(layer), "-t", f"{registry.host}/{repository}/app:1", "--push")
            found.append(manifest(registry, f"{repository}/app", "1"))
        (*_, cached) = other.events("VertexCached", build=other.builds()[0]["id"])
        assert cached["data"]["name"].startswith("append 1 layer to")
    assert found == [found[0]] * 4
    epoch = {"SOURCE_DATE_EPOCH": "1600000000"}
    args = ("append", image["reference"], str(layer), "-t", f"{registry.host}/{repository}/app:2", "--push")
    must(Builder(tmp_path / "one"), *args, env=epoch)
    told = config(registry, f"{repository}/app", "2")
    assert told["created"] == told["history"][-1]["created"] == "2020-09-13T12:26:40Z"


def test_another_packing_of_the_same_files_is_another_layer(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    tar = layer_tar({"etc/hello": b"hello\n" * 1000})
    found = []
    for data in (gzip.compress(tar, 1), gzip.compress(tar, 9), tar):
        (tmp_path / "layer").write_bytes(data)
        must(
            builder, "append", "scratch", str(tmp_path / "layer"), "-t", f"{registry.host}/{repository}:1", "--push"
        )  # fmt: skip
        assert blobs(manifest(registry, repository, "1")) == [digest_of(data)]
        found.append(config(registry, repository, "1")["rootfs"]["diff_ids"])
    assert found == [[digest_of(tar)]] * 3


def test_all_platforms_get_the_layer(
    builder: Builder, registry: RegistryProcess, repository: str, layer: Path
) -> None:
    image = several(registry, f"{repository}/many", "1", "one", "amd64", "arm64")
    target = f"{registry.host}/{repository}/app:1"
    must(builder, "append", image, str(layer), "-t", target, "--push")
    entries = manifest(registry, f"{repository}/app", "1")["manifests"]
    assert [entry["platform"]["architecture"] for entry in entries] == ["amd64", "arm64"]
    must(builder, "append", image, str(layer), "-t", target, "--push", "--platform", "linux/arm64")
    assert config(registry, f"{repository}/app", "1")["architecture"] == "arm64"
    assert blobs(manifest(registry, f"{repository}/app", "1"))[-1] == digest_of(layer.read_bytes())


def test_annotations_of_the_image_stay(
    builder: Builder, registry: RegistryProcess, repository: str, layer: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    data = {**image["manifest"], "annotations": {"org.example.who": "me"}}
    push_manifest(registry.host, f"{repository}/base", "noted", json.dumps(data).encode(), OCI_MANIFEST)
    source, target = (f"{registry.host}/{repository}/{name}" for name in ("base:noted", "app:1"))
    must(builder, "append", source, str(layer), "-t", target, "--push")
    assert manifest(registry, f"{repository}/app", "1")["annotations"] == {"org.example.who": "me"}


# ---------------------------------------------------------------- what is no layer


def _deep() -> bytes:
    """A file below a file: no file system can have that."""
    return layer_tar({"etc/passwd": b"x", "etc/passwd/under": b"x"})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"#!/bin/sh\necho no tar at all\n" * 40, "it is no layer"),
        (gzip.compress(layer_tar({"a": b"x" * 5000}))[:-20], "truncated gzip data"),
        (layer_tar({"a": b"x" * 5000})[:2048], "the tar is truncated"),
        (gzip.compress(layer_tar({"a": b"x" * 5000})) + b"trailing", "gzip data"),
        (lzma.compress(layer_tar({"a": b"x"})), "it is xz"),
        (_deep(), "cannot be laid out"),
    ],
    ids=["empty", "text", "truncated gzip", "truncated tar", "trailing", "xz", "no tree"],
)
def test_what_is_no_layer_is_refused_and_not_kept(builder: Builder, tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "layer.tar"
    path.write_bytes(data)
    done = builder.run("append", "scratch", str(path), "-o", f"type=oci,dest={tmp_path / 'out'}")
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert line.startswith(f"ERROR: {path}: ")
    assert said in line
    assert not (tmp_path / "out").exists()
    assert builder.leftovers() == []
    assert not (builder.root / "blobs/sha256" / hashlib.sha256(data).hexdigest()).exists()
    assert builder.builds()[0]["status"] == "failed"


def test_a_bomb_ends_at_the_limit(builder: Builder, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 50_000_000
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    (tmp_path / "bomb").write_bytes(gzip.compress(out.getvalue()))
    done = builder.run(
        "append", "scratch", str(tmp_path / "bomb"), "-o", f"type=oci,dest={tmp_path / 'out'}",
        env={"REFLEDGER_LAYER_LIMIT": "1000000"},
    )  # fmt: skip
    assert done.code == 2
    assert "expands to more than 1000000 bytes" in done.err
    assert "REFLEDGER_LAYER_LIMIT" in done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("scratch", "/nowhere/layer.tar"), "the layer cannot be read: No such file or directory"),
        (("scratch", "/etc"), "the layer cannot be read: Is a directory"),
        (("scratch", "-", "-"), "standard input can be one layer only"),
        (("scratch", "/dev/null", "-c", "RUN true"), "RUN needs a build"),
        (("scratch", "/dev/null", "-c", "ENV"), "--change 'ENV'"),
        (("no such image", "/dev/null"), "not an image name"),
    ],
)
def test_wrong_input_is_told_in_one_line(builder: Builder, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    done = builder.run("append", *args, "-o", f"type=oci,dest={tmp_path / 'out'}")
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert said in line


def test_a_destination_must_be_named(builder: Builder, layer: Path) -> None:
    done = builder.run("append", "scratch", str(layer))
    assert done.code == 2
    assert "-t NAME --push" in done.err
    assert builder.run("append", "scratch", str(layer), "--push").code == 2  # it has no tag that could move


# ---------------------------------------------------------------- in the log


def test_the_layer_is_known_to_the_log_and_can_be_let_go_once_it_is_elsewhere(
    builder: Builder, registry: RegistryProcess, repository: str, layer: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    must(builder, "append", image["reference"], str(layer), "-t", f"{registry.host}/{repository}/app:1", "--push")
    build = builder.builds()[0]
    digest = digest_of(layer.read_bytes())
    (stored,) = builder.events("LayerStored")
    assert stored["data"]["name"] == str(layer)
    assert stored["data"]["layer"]["digest"] == digest
    assert builder.events("MaterializationRequested", "LayerPulled") == []
    for command in (["show"], ["why"], ["report", "-o", "-"]):
        assert builder.run(*command, build["id"]).code == 0
    pruned = builder.run("prune", "--all")
    assert pruned.code == 0, pruned.err
    demoted = [event["data"] for event in builder.events("Demoted")]
    assert [(item["kind"], item["digest"]) for item in demoted] == [("blob", digest)]
    verified = builder.run("replay", build["id"], "--verify", "--progress", "quiet")
    assert verified.code == 0, verified.out + verified.err
    must(builder, "append", image["reference"], str(layer), "-t", f"{registry.host}/{repository}/app:1", "--push")
    why = builder.run("why", builder.builds()[0]["id"], "3")
    assert why.code == 0, why.err
    assert "verified here (digest, diff_id)" in why.out
    assert f"from file {layer}" in why.out
    assert layer_digests(image) == blobs(manifest(registry, f"{repository}/app", "1"))[:-1]


def test_a_layer_that_nobody_has_any_more_is_said_so(builder: Builder, layer: Path, tmp_path: Path) -> None:
    must(builder, "append", "scratch", str(layer), "-o", f"type=oci,dest={tmp_path / 'out'}")
    build = builder.builds()[0]["id"]
    (builder.root / "blobs/sha256" / digest_of(layer.read_bytes()).partition(":")[2]).unlink()
    done = builder.run("replay", build, "--verify", "--progress", "quiet")
    assert done.code == 2
    assert "the layer is not here any more" in done.out + done.err
    assert "append it again" in done.out + done.err


@pytest.mark.parametrize("begun", [True, False])
def test_what_was_interrupted_while_a_pipe_said_nothing_leaves_nothing(
    builder: Builder, tmp_path: Path, begun: bool
) -> None:
    os.mkfifo(tmp_path / "pipe")
    out = f"type=oci,dest={tmp_path / 'out'}"
    process = builder.start("append", "scratch", str(tmp_path / "pipe"), "-o", out, "--progress", "plain")
    assert process.stderr is not None
    assert "store layer" in process.stderr.readline()
    with (tmp_path / "pipe").open("wb") if begun else nullcontext() as pipe:
        if pipe is not None:
            pipe.write(layer_tar({"a": os.urandom(3_000_000)})[:2_000_000])
            pipe.flush()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert builder.leftovers() == []
    assert builder.builds()[0]["status"] == "cancelled"
    assert not (tmp_path / "out").exists()
