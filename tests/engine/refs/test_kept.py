"""What is damaged goes; what somebody made anew meanwhile stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import BinaryIO

import pytest

from engine.refs.ref import Layer
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from tests.chunked import gzipped
from tests.engine.refs.kit import kit, push_layers, remote
from tests.registry_fixture import RegistryProcess
from tests.storage.layers.trees import file, make_tar


def test_I8_a_layer_that_is_sound_again_is_not_removed(tmp_path: Path) -> None:
    made = gzipped(make_tar(file("f", b"sound")))
    diff_id = Digest(made.descriptor["diff_id"])
    with kit(tmp_path / "root") as parts:
        with tmp_path.joinpath("blob").open("wb+") as blob:
            blob.write(made.blob)
            blob.seek(0)
            parts.materializer.layers.unpack(diff_id, made.descriptor["mediaType"], blob)
        asyncio.run(parts.materializer.kept.lose(Layer(diff_id), "layer", str(diff_id)))
        assert parts.materializer.layers.has(diff_id)
        assert parts.events("LocalLost") == []


def test_I8_a_blob_that_is_let_go_of_before_it_is_read_comes_from_its_provider(
    registry: RegistryProcess, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gzipped(make_tar(file("f", b"from afar")))
    push_layers(registry.host, repository, [made])

    def gone(self: DirectoryBlobs, digest: Digest) -> BinaryIO:
        self.path(digest).unlink()
        raise FileNotFoundError

    with kit(tmp_path / "root") as parts:
        parts.materializer.blobs.put(made.blob)
        monkeypatch.setattr(DirectoryBlobs, "open", gone)
        ref = remote([registry.host], repository, [made])
        local = asyncio.run(parts.materializer.materialize(ref, vertex="v", reason="run"))
        assert (local.lowers[0] / "f").read_bytes() == b"from afar"
        assert [pulled["bytes"] for pulled in parts.events("LayerPulled")] == [len(made.blob)]
