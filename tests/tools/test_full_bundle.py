"""`refledger bundle --full` of what only a registry has: its layers are fetched, verified, and in the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def test_layers_that_are_not_here_are_fetched_into_it_and_one_that_is_lost_is_named(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, f"{repository}/base", layers=2)
    name = f"{registry.host}/{repository}/app:1"
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n", "-t", name, "--push")
    build = builder.builds()[0]["id"]
    assert not list((builder.root / "layers").iterdir()), "nothing needed a layer"
    pointing, full, lost = (str(tmp_path / f"{name}.bundle") for name in ("pointing", "full", "lost"))
    for dest, options in ((pointing, ()), (full, ("--full",))):
        done = builder.run("bundle", build, "-o", dest, *options)
        assert done.code == 0, done.err
    held = [json.loads(builder.run("bundle", "inspect", dest, "--json").out) for dest in (pointing, full)]
    assert [(one["layers_bundled"], one["layers_pointed_at"]) for one in held] == [(0, 0), (2, 0)]
    assert Path(full).stat().st_size > Path(pointing).stat().st_size + 100_000

    digest = layer_digests(image)[1]
    registry.blob_path(digest).unlink()
    done = builder.run("bundle", build, "-o", lost, "--full")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert digest[7:19] in done.err
    assert not Path(lost).exists()
