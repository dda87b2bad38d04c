"""Layers in our compressions, read by tools that had no part in them: skopeo, umoci, runc, podman."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.exporters.reading import drain
from engine.exporters.transfer import Transfer
from engine.refs.ref import Layer
from projections.cache_index import CacheIndex
from storage.interfaces.images import Compression
from tests.builder import busybox_layer
from tests.chunked import Made
from tests.engine.exporters.kit import transfer_in
from tests.engine.refs.kit import kit, push_layers, remote
from tests.registry_fixture import OCI_LAYER, RegistryProcess, digest_of, layer_tar
from tools.known import LogAnswers

TOOLS = ("skopeo", "umoci", "runc", "podman")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason=f"needs root, {', '.join(TOOLS)}"
)
BIG = random.Random(3).randbytes(9_000_000)
FILES = {**busybox_layer(), "data/": b"", "data/big": BIG, "data/small": b"small\n"}


def run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    assert done.returncode == 0, (command, done.stderr[-2000:])
    return done.stdout


@pytest.fixture
def runroot() -> Iterator[str]:
    """podman takes none whose path is longer than 50 characters."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        yield directory


def apart(runroot: str) -> list[str]:
    """podman, without what it shares with others of this machine but for its store."""
    command = ["podman", "--tmpdir", f"{runroot}/tmp"]  # reason: a reset removes it, by default everybody's
    return [*command, "--events-backend", "none"]  # reason: a reset writes events into what it is removing


@pytest.fixture
def podman(tmp_path: Path, runroot: str) -> Iterator[list[str]]:
    """The command, with a store of its own."""
    store = ["--root", str(tmp_path / "podman"), "--runroot", runroot, "--storage-driver", "vfs"]
    yield (command := [*apart(runroot), *store])
    run(*command, "system", "reset", "--force")


async def described(exporting: Transfer, layers: Sequence[Layer]) -> list[Made]:
    """Their bytes as they would be pushed, and what a manifest says of them."""
    found = []
    for layer in layers:
        assert layer.blob is not None
        out = bytearray()
        await drain(exporting.reader.read(layer, lambda _: None), out.extend)
        found.append(Made(bytes(out), {**layer.blob.to_json(), "diff_id": str(layer.diff_id)}, {}))
    return found


def converted(registry: RegistryProcess, repository: str, directory: Path, kind: Any) -> dict[str, Any]:
    """An image in the registry whose layers were converted from uncompressed ones."""
    tar = layer_tar(FILES)
    came = OCI_LAYER.replace("+gzip", "")
    base = Made(tar, {"mediaType": came, "digest": digest_of(tar), "size": len(tar), "diff_id": digest_of(tar)}, {})
    push_layers(registry.host, f"{repository}/base", [base])

    async def convert() -> list[Made]:
        with kit(directory) as parts:
            exporting = transfer_in(parts, LogAnswers(CacheIndex(parts.root.views)))
            ref = remote([registry.host], f"{repository}/base", [base])
            return await described(exporting, await exporting.pack(ref, None, None, Compression(kind, force=True)))

    return push_layers(registry.host, f"{repository}/{kind}", asyncio.run(convert()), {"Cmd": ["/bin/sh"]})


def check_runs(layout: str, bundle: Path) -> None:
    """umoci unpacks the image, and runc runs what is in it."""
    run("umoci", "unpack", "--image", layout, str(bundle))
    assert (bundle / "rootfs/data/big").read_bytes() == BIG
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/bin/busybox", "cat", "/data/small"]
    (bundle / "config.json").write_text(json.dumps(config))
    assert run("runc", "run", "-b", str(bundle), f"t{os.getpid()}{bundle.name}") == "small\n"


@pytest.mark.parametrize("kind", ["estargz", "uncompressed", "gzip"])
def test_skopeo_umoci_runc_and_podman_read_it(
    registry: RegistryProcess, repository: str, tmp_path: Path, podman: list[str], kind: str
) -> None:
    image = converted(registry, repository, tmp_path / "root", kind)
    layout = f"{tmp_path}/layout:x"
    run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{image['reference']}",
        f"oci:{layout}")  # fmt: skip
    check_runs(layout, tmp_path / "bundle")
    run(*podman, "pull", "-q", "--tls-verify=false", image["reference"])
    told = json.loads(run(*podman, "image", "inspect", image["reference"]))
    assert told[0]["RootFS"]["Layers"] == [layer["diff_id"] for layer in image["layers"]]


def test_podman_reads_zstd_and_what_it_saves_runs(
    registry: RegistryProcess, repository: str, tmp_path: Path, podman: list[str]
) -> None:
    """umoci 0.4 knows no zstd: it gets the image from podman."""
    image = converted(registry, repository, tmp_path / "root", "zstd")
    run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{image['reference']}",
        f"oci:{tmp_path}/as-it-is:x")  # fmt: skip
    run(*podman, "pull", "-q", "--tls-verify=false", image["reference"])
    told = json.loads(run(*podman, "image", "inspect", image["reference"]))
    assert told[0]["RootFS"]["Layers"] == [layer["diff_id"] for layer in image["layers"]]
    run(*podman, "save", "-q", "--format", "oci-dir", "-o", f"{tmp_path}/saved", image["reference"])
    tag = json.loads((tmp_path / "saved/index.json").read_text())["manifests"][0]["annotations"]
    check_runs(f"{tmp_path}/saved:{tag['org.opencontainers.image.ref.name']}", tmp_path / "bundle")


def test_podman_finds_the_files_of_an_estargz_by_its_table(
    registry: RegistryProcess, repository: str, tmp_path: Path, runroot: str
) -> None:
    """containers/storage has a reader of its own for the format: it verifies table and chunks, and asks for ranges."""
    image = converted(registry, repository, tmp_path / "root", "estargz")
    (layer,) = [layer["digest"] for layer in image["layers"]]
    conf = tmp_path / "storage.conf"
    conf.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{runroot}"\n'
        '[storage.options]\npull_options = {enable_partial_images = "true"}\n'
    )
    env, podman = {"CONTAINERS_STORAGE_CONF": str(conf)}, apart(runroot)
    mark = registry.mark()
    try:
        run(*podman, "pull", "-q", "--tls-verify=false", image["reference"], env=env)
        asked = [line for line in registry.requests()[mark:] if line.blob == layer and line.method == "GET"]
        assert [line.status for line in asked] == [206] * len(asked)
        assert len(asked) >= 2
        mounted = Path(run(*podman, "image", "mount", image["reference"], env=env).strip())
        assert (mounted / "data/big").read_bytes() == BIG
        assert (mounted / "data/small").read_bytes() == b"small\n"
        assert sorted(path.name for path in mounted.iterdir() if not path.name.startswith((".", "stargz"))) == [
            "bin", "data", "etc",
        ]  # fmt: skip
    finally:
        run(*podman, "image", "umount", "--all", "--force", env=env)
        run(*podman, "system", "reset", "--force", env=env)
