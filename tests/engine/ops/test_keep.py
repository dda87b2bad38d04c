"""A local context that a build used can be had again from the root alone, and costs nothing twice."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError, VerificationError
from engine.graph import Copy, Graph, op_to_json
from engine.ops.keep import pack_lost, restore
from engine.ops.select import select
from engine.ops.selection import Selection
from engine.stored import graph_from_json, op_from_json
from storage.blobs import DirectoryBlobs
from storage.digest import Digest, parse_json, sha256
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.snapshots import OverlaySnapshots
from storage.layers.tars import regular_files
from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("inside")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def scans(builder: Builder) -> dict[str, dict[str, Any]]:
    """What the last build selected: listing → its ContextScanned."""
    newest = builder.builds()[0]["id"]
    return {event["data"]["listing"]: event["data"] for event in builder.events("ContextScanned", build=newest)}


def restored(builder: Builder, dest: Path) -> None:
    """Put all that the last build took from its context into `dest`, with nothing but the root."""
    blobs = DirectoryBlobs(builder.root, owner="test")
    mounts = ErofsMounts(builder.root / "tmp", "test")
    snapshots = OverlaySnapshots(builder.root / "snapshots", builder.root / "tmp", "test", mounts=mounts)
    kept = {event["data"]["listing"]: event["data"] for event in builder.events("ContextKept")}
    try:
        for listing in scans(builder):
            packs = [blobs.open(Digest(pack)) for pack in kept[listing]["packs"]]
            layer = kept[listing]["layer"]
            with snapshots.view([snapshots.lower(layer)] if layer else []) as tree:
                restore(blobs.get(Digest(listing)), [tree], map(regular_files, packs), dest)
    finally:
        mounts.close()


def graph(builder: Builder) -> Graph:
    (defined,) = builder.events("GraphDefined", build=builder.builds()[0]["id"])
    return graph_from_json(parse_json(DirectoryBlobs(builder.root, owner="test").get(Digest(defined["data"]["graph"]))))


def test_a_context_is_had_again_from_the_root(builder: Builder, tmp_path: Path) -> None:
    builder.write(
        {"a/one": "1", "a/same": "first", "b/same": "second", "tool": "#!", "odd \\ nämé\n": "odd", "x.tar": archive(),
         "empty": "", "hidden": "h", ".dockerignore": "hidden\n"}
    )  # fmt: skip
    (builder.context / "tool").chmod(0o751)
    (builder.context / "a/link").symlink_to("one")
    (builder.context / "a/deep/er").mkdir(parents=True)
    os.mkfifo(builder.context / "a/fifo")
    os.utime(builder.context / "a/one", (1_600_000_000, 1_600_000_000))
    builder.must_build(
        "FROM scratch\nCOPY --chmod=600 --chown=5:6 a b/ /all/\nCOPY a/same b/same /two/\nADD x.tar empty /t/\n"
        "COPY tool odd* /d/\n"
    )
    listings = scans(builder)
    assert len(listings) == 4
    shutil.rmtree(builder.context)
    again = tmp_path / "again"
    restored(builder, again)
    for vertex in graph(builder).vertices:
        found = next((one for one in listings.values() if one["step"] == str(vertex.digest)), None)
        if found is not None:
            op: Any = op_from_json(op_to_json(vertex.op))
            assert str(select(op, again, (), hash_files=True).digest) == found["listing"]
    assert (again / "a/one").stat().st_mtime == 1_600_000_000
    assert (again / "tool").stat().st_mode & 0o7777 == 0o751
    assert not (again / "hidden").exists()


def test_a_rebuild_from_the_restored_context_is_all_cached(builder: Builder, tmp_path: Path) -> None:
    builder.write({"file": "content", "dir/x": "x"})
    dockerfile = "FROM scratch\nCOPY . /\n"
    builder.must_build(dockerfile)
    restored(builder, tmp_path / "again")
    done = builder.run("build", str(tmp_path / "again"), "-f", str(builder.context / "Dockerfile"))
    assert done.code == 0, done.err
    newest = builder.builds()[0]["id"]
    assert [event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)] == ["hit"]


def test_what_lies_behind_a_link_of_the_context_is_had_again(builder: Builder, tmp_path: Path) -> None:
    builder.write({"dir/x": "x", "file": "content"})
    (builder.context / "link").symlink_to("dir")
    (builder.context / "absolute").symlink_to("/dir")
    dockerfile = "FROM scratch\nCOPY . /a\nCOPY link/ /b\nCOPY absolute/x /c\n"
    builder.must_build(dockerfile)
    restored(builder, tmp_path / "again")
    done = builder.run("build", str(tmp_path / "again"), "-f", str(builder.context / "Dockerfile"))
    assert done.code == 0, done.err
    newest = builder.builds()[0]["id"]
    assert {event["data"]["outcome"] for event in builder.events("CacheQueried", build=newest)} == {"hit"}


def test_what_a_copy_keeps_anyway_is_not_stored_again(builder: Builder) -> None:
    builder.write({"big": os.urandom(1_000_000), "x.tar": archive()})
    builder.must_build("FROM scratch\nCOPY big /\n")
    (kept,) = builder.events("ContextKept")
    assert kept["data"]["packs"] == []
    stored = sum(path.stat().st_size for path in (builder.root / "blobs/sha256").iterdir())
    assert stored < 20_000
    builder.must_build("FROM scratch\nADD x.tar /\n")
    assert len(builder.events("ContextKept")[1]["data"]["packs"]) == 1


def test_what_a_run_only_mounted_is_kept_too_and_once(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"big": os.urandom(1_000_000), "small": "1"})
    (builder.context / ".dockerignore").write_text("Dockerfile\n.dockerignore\n")
    dockerfile = f"FROM {image['reference']}\nRUN --mount=type=bind,target=/src cat /src/small > /out\n"
    builder.must_build(dockerfile)
    builder.write({"small": "2"})
    builder.must_build(dockerfile)
    first, second = (event["data"]["packs"] for event in builder.events("ContextKept"))
    assert second[0] == first[0]
    assert len(second) == 2
    blobs = DirectoryBlobs(builder.root, owner="test")
    assert (blobs.size(Digest(second[1])) or 0) < 20_000
    big = (builder.context / "big").read_bytes()
    shutil.rmtree(builder.context)
    restored(builder, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {"big": big, "small": b"2"}


def test_I6_kept_comes_before_the_cache_record(builder: Builder) -> None:
    builder.write({"file": "content"})
    builder.must_build("FROM scratch\nCOPY file /\n")
    types = [event["type"] for event in builder.events("LocalCreated", "ContextKept", "CacheRecorded")]
    assert types == ["LocalCreated", "ContextKept", "CacheRecorded"]


def test_a_content_that_is_gone_is_said(builder: Builder, tmp_path: Path) -> None:
    listing = f"file\tfile\t0644\tsha256:{'0' * 64}\n".encode()
    with pytest.raises(VerificationError, match="not kept any more"):
        restore(listing, [tmp_path], [], tmp_path / "out")


# ---------------------------------------------------------------- without a build


@pytest.fixture
def blobs(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "root", owner="test")


@pytest.fixture
def ctx(tmp_path: Path) -> Path:
    (tmp_path / "ctx/d").mkdir(parents=True)
    (tmp_path / "ctx/d/one").write_text("one")
    (tmp_path / "ctx/two").write_text("two")
    return tmp_path / "ctx"


def _mounted(ctx: Path, *sources: str) -> Selection:
    return select(Copy(sources, "/", from_context=True), ctx, (), hash_files=True)


def test_what_an_earlier_pack_holds_is_not_packed_again_unless_that_is_none(ctx: Path, blobs: DirectoryBlobs) -> None:
    (first,) = pack_lost(None, _mounted(ctx, "two"), ctx, blobs)
    whole = _mounted(ctx, ".")
    used, new = pack_lost(None, whole, ctx, blobs, [first])
    assert used == first
    with blobs.open(new) as file, tarfile.open(fileobj=file) as tar:
        assert tar.getnames() == [sha256(b"one").hex]
    no_pack, gone = blobs.put(b"no tar"), sha256(b"gone")
    (again,) = pack_lost(None, whole, ctx, blobs, [no_pack, gone])
    assert again not in {no_pack, gone}


@pytest.mark.parametrize("now", ["gone", "other", "shorter", "a directory"])
def test_a_file_that_changed_since_it_was_selected_is_not_packed(
    ctx: Path, blobs: DirectoryBlobs, tmp_path: Path, now: str
) -> None:
    selection = _mounted(ctx, "two")
    (ctx / "two").unlink()
    if now == "a directory":
        (ctx / "two").mkdir()
    elif now != "gone":
        (ctx / "two").write_text({"other": "owt", "shorter": "t"}[now])
    with pytest.raises(InputError, match="changed during the build"):
        pack_lost(None, selection, ctx, blobs)
    assert {path.name for path in (tmp_path / "root").rglob("*") if path.is_file()} == {"index.json", "oci-layout"}


def test_no_more_is_looked_at_than_is_wanted_and_attributes_come_back(tmp_path: Path, ctx: Path) -> None:
    os.setxattr(ctx / "two", "user.kept", b"\x00\xff")
    listing = select(Copy(("two",), "/", from_context=False), ctx, (), hash_files=True).listing()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "unreadable").symlink_to("/proc/self/mem")
    restore(listing, [ctx, broken], [], tmp_path / "out")
    assert os.getxattr(tmp_path / "out/two", "user.kept") == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "ctx", "out"]


def test_a_pack_whose_member_is_not_what_its_name_says_gives_nothing(tmp_path: Path, ctx: Path) -> None:
    listing = _mounted(ctx, "two").listing()
    pack = [(sha256(b"two").hex.encode(), 0, [memoryview(b"owt")]), (b"other", 0, [])]
    with pytest.raises(VerificationError, match="the content of 'two' is not kept any more"):
        restore(listing, [], [pack], tmp_path / "out")


def test_a_listing_in_which_a_file_holds_another_is_damaged(tmp_path: Path, ctx: Path) -> None:
    listing = _mounted(ctx, "two").listing() + _mounted(ctx, "two").listing().replace(b"two", b"two/x")
    with pytest.raises(VerificationError, match="'two' is no directory"):
        restore(listing, [ctx], [], tmp_path / "out")


def test_a_lost_file_comes_back_from_its_pack_with_its_time(ctx: Path, blobs: DirectoryBlobs, tmp_path: Path) -> None:
    os.utime(ctx / "two", (1_700_000_000, 1_700_000_000))
    selection = _mounted(ctx, "two")
    (pack,) = pack_lost(None, selection, ctx, blobs)
    with blobs.open(pack) as file:
        restore(selection.listing(), [], [regular_files(file)], tmp_path / "out")
    back = tmp_path / "out/two"
    assert (back.read_text(), back.stat().st_mtime_ns) == ("two", 1_700_000_000 * 10**9)


def test_of_single_files_that_all_lie_in_the_layer_nothing_is_packed(ctx: Path, blobs: DirectoryBlobs) -> None:
    op = Copy(("two", "d/one"), "/d/")
    assert pack_lost(op, select(op, ctx, (), hash_files=True), ctx, blobs) == []
    same = Copy(("two", "other/two"), "/d/")
    (ctx / "other").mkdir()
    (ctx / "other/two").write_text("another two")
    (pack,) = pack_lost(same, select(same, ctx, (), hash_files=True), ctx, blobs)
    with blobs.open(pack) as file, tarfile.open(fileobj=file) as tar:
        assert tar.getnames() == [sha256(b"two").hex], "the other one lies over it"


def test_whatever_is_no_file_comes_back_as_its_owners(ctx: Path, tmp_path: Path) -> None:
    (ctx / "link").symlink_to("two")
    os.mkfifo(ctx / "fifo")
    for number, name in enumerate(("link", "fifo", "two", "d"), 5):
        os.chown(ctx / name, number, number + 1, follow_symlinks=False)
    listing = select(Copy((".",), "/", from_context=False), ctx, (), hash_files=True).listing()
    restore(listing, [ctx], [], tmp_path / "out")
    owners = {name: (tmp_path / "out" / name).lstat() for name in ("link", "fifo", "two", "d")}
    assert [(info.st_uid, info.st_gid) for info in owners.values()] == [(5, 6), (6, 7), (7, 8), (8, 9)]
