"""Tables of contents: found only where the manifest promises them, verified, and bounded whatever they say."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.digest import Digest, sha256
from storage.errors import DiskError, TocUnusable, VerificationError
from storage.interfaces.images import ESTARGZ, Descriptor
from storage.interfaces.parts import Part
from storage.layers.directory import DirectoryLayers
from storage.parts.toc import FOOTER_MARK, LARGEST, ChunkedToc, reading
from storage.parts.trees import DirectoryParts, UsableToc, merge
from storage.scratch import Scratch
from tests.chunked import MAKERS, Made, estargz, gzip_member, zstd_chunked, zstd_frame
from tests.registry_fixture import digest_of
from tests.storage.layers.trees import facts, file, info, make_tar

TAR = make_tar(
    info("etc"), file("etc/one", b"one" * 1000), file("etc/two", b"2"),
    info("etc/link", tarfile.SYMTYPE, linkname="one"), file("var/.wh.gone"), file("opaque/.wh..wh..opq"),
    file("last", bytes(5000)),
)  # fmt: skip
POSITION = "io.github.containers.zstd-chunked.manifest-position"
CHECKSUM = "io.github.containers.zstd-chunked.manifest-checksum"


def blob_of(made: Made, **notes: str) -> Descriptor:
    told = Descriptor.from_json(made.descriptor)
    return Descriptor(told.media_type, told.digest, told.size, {**told.annotations, **notes})


def read(blob: Descriptor, data: bytes) -> tuple[ChunkedToc, list[tuple[int, int]]]:
    """The table, and the ranges that were read for it."""
    steps, ranges = reading(blob), []
    assert steps is not None
    answer = None
    try:
        while True:
            start, end = next(steps) if answer is None else steps.send(answer)
            assert 0 <= start < end <= blob.size
            ranges.append((start, end))
            answer = data[start:end]
    except StopIteration as done:
        return done.value, ranges


@pytest.mark.parametrize("maker", MAKERS)
def test_a_table_tells_what_the_layer_has(maker: Callable[..., Made]) -> None:
    made = maker(TAR)
    toc, ranges = read(blob_of(made), made.blob)
    assert sum(end - start for start, end in ranges) < len(made.blob)
    assert {path: toc.look(path).kind for path in (b"", b"etc", b"etc/one", b"etc/link", b"none", b"var/gone")} == {
        b"": "directory", b"etc": "directory", b"etc/one": "other", b"etc/link": "symlink", b"none": "missing",
        b"var/gone": "whiteout",
    }  # fmt: skip
    assert toc.look(b"etc/link").target == b"one"
    assert toc.look(b"var").implied
    assert not toc.look(b"etc").implied
    assert toc.look(b"opaque/anything").ends
    assert toc.look(b"etc/one/below").ends
    assert not toc.look(b"etc/none").ends
    assert toc.names(b"etc") == {b"one", b"two", b"link"}


def test_a_large_table_is_read_in_two_goes_and_a_small_one_in_one() -> None:
    many = estargz(make_tar(*(file(f"f/{n}", os.urandom(10)) for n in range(2000))))
    assert len(read(blob_of(many), many.blob)[1]) == 2
    few = estargz(make_tar(file("big", os.urandom(1_000_000))))
    assert len(read(blob_of(few), few.blob)[1]) == 1


def test_without_annotations_there_is_no_table() -> None:
    made = estargz(TAR)
    assert reading(Descriptor(made.descriptor["mediaType"], Digest(made.descriptor["digest"]), len(made.blob))) is None
    half = blob_of(zstd_chunked(TAR)).annotations
    for name in (POSITION, CHECKSUM):
        only = {name: half[name]}
        assert reading(Descriptor("x+zstd", Digest(made.descriptor["digest"]), 9999, only)) is None


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_I3_no_damaged_table_is_believed(maker: Callable[..., Made], at: float) -> None:
    made = maker(TAR)
    blob = blob_of(made)
    _, ranges = read(blob, made.blob)
    start, end = ranges[-1]
    damaged = bytearray(made.blob)
    damaged[start + int((end - start) * at)] ^= 0x10
    try:
        read(blob, bytes(damaged))  # a byte that says nothing, as that of a gzip header, may be another
    except TocUnusable:
        pytest.fail("damage is the provider's fault: another one may have it right")
    except VerificationError:
        pass
    else:
        assert maker is estargz


@pytest.mark.parametrize(
    "position",
    ["", "1:2:3", "0:10:10:1", "a:b:c:1", "-5:10:10:1", f"100:{2**40}:100:1", f"{2**60}:10:10:1", "100:50:50:2",
     f"100:50:{LARGEST + 1}:1", "100:0:0:1", "99999999999999999999:1:1:1", "١٠٠:50:50:1"],
)  # fmt: skip
def test_a_position_that_cannot_be_is_unusable(position: str) -> None:
    made = zstd_chunked(make_tar(file("x", os.urandom(5000))))
    with pytest.raises(TocUnusable):
        read(blob_of(made, **{POSITION: position}), made.blob)


def bomb_estargz() -> tuple[bytes, dict[str, str]]:
    """A table of 1 GiB, told by its header."""
    header = tarfile.TarInfo("stargz.index.json")
    header.size = 1 << 30
    packed = gzip.compress(header.tobuf() + bytes(1 << 26))
    start = len(gzip_member(b"x" * 100))
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\x00SG\x16\x00" + b"%016xSTARGZ" % start
    footer += b"\x01\0\0\xff\xff" + bytes(8)
    return gzip_member(b"x" * 100) + packed + footer, {"containerd.io/snapshot/stargz/toc.digest": digest_of(b"")}


def bomb_zstd() -> tuple[bytes, dict[str, str]]:
    """A table that is told to be small and is not."""
    packed = zstd_frame(bytes(1 << 28))
    blob = b"\x28\xb5\x2f\xfd" + bytes(100) + packed
    return blob, {POSITION: f"104:{len(packed)}:1000:1", CHECKSUM: digest_of(packed)}


@pytest.mark.parametrize("bomb", [bomb_estargz, bomb_zstd])
def test_a_bomb_is_not_unpacked_into_memory(bomb: Callable[[], tuple[bytes, dict[str, str]]]) -> None:
    data, notes = bomb()
    blob = Descriptor("layer+zstd" if POSITION in notes else "layer+gzip", Digest(digest_of(data)), len(data), notes)
    tracemalloc.start()
    with pytest.raises(VerificationError):
        read(blob, data)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "footer", [bytes(51), b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\x00SG\x16\x00" + b"zz" * 8 + b"STARGZ" + bytes(13)]
)
def test_a_blob_without_the_footer_is_the_providers_fault(footer: bytes) -> None:
    made = estargz(TAR)
    with pytest.raises(VerificationError) as caught:
        read(blob_of(made), made.blob[:-51] + footer)
    assert not isinstance(caught.value, TocUnusable)


def table(*entries: object) -> bytes:
    return json.dumps({"version": 1, "entries": list(entries)}).encode()


def reg(name: str, **more: object) -> dict[str, object]:
    return {"type": "reg", "name": name, "mode": 0o644, **more}


def test_the_last_entry_of_a_name_wins_and_takes_what_was_below() -> None:
    toc = ChunkedToc(
        table({"type": "dir", "name": "a", "mode": 0o755}, reg("a/b"), reg("./a/"), reg("c"),
              {"type": "hardlink", "name": "d", "linkName": "c"}, {"type": "dir", "name": "c", "mode": 0o755}), 100
    )  # fmt: skip
    assert toc.look(b"a").kind == "other"
    assert toc.look(b"a/b").kind == "missing"
    assert toc.names(b"a") == frozenset()
    assert toc.look(b"c").kind == "directory"
    assert toc.look(b"d").kind == "other"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"entries": 5}', b"[" * 100_000, b'{"entries": [' + b"{}," * 500_000 + b"{}]}",
     table(5), table({"type": "reg"}), table(reg("a"), reg("a/b")), table(reg("/../x")),
     table({"type": "chunk", "name": "a"}), table(reg("a"), {"type": "chunk", "name": "b"}), table(reg("")),
     table({"type": "symlink", "name": "a", "linkName": "\0"}), table(reg("\ufffd")), table({"type": []}),
     table({"type": {}, "name": "a"}), b'{"entries": [{"type": "reg", "name": "\\ud800"}]}', table(reg("a/.wh...")),
     table(reg("a/.wh."))],
)  # fmt: skip
def test_what_is_no_table_is_unusable(data: bytes) -> None:
    with pytest.raises(TocUnusable):
        toc = ChunkedToc(data, 100)
        toc.look(b"a")


@pytest.mark.parametrize("name", ["user.a\0b", "user.a=b"])
def test_an_attribute_that_no_file_or_no_layer_can_have_makes_a_table_unusable(tmp_path: Path, name: str) -> None:
    toc = UsableToc(ChunkedToc(table(reg("a", xattrs={name: ""})), 100), Scratch(tmp_path, "b1"))
    with pytest.raises(TocUnusable, match="xattrs"):
        toc.part(Part(set(), {b"a"}, set(), lambda _: "nothing"))
    assert list(tmp_path.iterdir()) == []


def test_neighbouring_ranges_are_read_in_one() -> None:
    assert merge([(5000, 6000), (0, 100), (100, 200), (5000, 6000)]) == [(0, 6000)]
    assert merge([(0, 100), (50_000, 50_100)]) == [(0, 100), (50_000, 50_100)]
    assert len(merge((n * 100_000, n * 100_000 + 10) for n in range(1000))) <= 64
    assert merge([]) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="ownership needs root")
def test_zeros_are_not_read_and_not_stored(tmp_path: Path) -> None:
    data = os.urandom(3000)

    def with_hole(toc: dict[str, list[dict[str, object]]]) -> None:
        (entry,) = toc["entries"]
        entry.update(size=3000 + (1 << 30), chunkSize=3000)
        toc["entries"].append({"type": "chunk", "name": "f", "chunkOffset": 3000, "chunkSize": 1 << 30,
                               "chunkType": "zeros"})  # fmt: skip

    made = zstd_chunked(make_tar(file("f", data)), edit=with_hole)
    parts = DirectoryParts(tmp_path, "b1")
    steps = parts.toc(blob_of(made))
    assert steps is not None
    start, end = next(steps)
    with pytest.raises(StopIteration) as done:
        steps.send(made.blob[start:end])
    reader = done.value.value.part(Part({b""}, {b"f"}, set(), lambda _: "nothing"))
    for start, end in reader.ranges:
        reader.write(made.blob[start:end])
    found = (reader.lay_out() / "f").stat()
    assert found.st_size == 3000 + (1 << 30)
    assert found.st_blocks * 512 < 100_000
    reader.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="ownership and devices need root")
@pytest.mark.parametrize("maker", MAKERS)
def test_all_there_is_to_a_file_comes_from_the_table(maker: Callable[..., Made], tmp_path: Path) -> None:
    tar = make_tar(
        info("d", mode=0o2751, uid=11, gid=12, mtime=1_500_000_000),
        file("d/f", b"data", mode=0o6755, uid=2**31, gid=3, mtime=1_400_000_000,
             pax_headers={"SCHILY.xattr.user.note": "hé",
                          "SCHILY.xattr.security.capability": "\x01\x00\x00\x02" + "\0" * 16}),
        info("d/hard", tarfile.LNKTYPE, linkname="d/f"), info("d/pipe", tarfile.FIFOTYPE, mode=0o600),
        info("d/dev", tarfile.CHRTYPE, devmajor=1, devminor=5),
        info("d/disk", tarfile.BLKTYPE, devmajor=259, devminor=7), file("d/empty"), file(f"d/{'n' * 200}", b"long"),
        info("d/link", tarfile.SYMTYPE, linkname="/else/where", uid=5),
        file("d/grün", b"utf-8"), file("implied/x", b"x"),
    )  # fmt: skip
    made = maker(tar)
    toc, _ = read(blob_of(made), made.blob)
    parts = DirectoryParts(tmp_path / "tmp", "b1")
    steps = parts.toc(blob_of(made))
    assert steps is not None
    answer = None
    try:
        while True:
            start, end = next(steps) if answer is None else steps.send(answer)
            answer = made.blob[start:end]
    except StopIteration as done:
        usable = done.value
    reader = usable.part(Part(set(), set(), {b""}, lambda _: "nothing"))
    for start, end in reader.ranges:
        reader.write(made.blob[start:end])
    ours = facts(reader.lay_out())
    layers = DirectoryLayers(tmp_path / "layers", tmp_path / "tmp", "b1")
    whole = Digest(made.descriptor["diff_id"])
    layers.unpack(whole, made.descriptor["mediaType"], io.BytesIO(made.blob))
    assert ours == facts(layers.lower(whole))
    assert (tmp_path / "tmp").exists()
    assert toc.entries == usable.entries


LAYER = "application/vnd.oci.image.layer.v1.tar"


def estargz_footer(start: int) -> bytes:
    return b"\x1f\x8b\x08\x04" + bytes(6) + b"\x1a\x00" + FOOTER_MARK + b"%016xSTARGZ" % start + bytes(13)


@pytest.mark.parametrize(
    ("size", "start", "before", "why"),
    [
        (51, 0, b"", "has no room for one"), (1000, 0, b"", "points to 0"), (1000, 990, b"", "points to 990"),
        (64 << 20, 1, b"", "before its end"),
        (1000, 1, gzip.compress(make_tar(file("other")), mtime=0), "no table of contents"),
    ],
)  # fmt: skip
def test_a_footer_that_points_nowhere_is_said(size: int, start: int, before: bytes, why: str) -> None:
    blob = Descriptor(LAYER, sha256(b""), size, {ESTARGZ: str(sha256(b""))})
    data = (bytes(start) + before).ljust(1000 - 51, b"\0") + estargz_footer(start)
    steps = reading(blob)
    assert steps is not None
    with pytest.raises(VerificationError, match=why):
        asked = next(steps)
        while True:
            offset = size - len(data)
            asked = steps.send(data[max(0, asked[0] - offset) : asked[1] - offset])


def test_a_table_in_damaged_zstd_is_unusable() -> None:
    data = b"\x28\xb5\x2f\xfd" + b"damaged" * 5
    prefix = "io.github.containers.zstd-chunked."
    notes = {f"{prefix}manifest-position": f"10:{len(data)}:90:1", f"{prefix}manifest-checksum": str(sha256(data))}
    steps = reading(Descriptor(f"{LAYER}+zstd", sha256(b""), 1000, notes))
    assert steps is not None
    next(steps)
    with pytest.raises(TocUnusable):
        steps.send(data)


def test_what_a_table_says_of_directories_devices_and_chunks() -> None:
    folder = {"type": "dir", "name": "d", "mode": 0o755}
    chunk = {"type": "chunk", "name": "f", "chunkOffset": 7, "offset": 5}
    toc = ChunkedToc(
        table(folder, {**folder, "mode": 0o700}, {"type": "char", "name": "w"}, reg("d/.wh..wh.plnk"),
              reg("f", size=9, offset=2, chunkSize=4, chunkDigest=str(sha256(b""))), chunk), 100
    )  # fmt: skip
    assert toc.names(b"") == {b"d", b"w", b"f"}
    assert (toc.nodes[b"d"].told or {})["mode"] == 0o700
    assert toc.look(b"w").kind == "whiteout"
    with pytest.raises(TocUnusable, match="a hole in it"):
        toc.chunks(toc.nodes[b"f"])


def test_a_disk_that_refuses_is_said_of_parts_too(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "tmp", "b1")
    toc = UsableToc(ChunkedToc(table(reg("a", size=1, offset=2, chunkDigest=str(sha256(b"")))), 100), scratch)
    part = toc.part(Part(set(), {b"a"}, set(), lambda _: "nothing"))
    (directory,) = scratch.tmp.iterdir()
    directory.rmdir()
    with pytest.raises(DiskError, match="reading a part"):
        part.write(b"x")
    with pytest.raises(DiskError, match="laying out a part"):
        part.lay_out()
    part.discard()
    scratch.tmp.rmdir()
    scratch.tmp.write_text("no directory")
    with pytest.raises(DiskError, match="beginning to read a part"):
        toc.part(Part(set(), {b"a"}, set(), lambda _: "nothing"))


@pytest.mark.parametrize("where", ["size", "innerOffset"])
def test_I3_many_files_of_the_same_bytes_do_not_expand_without_bound(tmp_path: Path, where: str) -> None:
    digest = str(sha256(bytes(1000)))
    files = [reg(f"f{n}", **{"size": 1000, where: 1000}, offset=50, digest=digest) for n in range(20)]
    toc = UsableToc(ChunkedToc(table(*files), 1000), Scratch(tmp_path, "b1"), 39_000 if where != "size" else 19_000)
    with pytest.raises(TocUnusable, match="its files expand to more than"):
        toc.part(Part(set(), set(), {b""}, lambda _: "nothing"))
    toc.part(Part(set(), {b"f%d" % n for n in range(19)}, set(), lambda _: "nothing")).discard()
    assert list(tmp_path.iterdir()) == []


def test_I3_no_tar_where_the_footer_points_is_the_providers_fault() -> None:
    member = gzip_member(bytes(1024))
    blob = b"?" + member + estargz_footer(1)
    told = Descriptor(f"{LAYER}+gzip", sha256(blob), len(blob), {ESTARGZ: str(sha256(b""))})
    with pytest.raises(VerificationError, match="no table of contents where the layer's footer points to") as caught:
        read(told, blob)
    assert not isinstance(caught.value, TocUnusable)


@pytest.mark.parametrize("mode", [1 << 33, (1 << 63) - 1])
def test_a_mode_that_no_kernel_has_gives_its_permission_bits(tmp_path: Path, mode: int) -> None:
    toc = UsableToc(ChunkedToc(table(reg("a", mode=mode | 0o640)), 100), Scratch(tmp_path, "b1"))
    part = toc.part(Part({b"a"}, set(), set(), lambda _: "nothing"))
    assert (part.lay_out() / "a").stat().st_mode & 0o7777 == (mode | 0o640) & 0o7777
