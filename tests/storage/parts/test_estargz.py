"""eStargz as we write it: by the format document, the same on any number of cores, and read by those who know nothing
of it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import queue
import random
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.compression import STARGZ_CHUNK
from storage.digest import sha256
from storage.errors import VerificationError
from storage.interfaces.images import Descriptor
from storage.parts.estargz import Estargz
from storage.parts.toc import ChunkedToc, reading
from tests.chunked import estargz as by_hand
from tests.storage.layers.trees import GZIP, file, gnu_tar, gnu_untar, info, make_tar, members
from tests.storage.tar import tars

TOC = "stargz.index.json"
LANDMARK = ".no.prefetch.landmark"


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


TAR = make_tar(
    info("etc"), file("etc/one", b"one" * 1000), file("etc/empty"), info("etc/link", tarfile.SYMTYPE, linkname="one"),
    info("etc/hard", tarfile.LNKTYPE, linkname="etc/one"), file("big", noise(2 * STARGZ_CHUNK + 12_345)),
    info("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), file("exactly", noise(STARGZ_CHUNK, 2)),
    file("when", b"x", mtime=1_600_000_000.25), file("n" * 200, b"long name"), file("gone/.wh.this"),
    file("with", b"attribute", pax_headers={"SCHILY.xattr.user.k": "v"}), info("fifo", tarfile.FIFOTYPE),
)  # fmt: skip


def made(
    tar: bytes, *, cut: int = 1 << 20, threads: int | None = None, level: int | None = None
) -> tuple[Estargz, bytes]:
    """The writer, finished, and the blob."""
    writer = Estargz(level, threads)
    out = [writer.write(tar[at : at + cut]) for at in range(0, len(tar), cut)]
    return writer, b"".join([*out, writer.finish()])


def table_of(blob: bytes) -> tuple[Any, int, bytes]:
    """The table of contents, where it begins, and its bytes: by the footer, as the format document says."""
    footer = blob[-51:]
    assert footer[:4] == b"\x1f\x8b\x08\x04"
    assert gzip.decompress(footer) == b""
    start = int(footer[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[start:-51]))) as archive:
        assert archive.getnames() == [TOC]
        data = archive.extractfile(TOC).read()  # type: ignore[union-attr]
    return json.loads(data), start, data


def member_at(blob: bytes, offset: int) -> bytes:
    return zlib.decompressobj(31).decompress(blob[offset:])


def check_by_the_document(blob: bytes, writer: Estargz) -> dict[str, bytes]:
    """Every MUST of the format document; returns the files' contents, read chunk by chunk."""
    tar = gzip.decompress(blob)
    table, start, data = table_of(blob)
    assert table["version"] == 1
    assert writer.diff_id == sha256(tar)
    assert writer.annotations == {
        "containerd.io/snapshot/stargz/toc.digest": sha256(data),
        "io.containers.estargz.uncompressed-size": str(len(tar)),
    }
    contents: dict[str, bytes] = {}
    by_name = {entry["name"]: entry for entry in table["entries"] if entry["type"] != "chunk"}
    for number, entry in enumerate(table["entries"]):
        if entry["type"] not in {"reg", "chunk"} or not by_name[entry["name"]].get("size"):
            assert "offset" not in entry
            continue
        have = contents.get(entry["name"], b"")
        assert entry.get("chunkOffset", 0) == len(have)
        left = by_name[entry["name"]]["size"] - len(have)
        size = entry.get("chunkSize", 0) or left
        follows = [one for one in table["entries"][number + 1 : number + 2] if one["type"] == "chunk"]
        assert bool(entry.get("chunkSize")) == bool(follows), "the last chunk's size is zero"
        assert 0 < entry["offset"] < start
        chunk = member_at(blob, entry["offset"])[:size]
        assert len(chunk) == size
        assert entry["chunkDigest"] == sha256(chunk)
        contents[entry["name"]] = have + chunk
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        listed = [one.name + "/" * one.isdir() for one in archive]
        assert listed[-1] == TOC
        assert listed[:-1] == [entry["name"] for entry in table["entries"] if entry["type"] != "chunk"]
        for one in archive:
            if one.isreg() and one.size and one.name != TOC:
                content = archive.extractfile(one).read()  # type: ignore[union-attr]
                assert contents[one.name] == content
                assert by_name[one.name]["digest"] == sha256(content)
    return contents


