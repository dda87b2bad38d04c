"""An image may have hundreds of layers, more than an event or an overlay has room for; what is too much is refused in
one line, before anything is given out."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from engine.refs.ref import DESCRIBED_LIMIT, MOST_LAYERS, Layer, layers_from_json, layers_to_json
from storage.digest import sha256
from storage.errors import InputError
from storage.interfaces.images import Descriptor, Provider
from tests.builder import Builder
from tests.registry_fixture import (
    OCI_CONFIG,
    OCI_MANIFEST,
    RegistryProcess,
    push_blob,
    push_image,
    push_manifest,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def layer(number: int) -> Layer:
    digest = sha256(b"%d" % number)
    provider = Provider.of("registry.example", "team/project/base")
    return Layer(digest, Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, 1 << 20), (provider,))


def test_layers_that_no_event_has_room_for_are_an_input_error_that_says_what_to_do() -> None:
    as_many_as_there_may_be = tuple(map(layer, range(MOST_LAYERS)))
    assert layers_from_json(layers_to_json(as_many_as_there_may_be)) == as_many_as_there_may_be
    with pytest.raises(InputError, match=f"{MOST_LAYERS + 1} layers, more than {MOST_LAYERS}") as caught:
        layers_to_json([*map(layer, range(MOST_LAYERS + 1))])
    assert "join steps" in caught.value.hint
    long = Provider.of("registry.example", "x" * 200)
    with pytest.raises(InputError, match=f"to describe, more than {DESCRIBED_LIMIT}"):
        layers_to_json([replace(one, providers=(long,) * 2) for one in as_many_as_there_may_be])


def push_many(host: str, name: str, times: int) -> str:
    """An image that has the same four layers over and over."""
    image = push_image(host, name, [{f"file{number}": b"%d" % number} for number in range(4)])
    manifest, config = image["manifest"], image["config"]
    config["rootfs"]["diff_ids"] *= times
    config["history"] *= times
    data = json.dumps(config).encode()
    manifest["layers"] *= times
    manifest["config"] = {"mediaType": OCI_CONFIG, "digest": push_blob(host, name, data), "size": len(data)}
    push_manifest(host, name, "many", json.dumps(manifest).encode(), OCI_MANIFEST)
    return f"{host}/{name}:many"


@needs_root
def test_an_image_of_400_layers_is_built_on_pushed_verified_bundled_and_pruned(
    tmp_path: Path, registry: RegistryProcess
) -> None:
    builder = Builder(tmp_path / "many")
    builder.write({"file": "content"})
    name = f"{registry.host}/t/many/made:1"
    base = push_many(registry.host, "t/many/base", 100)
    builder.must_build(f"FROM {base}\nCOPY file /made\nCOPY --from={base} file3 /file4\n", "--push", "-t", name)
    by_type = {event["type"]: event["data"] for event in builder.events()}
    layers = [by_type[kind]["layers"] for kind in ("RemoteCreated", "LocalCreated", "CacheRecorded")]
    assert [len(one) for one in layers] == [400, 402, 402]
    with sqlite3.connect(builder.root / "log.db") as log:
        assert log.execute("SELECT max(length(state)) FROM events").fetchone()[0] <= 65536
    bundle = str(tmp_path / "bundle")
    build = builder.builds()[0]["id"]
    for words in (["audit", "verify"], ["bundle", build, "-o", bundle], ["audit", "verify", bundle]):
        done = builder.run(*words)
        assert done.code == 0, (words, done.err)
    other = Builder(tmp_path / "other")
    other.write({"file": "content"})
    other.must_build(f"FROM {name}\nCOPY --from={name} made /again\nCOPY file /x\n", "-o", f"{tmp_path}/out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "again", "file0", "file1", "file2", "file3", "file4", "made", "x",
    ]  # fmt: skip
    assert builder.run("prune", "--all").code == 0
    assert builder.run("audit", "verify").code == 0
    assert builder.leftovers() == []
