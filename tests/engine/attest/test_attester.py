"""Layers are looked into for an SBOM: once each, and a disk that fails is said."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.attest.attester import Attester
from engine.attest.spec import Attest
from engine.errors import DiskError
from engine.events import LayerScanned
from engine.exporters.image import Image
from engine.ledger import Ledger
from engine.refs.materializer import Materializer
from engine.refs.ref import Layer, Local, Ref, Remote
from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.interfaces.images import Descriptor
from storage.interfaces.parts import LayerTree
from storage.media_types import CONFIG, MANIFEST
from tests.engine.attest.test_scan import Layer as Files
from tests.engine.solver.kit import Recorded

LAYER = Layer(sha256(b"diff"), Descriptor("t", sha256(b"blob"), 4))
IMAGE = Image((LAYER,), b"{}", MANIFEST, b"{}", Descriptor(CONFIG, sha256(b"{}"), 2))
BUILT: Any = SimpleNamespace(ref=Remote("r", (LAYER,)), result=SimpleNamespace(vertex=sha256(b"v")))


class Here:
    """All layers are mountable, below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def materialize(self, ref: Ref, **_: object) -> Local:
        return Local(ref.id, ref.layers, tuple(self.path for _ in ref.layers))


class Unknown:
    def scan_of(self, _diff_id: object) -> None:
        return None


def attester(path: Path, told: Recorded, tree: LayerTree) -> Attester:
    return Attester(
        cast("Ledger", told), DirectoryBlobs(path, owner="t"), cast("Materializer", Here(path)), lambda _: tree,
        cast("Any", Unknown()), None, "1",
    )  # fmt: skip


def test_a_layer_is_looked_into_once_for_all_images_that_have_it(tmp_path: Path) -> None:
    told = Recorded()
    one = attester(tmp_path, told, Files({}))
    for _ in range(2):
        made = asyncio.run(one.attest([Attest("sbom")], BUILT, IMAGE))
        assert len(made.referrers) == 1
    assert len(told.of(LayerScanned)) == 1


def test_a_disk_that_fails_is_said_of_the_layer(tmp_path: Path) -> None:
    class Broken(Files):
        def names(self, path: bytes) -> set[bytes]:
            raise OSError(5, "Input/output error")

    with pytest.raises(DiskError, match=f"looking for packages in layer {LAYER.diff_id.short}"):  # type: ignore[union-attr]
        asyncio.run(attester(tmp_path, Recorded(), Broken({})).attest([Attest("sbom")], BUILT, IMAGE))
