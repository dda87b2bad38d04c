"""Reading every tar dialect that layers come in, and writing one that every reader understands."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import VerificationError
from storage.tar.pack import encode
from storage.tar.reader import CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry, TarReader
from tests.storage.layers.trees import file, gnu_tar, gnu_untar, info, make_tar, names
from tests.storage.tar import tars

LONG = "d" * 90 + "/" + "e" * 120 + "/" + "f" * 200


class Source:
    def __init__(self, data: bytes, most: int = 1 << 20) -> None:
        self._stream = io.BytesIO(data)
        self._most = most

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read(self._most)


def read(data: bytes, most: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    reader = TarReader(Source(data, most))
    return [(entry, b"".join(map(bytes, reader.data()))) for entry in reader]


def only(data: bytes) -> Entry:
    ((entry, _),) = read(data)
    return entry


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("most", [1 << 20, 700, 1])
def test_members_come_as_they_were_written(form: int, most: int) -> None:
    tar = make_tar(
        info("dir", uid=1000, gid=1001, mode=0o1777),
        file("dir/file", b"content" * 100, mode=0o4755),
        file("dir/empty"),
        info("dir/link", tarfile.SYMTYPE, linkname="../x"),
        info("dir/hard", tarfile.LNKTYPE, linkname="dir/file"),
        info("dir/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        info("dir/pipe", tarfile.FIFOTYPE),
        form=form,
    )
    found = read(tar, most)
    assert [(entry.name.rstrip(b"/"), entry.type) for entry, _ in found] == [
        (b"dir", DIRECTORY), (b"dir/file", REGULAR), (b"dir/empty", REGULAR), (b"dir/link", SYMLINK),
        (b"dir/hard", HARD_LINK), (b"dir/null", CHARACTER), (b"dir/pipe", FIFO),
    ]  # fmt: skip
    assert (found[0][0].mode, found[0][0].uid, found[0][0].gid) == (0o1777, 1000, 1001)
    assert (found[1][1], found[1][0].mode, found[1][0].mtime) == (b"content" * 100, 0o4755, 1_700_000_000 * 10**9)
    assert found[3][0].link == b"../x"
    assert found[4][0].link == b"dir/file"
    assert found[5][0].device == (1, 3)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_odd_names_and_big_owners(form: int) -> None:
    odd = os.fsdecode(b"l\xe4tin1 \xff")
    tar = make_tar(
        file(LONG, b"1"),
        info("l", tarfile.SYMTYPE, linkname=LONG),
        file("grün", b"2", uid=2**31, gid=2**32 - 2),
        file(odd, b"3"),
        form=form,
    )
    found = [entry for entry, _ in read(tar)]
    assert [entry.name for entry in found] == [LONG.encode(), b"l", "grün".encode(), os.fsencode(odd)]
    assert found[1].link == LONG.encode()
    assert (found[2].uid, found[2].gid) == (2**31, 2**32 - 2)


def test_ustar_prefixes_are_joined() -> None:
    name = "p" * 120 + "/" + "n" * 90
    assert only(make_tar(file(name), form=tarfile.USTAR_FORMAT)).name == name.encode()


@pytest.mark.parametrize(
    ("written", "nanoseconds"),
    [("1.5", 1_500_000_000), ("1700000000.123456789", 1_700_000_000_123_456_789), ("-1.25", -1_250_000_000),
     ("0", 0), ("7.0000000019", 7_000_000_001), ("5.", 5_000_000_000)],
)  # fmt: skip
def test_pax_times_are_exact(written: str, nanoseconds: int) -> None:
    assert only(make_tar(file("f", pax_headers={"mtime": written}))).mtime == nanoseconds


def test_gnu_times_before_the_epoch() -> None:
    assert only(make_tar(file("f", mtime=-5), form=tarfile.GNU_FORMAT)).mtime == -5 * 10**9


def test_global_headers_change_nothing_as_for_docker_and_podman() -> None:
    out = io.BytesIO()
    headers = {"comment": "x", "uid": "77", "path": "elsewhere", "SCHILY.xattr.user.x": "y", "size": "512"}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        tar.addfile(info("a", tarfile.REGTYPE, pax_headers={"uid": "3"}))
        tar.addfile(info("b", tarfile.REGTYPE))
    found = [(entry.name, entry.uid, entry.size, entry.xattrs) for entry, _ in read(out.getvalue())]
    assert found == [(b"a", 3, 0, {}), (b"b", 0, 0, {})]


def test_an_empty_long_name_names_nothing() -> None:
    tar = tars.header(b"././@LongLink", b"L", 0) + tars.header(b"f", b"0", 0)
    assert [entry.name for entry, _ in read(tar + bytes(1024))] == [b"f"]


def test_the_words_of_sparse_files_in_a_name_or_a_value_make_none() -> None:
    name = "GNU.sparse.major=1 " + "x" * 100
    tar = make_tar(file(name, b"data", pax_headers={"SCHILY.xattr.user.note": "GNU.sparse.map=0,0"}))
    assert [(entry.name, entry.segments, data) for entry, data in read(tar)] == [(name.encode(), None, b"data")]


@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_I3_many_extended_headers_of_one_member_count_together(kind: bytes) -> None:
    records = b"".join(tars.pax_record(b"key%04d" % number, b"v" * 200) for number in range(1000))
    pax = tars.header(b"x", kind, len(records)) + records + bytes(-len(records) % 512)
    assert [entry.name for entry, _ in read(pax * 4 + make_tar(file("f")))] == [b"f"]
    assert len(read((pax * 4 + make_tar(file("f"))[:512]) * 3)) == 3  # each member has its own
    with pytest.raises(VerificationError, match="an extended header of"):
        read(pax * 6 + make_tar(file("f")))


def test_attributes_are_bytes() -> None:
    value = b"\x01\0\xff=\n"
    entry = only(make_tar(file("f", pax_headers={"SCHILY.xattr.user.x": value.decode("utf-8", "surrogateescape")})))
    assert entry.xattrs == {b"user.x": value}


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_sparse_files_of_every_version_name_their_segments(tmp_path: Path, version: str, pieces: int) -> None:
    with (tmp_path / "sparse").open("wb") as out:
        for number in range(pieces):
            out.seek(number * 65536)
            out.write(b"%06d" % number)
        out.truncate(pieces * 65536 + 100_000)
    options = ["--format=gnu"] if version == "gnu" else ["--format=posix", f"--sparse-version={version}"]
    tar = gnu_tar(tmp_path, "--sparse", *options)
    ((entry, stored),) = [(entry, data) for entry, data in read(tar) if entry.type == REGULAR]
    assert entry.name == b"./sparse"
    assert entry.size == pieces * 65536 + 100_000
    whole, at = bytearray(entry.size), 0
    assert entry.segments is not None
    for offset, length in entry.segments:
        whole[offset : offset + length] = stored[at : at + length]
        at += length
    assert bytes(whole) == (tmp_path / "sparse").read_bytes()
    assert tar[entry.offset : entry.offset + entry.stored] == stored


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("most", [1 << 20, 700, 1])
@pytest.mark.parametrize("asked", [True, False])
def test_offset_is_where_in_the_tar_the_data_lies(form: int, most: int, asked: bool) -> None:
    name = "p" * 120 + "/" + "n" * 90
    written = {b"a": b"1" * 100, b"b": b"", b"c": b"22" * 1000, name.encode(): b"3" * 512, b"z": b"4"}
    tar = make_tar(info("dir"), *(file(key.decode(), data) for key, data in written.items()), form=form)
    reader = TarReader(Source(tar, most))
    found = {}
    for entry in reader:
        if entry.type == REGULAR:
            found[entry.name] = tar[entry.offset : entry.offset + entry.stored]
            assert entry.offset % 512 == 0
        if asked:
            list(reader.data())
    assert found == written


@pytest.mark.parametrize(("kind", "found"), [
    (b"1", HARD_LINK), (b"2", SYMLINK), (b"3", CHARACTER), (b"5", DIRECTORY), (b"6", FIFO), (b"\0", DIRECTORY),
])  # fmt: skip
def test_only_regular_files_have_data_whatever_a_header_says(tmp_path: Path, kind: bytes, found: bytes) -> None:
    odd = header(name=b"odd/\0" if kind == b"\0" else b"odd\0", type=kind, size=b"00000001274\0", link=b"f")
    tar = header() + odd + header(name=b"last\0", size=b"00000000004\0") + b"last".ljust(512, b"\0") + bytes(1024)
    entries = read(tar)
    assert [(entry.type, entry.size, entry.stored) for entry, _ in entries] == [
        (REGULAR, 0, 0), (found, 0, 0), (REGULAR, 4, 4)
    ]  # fmt: skip
    assert entries[2][1] == b"last"
    gnu_untar(tar, tmp_path / "out")
    assert names(tmp_path / "out") == ["f", "last", "odd"]
    assert (tmp_path / "out" / "last").read_bytes() == b"last"


def test_a_checksum_of_signed_bytes_is_one() -> None:
    block = bytearray(header(name=b"\xe4\xff\0"))
    block[148:156] = b"%06o\0 " % (int(block[148:154], 8) - 512)
    assert only(bytes(block)).name == b"\xe4\xff"


@pytest.mark.parametrize("change", [1, 255, 65521, 131042])
def test_I3_a_checksum_that_is_a_little_off_is_none(change: int) -> None:
    block = bytearray(header(name=b"\xff" * 100, link=b"\xff" * 100, names=b"\xff" * 64))
    right = int(block[148:154], 8)
    for wrong in (right + change, right - change):
        if wrong >= 0:
            block[148:156] = b"%06o\0 " % wrong
            with pytest.raises(VerificationError, match="checksum"):
                read(bytes(block))


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(1024) + b"trailing garbage" * 100])
def test_an_archive_may_end_in_many_ways(end: bytes) -> None:
    body = make_tar(file("f", b"x" * 600))[: 512 + 1024]
    reader = TarReader(Source(body + end, 500))
    assert [entry.name for entry in reader] == [b"f"]
    reader.drain()


def header(**fields: bytes) -> bytes:
    """A header with some fields overwritten, and the checksum that fits."""
    block = bytearray(make_tar(file("f"))[:512])
    places = {
        "name": 0,
        "mode": 100,
        "size": 124,
        "mtime": 136,
        "type": 156,
        "link": 157,
        "names": 265,
        "sparse": 386,
        "more": 482,
        "real": 483,
    }
    for key, value in fields.items():
        block[places[key] : places[key] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes) -> bytes:
    body = b"".join(records)
    return header(name=b"pax\0", type=b"x", size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


MALFORMED = {
    "noise": bytes(range(256)) * 4,
    "half a header": header()[:300],
    "a wrong checksum": b"g" + header()[1:],
    "data that is missing": header(size=b"00000001000\0"),
    "padding that is missing": header(size=b"00000000003\0") + b"abc",
    "a size that is no number": header(size=b"000x0000000\0"),
    "a size with an underscore": header(size=b"0000_000001\0") + bytes(512),
    "a negative size": header(size=b"\xff" * 12),
    "a size beyond any disk": header(size=b"\x80" + b"\xff" * 11),
    "an unknown type": header(type=b"Z"),
    "data under the name of a directory": header(name=b"d/\0", size=b"00000000003\0") + bytes(512),
    "sparse data under the name of a directory": header(name=b"d/\0", type=b"S", real=b"00000001000\0"),
    "a multi-volume piece": header(type=b"M"),
    "one zero block": bytes(512) + header(),
    "a pax header at the end": pax(b"11 path=ab\n"),
    "a pax header of a gigabyte": header(type=b"x", size=b"10000000000\0"),
    "a long name of a gigabyte": header(type=b"L", size=b"10000000000\0"),
    "a pax length too long": pax(b"99 path=ab\n") + header(),
    "a pax length too short": pax(b"5 path=ab\n") + header(),
    "a pax length of zero": pax(b"0 path=ab\n") + header(),
    "a pax record without value": pax(b"8 path\n\n") + header(),
    "a pax record without newline": pax(b"11 path=abc") + header(),
    "a pax size that is no number": pax(b"10 size=x\n") + header(),
    "a pax size with many digits": pax(b"40 size=" + b"9" * 31 + b"\n") + header(),
    "a pax size with two signs": pax(b"12 size=--5\n") + header(),
    "a pax length with a sign": pax(b"+11 path=ab\n") + header(),
    "a pax length that leads back": pax(b"11 path=ab\n-9 path=b\n") + header(),
    "a pax time that is none": pax(b"13 mtime=nan\n") + header(),
    "a pax time with exponent": pax(b"15 mtime=1e999\n") + header(),
    "a zero byte in a name": pax(b"12 path=a\0b\n") + header(),
    "a zero byte in an attribute's name": pax(b"27 SCHILY.xattr.user.a\0b=v\n") + header(),
    "sparse segments backwards": header(
        type=b"S", size=b"00000000004\0", real=b"00000001000\0",
        sparse=b"00000000100\x0000000000002\x0000000000000\x0000000000002\0",
    ) + bytes(512),
    "sparse segments beyond the end": header(
        type=b"S", size=b"00000000004\0", real=b"00000000002\0", sparse=b"00000000000\x0000000000004\0"
    ) + bytes(512),
    "sparse segments without data": header(
        type=b"S", size=b"00000000000\0", real=b"00000000100\0", sparse=b"00000000000\x0000000000004\0"
    ),
    "a sparse map of odd length": pax(b"22 GNU.sparse.major=0\n", b"25 GNU.sparse.realsize=9\n",
                                      b"23 GNU.sparse.map=0,1,5\n") + header(),
    "a sparse map cut off": pax(b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n", b"25 GNU.sparse.realsize=9\n")
    + header(size=b"00000001000\0") + b"9" * 512,
    "a sparse file without size": pax(b"22 GNU.sparse.major=0\n") + header(),
}  # fmt: skip


@pytest.mark.parametrize("tar", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("most", [1 << 20, 100])
def test_I3_malformed_tars_are_verification_errors(tar: bytes, most: int) -> None:
    with pytest.raises(VerificationError):
        read(tar, most)


@settings(max_examples=150)
@given(st.binary(max_size=1500), st.integers(0, 3000))
def test_I3_no_damage_is_a_crash(noise: bytes, at: int) -> None:
    tar = bytearray(make_tar(file(LONG, b"x" * 700, mtime=1.5), info("l", tarfile.SYMTYPE, linkname=LONG)))
    tar[at : at + len(noise)] = noise
    try:
        read(bytes(tar))
    except VerificationError:
        return


any_names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and b"/" not in name)
entries = st.builds(
    Entry,
    name=any_names.filter(lambda name: name not in {b".", b".."}),
    type=st.sampled_from([DIRECTORY, SYMLINK, HARD_LINK, CHARACTER, FIFO]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    size=st.just(0),
    mtime=st.integers(-(2**62), 2**62),
    link=st.one_of(st.just(b""), any_names),
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20)),
    xattrs=st.dictionaries(st.sampled_from([b"user.a", b"user.b", b"security.capability"]), st.binary(max_size=200)),
)


@settings(max_examples=150)
@given(st.lists(entries, max_size=4))
def test_what_is_encoded_is_read_back(written: list[Entry]) -> None:
    for entry in written:
        if entry.type != CHARACTER:
            entry.device = (0, 0)
    found = [entry for entry, _ in read(b"".join(encode(entry) for entry in written) + bytes(1024))]
    assert found == written


@settings(max_examples=40)
@given(entries)
def test_python_reads_what_is_encoded(entry: Entry) -> None:
    written = io.BytesIO(encode(entry) + bytes(1024))
    with tarfile.open(fileobj=written, errors="surrogateescape", encoding="utf-8") as tar:
        (found,) = tar.getmembers()
    assert os.fsencode(found.name).rstrip(b"/") == entry.name.rstrip(b"/")
    assert (found.mode, found.uid, found.gid, found.type) == (entry.mode, entry.uid, entry.gid, entry.type)
    assert abs(found.mtime - entry.mtime / 10**9) <= max(1e-6, abs(entry.mtime) * 1e-15)


def test_gnu_tar_reads_what_is_encoded() -> None:
    entry = Entry(LONG.encode(), SYMLINK, 0o777, 3_000_000, 3_000_001, 0, 1_500_000_000_250_000_000, link=b"z" * 150)
    listed = subprocess.run(
        ["tar", "--numeric-owner", "--full-time", "--utc", "-tvf", "-"], input=encode(entry) + bytes(1024),
        stdout=subprocess.PIPE, check=True,
    ).stdout.decode()  # fmt: skip
    assert listed.split() == [
        "lrwxrwxrwx", "3000000/3000001", "0", "2017-07-14", "02:40:00.25", LONG, "->", "z" * 150,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [b"V", b"D"])
def test_a_label_whose_size_is_told_twice_is_refused(kind: bytes) -> None:
    """Readers do not agree on where the next member begins."""
    record = tars.pax_record(b"size", b"0")
    pax = tars.header(b"x", b"x", len(record)) + record.ljust(512, b"\0")
    label = tars.header(b"label", kind, 512) + bytes(512)
    rest = tars.write([tars.Member(b"f")])
    assert [entry.name for entry, _ in read(label + rest)] == [b"f"]
    with pytest.raises(VerificationError, match="two sizes: 'label'"):
        read(pax + label + rest)


@pytest.mark.parametrize("text", [b"-1\n0\n5\n", b"x\n", b"2\n0\n5\n"])
def test_a_map_of_fewer_than_no_pieces_or_of_more_than_it_has_is_broken(text: bytes) -> None:
    records = b"".join(
        tars.pax_record(b"GNU.sparse." + key, value)
        for key, value in ((b"major", b"1"), (b"minor", b"0"), (b"realsize", b"5"))
    )
    pax = tars.header(b"x", b"x", len(records)) + records.ljust(512, b"\0")
    with pytest.raises(VerificationError, match=r"broken sparse map|not a number"):
        read(pax + tars.header(b"f", b"0", 517) + text.ljust(512, b"\0") + b"hello".ljust(512, b"\0") + bytes(1024))


def test_a_map_of_an_odd_number_of_places_is_broken() -> None:
    tar = make_tar(file("f", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.size": "5", "GNU.sparse.map": "0"}))
    with pytest.raises(VerificationError, match="broken sparse map"):
        read(tar)


def test_a_sparse_file_of_more_pieces_than_an_extended_header_has_room_for_is_refused() -> None:
    first = bytes(41) + b"".join(tars._number(0, 12) * 2 for _ in range(4)) + b"\1" + tars._number(1 << 20, 12)
    more = (tars._number(0, 12) * 42 + b"\1").ljust(512, b"\0")
    head = tars.header(b"f", b"S", 0, magic=b"ustar  \0", tail=first)
    with pytest.raises(VerificationError, match="too many pieces"):
        read(head + more * 2100)