def test_it_is_what_the_format_document_asks_for() -> None:
    writer, blob = made(TAR)
    contents = check_by_the_document(blob, writer)
    assert contents[LANDMARK] == b"\x0f"
    assert members(gzip.decompress(blob)) == [LANDMARK, *members(TAR), TOC]
    table, _, _ = table_of(blob)
    told = {entry["name"]: entry for entry in table["entries"] if entry["type"] != "chunk"}
    assert sum(entry["name"] == "big" for entry in table["entries"]) == 3
    assert (told["etc/link"]["type"], told["etc/link"]["linkName"]) == ("symlink", "one")
    assert (told["etc/hard"]["type"], told["etc/hard"]["linkName"]) == ("hardlink", "etc/one")
    assert (told["dev/null"]["type"], told["dev/null"]["devMajor"], told["dev/null"]["devMinor"]) == ("char", 1, 3)
    assert told["when"]["modtime"] == "2020-09-13T12:26:40.25Z"
    assert told["etc/one"]["modtime"] == "2023-11-14T22:13:20Z"
    assert told["with"]["xattrs"] == {"user.k": base64.b64encode(b"v").decode()}
    assert told["etc/"]["mode"] == 0o755


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("cut", [511, 100_000, 1 << 20, len(TAR)])
def test_any_number_of_threads_and_any_cutting_gives_the_same_bytes(threads: int, cut: int) -> None:
    assert made(TAR, cut=cut, threads=threads)[1] == ONE


ONE = made(TAR, threads=1)[1]


def test_levels_differ_in_size_only() -> None:
    text = make_tar(*(file(f"{n}", b"line %d of many\n" % n * 3000) for n in range(30)))
    sizes = []
    for level in (0, 1, 9):
        writer, blob = made(text, level=level)
        check_by_the_document(blob, writer)
        sizes.append(len(blob))
    assert len(set(sizes)) == 3


def test_tools_that_know_nothing_of_it_read_a_gzip_layer(tmp_path: Path) -> None:
    _, blob = made(TAR)
    (tmp_path / "layer.tar.gz").write_bytes(blob)
    subprocess.run(["gzip", "-t", str(tmp_path / "layer.tar.gz")], check=True)
    listed = subprocess.run(["tar", "-tzf", str(tmp_path / "layer.tar.gz")], check=True, capture_output=True, text=True)
    assert [line.rstrip("/") for line in listed.stdout.splitlines()] == [LANDMARK, *members(TAR), TOC]
    assert listed.stderr == ""


def look(blob: bytes, writer: Estargz) -> ChunkedToc:
    """The table as our own reader has it, verified against the annotation."""
    steps = reading(Descriptor(GZIP, sha256(blob), len(blob), writer.annotations))
    assert steps is not None
    answer = None
    try:
        while True:
            start, end = next(steps) if answer is None else steps.send(answer)
            answer = blob[start:end]
    except StopIteration as done:
        table: ChunkedToc = done.value
    return table


def test_our_own_reader_finds_every_chunk() -> None:
    writer, blob = made(TAR)
    toc = look(blob, writer)
    assert toc.look(b"gone/this").kind == "whiteout"
    with tarfile.open(fileobj=io.BytesIO(TAR)) as archive:
        for one in archive:
            if not one.isreg() or ".wh." in one.name:
                continue
            content = b""
            for chunk in toc.chunks(toc.nodes[one.name.encode()]):
                piece = member_at(blob[: chunk.end], chunk.start)[chunk.skip : chunk.skip + chunk.size]
                assert sha256(piece) == chunk.digest
                content += piece
            assert content == archive.extractfile(one).read()  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [("--format=gnu",), ("--format=gnu", "--sparse"), ("--format=posix", "--sparse")])
