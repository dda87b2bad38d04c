"""The files of a layer are listed from whatever form of it is here, and names from a log lead nowhere else."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import sha256
from storage.errors import DiskError, VerificationError
from storage.layers.erofs.image import ImageWriter
from tools.layer_files import LayerFile, RootFiles


def tar_of(**links: str) -> bytes:
    """A directory `d`, a file `d/f`, a whiteout of `d/gone`, an opaque `d`, and `links`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, data in (("d", tarfile.DIRTYPE, b""), ("d/f", tarfile.REGTYPE, b"12345"),
                                 ("d/.wh.gone", tarfile.REGTYPE, b""), ("d/.wh..wh..opq", tarfile.REGTYPE, b"")):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mode, info.uid = kind, len(data), 0o640, 7
            tar.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


LISTED = [
    LayerFile("d", "dir", 0o640, "7:0", 0), LayerFile("d/f", "file", 0o640, "7:0", 5),
    LayerFile("d/gone", "deleted", 0o640, "7:0", 0), LayerFile("d/*", "deleted", 0o640, "7:0", 0),
]  # fmt: skip


def test_a_compressed_blob_is_listed(tmp_path: Path) -> None:
    digest = DirectoryBlobs(tmp_path, owner="test").put(gzip.compress(tar_of()))
    layer = {"digest": str(digest), "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    assert RootFiles(tmp_path).where(layer) == "blob"
    assert list(RootFiles(tmp_path).files(layer)) == LISTED


@pytest.mark.parametrize("where", ["layers", "snapshots"])
def test_a_layer_image_is_listed_without_a_mount(tmp_path: Path, where: str) -> None:
    data = tar_of()
    digest = sha256(data)
    name = digest.hex if where == "layers" else "build-1"
    (tmp_path / where).mkdir()
    with ImageWriter(tmp_path / where / f"{name}.erofs") as image:
        image.write(data)
        image.finish(digest)
    layer = {"diff_id": str(digest)} if where == "layers" else {"snapshot": name}
    assert RootFiles(tmp_path).where(layer).endswith("image")
    assert list(RootFiles(tmp_path).files(layer)) == LISTED


def test_a_directory_is_walked_and_links_out_of_it_are_not_followed(tmp_path: Path) -> None:
    top = tmp_path / "snapshots" / "build-1" / "fs"
    (top / "d").mkdir(parents=True)
    (top / "d" / "f").write_bytes(b"12345")
    (top / "out").symlink_to("/etc")
    found = {file.path: file for file in RootFiles(tmp_path).files({"snapshot": "build-1"})}
    assert set(found) == {"d", "d/f", "out"}
    assert (found["d/f"].kind, found["d/f"].size) == ("file", 5)
    assert (found["out"].kind, found["out"].target) == ("symlink", "/etc")


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "a/b", "", "x" * 300])
def test_names_that_are_no_ids_name_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "root" / "snapshots").mkdir(parents=True)
    (tmp_path / "root" / "secret" / "fs").mkdir(parents=True)
    for key in ("snapshot", "diff_id", "digest"):
        layer = {key: name}
        assert RootFiles(tmp_path / "root").where(layer) == ""
        assert list(RootFiles(tmp_path / "root").files(layer)) == []


def test_damage_is_an_error_of_ours(tmp_path: Path) -> None:
    store = DirectoryBlobs(tmp_path, owner="test")
    for data in (gzip.compress(tar_of())[:-40], os.urandom(2000)):
        layer = {"digest": str(store.put(data)), "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
        with pytest.raises((VerificationError, DiskError)):
            list(RootFiles(tmp_path).files(layer))
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / f"{'0' * 64}.erofs").write_bytes(b"junk")
    with pytest.raises(DiskError):
        list(RootFiles(tmp_path).files({"diff_id": f"sha256:{'0' * 64}"}))
