"""One layer goes to one registry once, however many builds of a root push it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.faulty import Fault, FaultyProxy
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def test_two_processes_that_push_the_same_layers_upload_them_once(
    tmp_path: Path, registry: RegistryProcess, second_registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", size=600_000)
    builder = Builder(tmp_path)
    slow = Fault("GET", "/blobs/", rate=600_000)
    mark = second_registry.mark()
    with FaultyProxy(registry.host, slow) as proxy:
        builder.write({"Dockerfile": f"FROM {proxy.host}/{repository}/base\nLABEL a=b\n"})
        target = f"{second_registry.host}/{repository}/app"
        args = ("build", str(builder.context), "--push", "--progress", "plain", "-t")
        running = [builder.start(*args, f"{target}:{number}") for number in range(2)]
        for process in running:
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
    layers = set(layer_digests(image))
    asked = [seen.path.rpartition("/")[2] for seen in proxy.seen if seen.method == "GET" and "/blobs/" in seen.path]
    assert sorted(digest for digest in asked if digest in layers) == sorted(layers)
    put = [line for line in second_registry.requests()[mark:] if line.method == "PUT" and "/blobs/" in line.path]
    assert sum(any(digest[7:] in line.path for digest in layers) for line in put) == len(layers)
    exported = [event["data"]["layers"] for event in builder.events("Exported")]
    transports = sorted(layer["transport"] for layers_of in exported for layer in layers_of)
    assert transports == ["present"] * len(layers) + ["streamed"] * len(layers)
    assert builder.leftovers() == []