def test_sparse_files_are_spelled_out_and_names_stay(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as sparse:
        for at in (10_000, 5_000_000, 9_999_990):
            sparse.seek(at)
            sparse.write(b"some data")
        sparse.truncate(11_000_000)
    (tree / ("n" * 150)).write_bytes(b"after it")
    writer, blob = made(gnu_tar(tree, *options))
    contents = check_by_the_document(blob, writer)
    assert contents["./sparse"] == (tree / "sparse").read_bytes()
    gnu_untar(gzip.decompress(blob), tmp_path / "out")
    assert (tmp_path / "out" / "sparse").read_bytes() == contents["./sparse"]
    assert (tmp_path / "out" / ("n" * 150)).read_bytes() == b"after it"


@pytest.mark.parametrize("files", [1, 2000])
def test_holes_without_end_are_refused_in_one_file_or_in_many(files: int) -> None:
    members = [tars.Member(b"%d" % number, segments=(), size=(1 << 50) // files) for number in range(files)]
    with pytest.raises(VerificationError, match="holes"):
        made(tars.write(members))


def test_a_tar_that_ends_where_a_member_does_has_no_empty_one() -> None:
    """Behind the landmark's byte and its padding, 2,048 headers are what one member takes."""
    writer, blob = made(make_tar(*(info(f"{number}") for number in range(2048))))
    assert len(check_by_the_document(blob, writer)) == 1
    assert len(look(blob, writer).nodes) == 2048 + 3


def test_I3_what_comes_after_damage_is_told_of_it() -> None:
    writer = Estargz()
    writer.write(b"x" * 512)
    while any(thread.name == "estargz" for thread in threading.enumerate()):
        time.sleep(0.001)
    with pytest.raises(VerificationError, match="not a tar"):
        writer.write(bytes(512))
    writer.close()


def test_a_table_that_grows_without_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.parts.table._LARGEST", 1000)
    with pytest.raises(VerificationError, match="too many files for the table"):
        made(make_tar(*(file(f"{number}") for number in range(20))))


def test_a_time_that_no_calendar_has_is_not_told() -> None:
    _, blob = made(make_tar(file("f", b"x", pax_headers={"mtime": "999999999999"})))
    assert [entry.get("modtime") for entry in table_of(blob)[0]["entries"] if entry["name"] == "f"] == [None]


@pytest.mark.parametrize("where", ["uid", "gid"])
def test_a_number_that_no_table_can_say_is_refused(where: str) -> None:
    with pytest.raises(VerificationError, match="'f': a number out of range"):
        made(make_tar(file("f", pax_headers={where: "9" * 20})))


@pytest.mark.parametrize("other", [by_hand, lambda tar: made(tar)[1]], ids=["another writer's", "ours"])
def test_an_estargz_made_of_one_has_one_landmark_and_one_table(other: Callable[[bytes], Any]) -> None:
    given = other(TAR)
    tar = gzip.decompress(given if isinstance(given, bytes) else given.blob)
    prefetched = make_tar(file("./.prefetch.landmark", b"\x0f"))[:1024] + tar
    for one in (tar, prefetched):
        assert made(one)[1] == ONE


def test_a_name_that_is_no_unicode_is_in_the_tar_and_told_to_be_none() -> None:
    tar = make_tar(file("b\udcff", b"x"), form=tarfile.GNU_FORMAT)
    writer, blob = made(tar)
    assert b"b\xff" in gzip.decompress(blob)
    table, _, _ = table_of(blob)
    assert "b\ufffd" in [entry["name"] for entry in table["entries"]]
    with pytest.raises(VerificationError, match="name that cannot be told"):
        look(blob, writer)


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 40_000) | st.sampled_from([0, 1, 511, 512, STARGZ_CHUNK, STARGZ_CHUNK + 1]), max_size=6),
    st.integers(1, 4),
)
def test_any_sizes(sizes: list[int], threads: int) -> None:
    tar = make_tar(*(file(f"f{n}", noise(size, n)) for n, size in enumerate(sizes)), info("end"))
    writer, blob = made(tar, threads=threads)
    check_by_the_document(blob, writer)


def test_many_headers_in_a_row_are_no_member_without_end() -> None:
    tar = make_tar(*(info(f"directory/{n}") for n in range(5000)), file("end", b"x"))
    writer, blob = made(tar)
    check_by_the_document(blob, writer)
    sizes, rest = [], blob
    while rest:
        member = zlib.decompressobj(31)
        sizes.append(len(member.decompress(rest)))
        rest = member.unused_data
    assert max(sizes[:-2]) < 2 << 20


@pytest.mark.parametrize("cut", [0, 1, 600, len(TAR) // 2])
def test_I3_what_is_no_tar_is_an_error_and_no_thread_stays(cut: int) -> None:
    before = set(threading.enumerate())
    writer = Estargz(threads=2)
    bad = bytearray(TAR)
    bad[512 + 20] ^= 1  # in a header
    with pytest.raises(VerificationError):
        for at in range(0, len(TAR), 100_000):
            writer.write(bytes(bad[at : at + 100_000]))
        writer.finish()
    writer.close()
    truncated = Estargz(threads=2)
    truncated.write(TAR[:cut])
    if cut:
        with pytest.raises(VerificationError):
            truncated.finish()
    truncated.close()
    truncated.close()
    assert set(threading.enumerate()) <= before


def test_nothing_at_all_is_an_empty_layer() -> None:
    for tar in (b"", bytes(1024), bytes(10_240)):
        writer, blob = made(tar)
        assert list(check_by_the_document(blob, writer)) == [LANDMARK]


def test_memory_does_not_grow_with_the_layer() -> None:
    program = """
import resource, sys, tarfile
from storage.parts.estargz import Estargz
block = bytes(range(256)) * 4096
def layer(files, blocks):
    for number in range(files):
        one = tarfile.TarInfo(f"f{number}")
        one.size = blocks << 20
        yield one.tobuf()
        for _ in range(blocks):
            yield block
    yield bytes(1024)
writer, size, before = Estargz(threads=2), 0, 0
for number, piece in enumerate(layer(5, 50)):
    size += len(writer.write(piece))
    if number == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size += len(writer.finish())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # KiB, of 250 MiB


def test_who_writes_waits_for_compression_that_is_slow() -> None:
    class Full(queue.Queue[bytes | None]):
        """As when nobody has taken anything for a while."""

        refused = 0

        def put(self, item: bytes | None, block: bool = True, timeout: float | None = None) -> None:
            self.refused += 1
            if self.refused % 3:
                raise queue.Full
            super().put(item, block, timeout)

    tar = make_tar(file("a", b"a" * 1000), file("b", noise(5000)))
    writer, slow = Estargz(), Estargz()
    slow._input = Full(2)
    assert slow.write(tar) + slow.finish() == writer.write(tar) + writer.finish()
    assert slow._input.refused > 2
