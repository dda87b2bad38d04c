"""Parts of layers: what a table of contents says of files that cannot be, and bytes that are not what it says."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.digest import sha256
from storage.errors import DiskError, TocUnusable, VerificationError
from storage.interfaces.parts import Part
from storage.parts.toc import ChunkedToc
from storage.parts.trees import DirectoryParts, UsableToc
from storage.scratch import Scratch
from tests.chunked import gzip_member
from tests.storage.layers.trees import names
from tests.storage.parts.test_toc import reg, table

BYTES = b"0123456789" * 10
BLOB = b"?" + gzip_member(BYTES)
OTHER = "sha256:" + "0" * 64


def chunk(**more: object) -> dict[str, object]:
    """The entry of a file whose content is BYTES, but for what `more` says."""
    return {**reg("f"), "size": 100, "offset": 1, "chunkDigest": str(sha256(BYTES)), **more}


def toc(place: Path, *entries: object) -> UsableToc:
    return UsableToc(ChunkedToc(table(*entries), len(BLOB)), Scratch(place, "b1"))


def wanted(*files: bytes, trees: set[bytes] = frozenset(), above: str = "nothing") -> Part:  # type: ignore[assignment]
    return Part(set(), set(files), trees, lambda _: above)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([chunk(chunkSize=4)], "do not add up"),
        ([chunk(chunkSize=4), {"type": "chunk", "name": "f", "chunkOffset": 5, "offset": 1}], "a hole in it"),
        ([chunk(chunkSize=200)], "do not add up"),
        ([chunk(offset=0)], "without a place or a digest"),
        ([chunk(offset=len(BLOB))], "without a place or a digest"),
        ([chunk(chunkDigest=None)], "without a place or a digest"),
        ([chunk(chunkDigest="md5:x")], "not a digest"),
        ([chunk(size=-1)], "as size"),
        ([chunk(size=True)], "as size"),
        ([chunk(size=1 << 63)], "as size"),
        ([chunk(uid="0")], "as uid"),
        ([chunk(modtime="yesterday")], "'yesterday' for a time"),
        ([chunk(modtime="2024-13-01T00:00:00Z")], "for a time"),
        ([chunk(modtime=7)], "'7' for a time"),
        ([chunk(xattrs={"user.a": "*"})], "not in base64"),
        ([chunk(xattrs={"user.a": 7})], "not in base64"),
        ([chunk(xattrs=[])], None),
        ([chunk(xattrs=["user.a"])], "xattrs that are none"),
    ],
)
def test_a_file_that_a_table_tells_wrongly_makes_it_unusable(
    tmp_path: Path, entries: list[object], why: str | None
) -> None:
    if why is None:
        toc(tmp_path, *entries).part(wanted(b"f")).discard()
    else:
        with pytest.raises(TocUnusable, match=why):
            toc(tmp_path, *entries).part(wanted(b"f"))
    assert list(tmp_path.iterdir()) == []


def test_hard_links_lead_to_what_is_there(tmp_path: Path) -> None:
    link = {"type": "hardlink", "name": "l", "linkName": "f"}
    table_of = toc(tmp_path, chunk(), link, link)
    assert table_of.names(b"") == {b"f", b"l"}
    assert table_of.look(b"l").kind == "other"
    for target in ("none", "d"):
        with pytest.raises(TocUnusable, match="a hard link to what it has not"):
            toc(tmp_path, {"type": "dir", "name": "d", "mode": 0o755}, {**link, "linkName": target})


def test_what_aufs_kept_for_itself_is_not_there(tmp_path: Path) -> None:
    assert toc(tmp_path, reg(".wh..wh.plnk/x"), reg("d/.wh..wh.orph"), reg("f")).names(b"") == {b"f"}


@pytest.mark.skipif(os.geteuid() != 0, reason="ownership needs root")
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"size": 200}, "a chunk ends 100 bytes too early"),
        ({"innerOffset": 50}, "a chunk ends 50 bytes too early"),
        ({"innerOffset": 150}, "a chunk ends 150 bytes too early"),
        ({"chunkDigest": OTHER}, "a chunk has the digest"),
        ({"size": 50, "innerOffset": 10}, "a chunk has the digest"),
    ],
)
def test_I3_what_does_not_fit_its_digest_is_not_laid_out(tmp_path: Path, more: dict[str, object], why: str) -> None:
    part = toc(tmp_path, chunk(**more)).part(wanted(b"f"))
    part.write(BLOB[1:])
    with pytest.raises(VerificationError, match=why) as caught:
        part.lay_out()
    assert not isinstance(caught.value, TocUnusable)
    assert [path.name for path in tmp_path.glob("*/fs")] == []
    part.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="ownership needs root")
def test_a_part_is_read_anew_from_another_provider_and_behind_other_bytes(tmp_path: Path) -> None:
    inner = chunk(size=30, innerOffset=25, chunkDigest=str(sha256(BYTES[25:55])))
    part = toc(tmp_path, inner).part(wanted(b"f"))
    part.restart()
    part.write(b"what the first one gave")
    part.write(b" in two pieces")
    part.restart()
    part.write(BLOB[1:])
    assert (part.lay_out() / "f").read_bytes() == BYTES[25:55]
    part.discard()
    part.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="devices and attributes need root")
def test_a_tree_has_its_whiteouts_and_marks_and_only_the_names_of_what_is_covered(tmp_path: Path) -> None:
    entries = [
        {"type": "dir", "name": "d", "mode": 0o750}, chunk(name="d/f"), reg("d/.wh.gone"), reg("d/o/.wh..wh..opq"),
        reg("d/o/x"), chunk(name="d/covered"), reg(".wh..wh..opq"),
    ]  # fmt: skip

    def above(path: bytes) -> str:
        return {b"d/covered": "covers", b"d/o": "directory"}.get(path, "nothing")

    part = toc(tmp_path, *entries).part(Part(set(), set(), {b"d"}, above))  # type: ignore[arg-type]
    assert part.files == 1
    part.write(BLOB[1:])
    tree = part.lay_out()
    assert names(tree / "d") == ["f", "gone", "o"]
    gone = (tree / "d/gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    for opaque in (tree, tree / "d/o"):
        assert os.getxattr(opaque, "trusted.overlay.opaque") == b"y"
    assert stat.S_IMODE((tree / "d").stat().st_mode) == 0o750
    part.discard()


def test_a_disk_that_refuses_is_said_whatever_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = toc(tmp_path, chunk()).part(wanted(b"f"))
    part.write(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    doings: dict[str, Callable[[], object]] = {"reading a part": part.restart, "removing a part": part.discard}
    for doing, act in doings.items():
        with monkeypatch.context() as patch, pytest.raises(DiskError, match=doing):
            patch.setattr(Path, "unlink", refuse)
            act()
    part.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_lies_here_is_looked_into_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "layer/fs/d").mkdir(parents=True)
    (tmp_path / "layer/fs/d/f").write_bytes(b"")
    (tmp_path / "layer/implied").write_bytes(b"d\0")
    tree = DirectoryParts(tmp_path / "tmp", "b1").tree(tmp_path / "layer/fs")
    assert tree.names(b"d") == {b"f"}
    assert tree.look(b"d").implied
    assert tree.look(b"d/f/x").ends
    assert tree.look(b"d/none").kind == "missing"


def test_what_is_only_seen_of_a_file_takes_none_of_its_bytes(tmp_path: Path) -> None:
    part = toc(tmp_path, chunk()).part(Part({b"f"}, set(), set(), lambda _: "nothing"))
    assert (list(part.ranges), part.files) == ([], 0)
    part.discard()
