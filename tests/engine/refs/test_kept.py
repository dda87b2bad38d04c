"""What is damaged goes; what somebody made anew meanwhile stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engine.refs.ref import Layer
from storage.digest import Digest
from tests.chunked import gzipped
from tests.engine.refs.kit import kit
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
