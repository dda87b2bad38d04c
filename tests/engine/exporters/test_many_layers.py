"""An image may have so many layers as can be described: more are refused in one line, before anything is given out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.exporters.exporters import MOST_LAYERS
from engine.refs.ref import Layer, layers_from_json, layers_to_json
from storage.digest import sha256
from storage.errors import InputError
from storage.interfaces.images import Descriptor, Provider
from tests.builder import Builder
from tests.registry_fixture import RegistryProcess, push_image

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def layer(number: int) -> Layer:
    digest = sha256(b"%d" % number)
    provider = Provider.of("registry.example", "team/project/base")
    return Layer(digest, Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, 1 << 20), (provider,))


def test_layers_that_no_event_has_room_for_are_an_input_error_that_says_what_to_do() -> None:
    as_many_as_docker_takes = tuple(map(layer, range(127)))
    assert layers_from_json(layers_to_json(as_many_as_docker_takes)) == as_many_as_docker_takes
    with pytest.raises(InputError, match="400 layers take") as caught:
        layers_to_json([*map(layer, range(400))])
    assert "join steps" in caught.value.hint


@needs_root
def test_an_image_of_more_layers_than_anybody_could_start_from_is_not_given_out(
    tmp_path: Path, registry: RegistryProcess
) -> None:
    builder = Builder(tmp_path / "many")
    builder.write({"file": "content"})
    layers = [{f"file{number}": b"%d" % number} for number in range(MOST_LAYERS)]
    base = push_image(registry.host, "t/many/base", layers)["reference"]
    name = f"{registry.host}/t/many/made:1"
    done = builder.build(f"FROM {base}\nCOPY file /\n", "--push", "-t", name)
    assert (done.code, f"{MOST_LAYERS + 1} layers: more than {MOST_LAYERS}" in done.err) == (2, True), done.err
    assert "join steps" in done.err
    assert not [line for line in registry.requests() if "/t/many/made/" in line.path and line.method != "HEAD"]
    assert builder.build(f"FROM {base}\nLABEL a=b\n", "--push", "-t", name).code == 0
