"""Layers as tars, however a root has them."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.errors import DiskError
from storage.interfaces.images import Descriptor
from storage.layers.snapshots import OverlaySnapshots
from storage.layers.tars import StoredTars
from tests.storage.layers.trees import diff_id, file, make_tar
from tests.storage.test_refused import refusing

LAYER = make_tar(file("a", b"1"))
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def stored(root: Path) -> StoredTars:
    snapshots = OverlaySnapshots(root / "snapshots", root / "tmp", "b1")
    return StoredTars(root / "layers", root / "snapshots", snapshots, DirectoryBlobs(root, owner="b1"))


def test_a_blob_that_is_here_is_the_tar_it_expands_to(tmp_path: Path) -> None:
    tars = stored(tmp_path)
    digest = tars.blobs.put(packed := gzip.compress(LAYER, mtime=0))
    found: list[bytes] = []
    assert tars.write(found.append, blob=Descriptor(GZIP, digest, len(packed)))
    assert b"".join(found) == LAYER


def test_what_is_not_here_is_none(tmp_path: Path) -> None:
    blob = Descriptor(GZIP, sha256(b""), 0)
    assert not stored(tmp_path).write(lambda _: None, snapshot="s", diff_id=diff_id(LAYER), blob=blob)


def test_an_image_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / f"{diff_id(LAYER).hex}.erofs").write_bytes(b"no image")
    with pytest.raises(DiskError, match="not a layer image"):
        stored(tmp_path).write(lambda _: None, diff_id=diff_id(LAYER))


def test_an_image_that_the_disk_does_not_give_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / f"{diff_id(LAYER).hex}.erofs").touch()
    monkeypatch.setattr("storage.layers.erofs.header.open_regular", refusing(errno.EIO))
    with pytest.raises(DiskError, match="reading a layer: Input/output error"):
        stored(tmp_path).write(lambda _: None, diff_id=diff_id(LAYER))
