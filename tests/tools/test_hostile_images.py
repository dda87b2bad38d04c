"""Base images whose manifests lie: one line and exit code 4, before anything of a layer is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.registry_fixture import OCI_CONFIG, OCI_MANIFEST, RegistryProcess, push_blob, push_manifest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def spoilt(manifest: dict[str, Any], config: dict[str, Any], how: str) -> None:
    layers = manifest["layers"]
    if how == "a negative size":
        layers[0]["size"] = -5
    elif how == "a huge size":
        layers[0]["size"] = 1 << 60
    elif how == "annotations of megabytes":
        layers[1]["annotations"] = {"a": "x" * 2_000_000}
    elif how == "a thousand layers":
        manifest["layers"] = layers[:1] * 1000
        config["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"][:1] * 1000
    elif how == "thousands of layers":
        manifest["layers"] = layers[:1] * 5000


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a negative size", "a blob of '-5' bytes"),
        ("a huge size", "a blob of '1152921504606846976' bytes"),
        ("annotations of megabytes", "bytes to describe, more than 524288"),
        ("a thousand layers", "1000 layers, more than 900"),
        ("thousands of layers", "5000 layers, more than 900"),
    ],
)
def test_a_manifest_that_lies_is_refused_in_one_line(
    tmp_path: Path, registry: RegistryProcess, repository: str, how: str, said: str
) -> None:
    image = base_image(registry, f"{repository}/base", size=10)
    manifest, config = json.loads(json.dumps(image["manifest"])), json.loads(json.dumps(image["config"]))
    spoilt(manifest, config, how)
    data = json.dumps(config).encode()
    digest = push_blob(registry.host, f"{repository}/base", data)
    manifest["config"] = {"mediaType": OCI_CONFIG, "digest": digest, "size": len(data)}
    push_manifest(registry.host, f"{repository}/base", "evil", json.dumps(manifest).encode(), OCI_MANIFEST)
    mark = registry.mark()
    builder, name = Builder(tmp_path), f"{registry.host}/{repository}/base:evil"
    edit = ("rebase", name, "--from", image["reference"], "--to", image["reference"])
    for done in (
        builder.build(f"FROM {name}\nRUN true\n"),
        builder.build(f"FROM scratch\nCOPY --from={name} /bin /bin\n"),
        builder.run(*edit, "-o", f"type=oci,dest={tmp_path / 'out'}"),
    ):
        assert done.code == 4, done.err
        (line,) = [line for line in done.err.splitlines() if line.startswith("ERROR")]
        assert said in line
        assert len(line) < 600
    assert registry.layer_gets(layer_digests(image), since=mark) == []
