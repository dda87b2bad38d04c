"""What is fetched without an engine."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest

from engine.refs.ref import Layer
from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.interfaces.images import Descriptor, Provider
from storage.reference import LAYOUT_REGISTRY
from tests.registry_fixture import OCI_LAYER, layer_tar
from tools.connecting import fetch_blob


def test_a_blob_comes_uncompressed_and_no_directory_is_tried_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tempfile tries them with a file that stays when the process is killed just then."""
    tar = layer_tar({"a": b"content"})
    blob = gzip.compress(tar)
    DirectoryBlobs(tmp_path / "layout", owner="b1").put(blob)
    layer = Layer(
        sha256(tar), Descriptor(OCI_LAYER, sha256(blob), len(blob)),
        providers=(Provider.of(LAYOUT_REGISTRY, str(tmp_path / "layout")),),
    )  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", lambda: pytest.fail("it looked for a directory"))
    monkeypatch.setenv("REFLEDGER_ROOT", str(tmp_path / "root"))
    written: list[bytes] = []
    fetch_blob(layer, written.append)
    assert b"".join(written) == tar
