"""Streaming decompression: any member structure, bounded memory, and never silence about damage."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.compression import BLOCK, KINDS, compressor, gzip_member, version
from storage.decompression import decompress
from storage.errors import InputError, VerificationError
from storage.interfaces.blobs import ByteSource

TAR = "application/vnd.oci.image.layer.v1.tar"
TEXT = b"".join(b"line %d of a file that compresses well\n" % number for number in range(20_000))
NOISE = os.urandom(300_000)


class Dribble:
    """A source that gives at most `most` bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self._stream = io.BytesIO(data)
        self._most = most

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read(self._most if size < 0 else min(size, self._most))


def all_of(source: ByteSource, size: int = 100_000) -> bytes:
    parts = []
    while data := source.read(size):
        assert len(data) <= size
        parts.append(data)
    assert source.read(size) == b""
    return b"".join(parts)


def packed(name: str, data: bytes, cut: int = 65_536) -> bytes:
    stream = compressor(name)
    return b"".join(stream.compress(data[at : at + cut]) for at in range(0, len(data), cut)) + stream.flush()


@pytest.mark.parametrize("name", ["gzip", "zstd", "uncompressed"])
@pytest.mark.parametrize("data", [b"", b"x", TEXT, NOISE], ids=["empty", "one", "text", "noise"])
@pytest.mark.parametrize("most", [1 << 20, 997])
def test_what_is_compressed_comes_back(name: str, data: bytes, most: int) -> None:
    assert all_of(decompress(Dribble(packed(name, data), most), TAR)) == data


@settings(max_examples=25)
@given(st.sampled_from(["gzip", "zstd"]), st.integers(1, 2_000_000), st.integers(1, 300_000))
def test_the_bytes_do_not_depend_on_how_the_input_was_cut(name: str, cut: int, other: int) -> None:
    data = (TEXT + NOISE) * 2
    assert packed(name, data, max(cut, 500)) == packed(name, data, max(other, 500))


def test_gzip_has_neither_name_nor_time_and_standard_tools_read_it() -> None:
    data = packed("gzip", TEXT)
    assert data[:4] == b"\x1f\x8b\x08\x00"
    assert not any(data[4:8])
    assert gzip.decompress(data) == TEXT
    unpacked = subprocess.run(["zstd", "-dcq"], input=packed("zstd", TEXT), capture_output=True, check=True).stdout
    assert unpacked == TEXT


def test_the_version_names_library_and_level() -> None:
    assert version("gzip").startswith("isal ")
    assert version("gzip").endswith("level 2")
    assert version("zstd", 19).endswith("level 19")
    assert version("uncompressed") == "none"


@pytest.mark.parametrize(
    ("kind", "level", "says"),
    [("brotli", None, "unknown compression 'brotli'"), ("gzip", 10, "gzip has no level 10"), ("gzip", -1, "no level"),
     ("zstd", 0, "zstd has no level 0"), ("zstd", 23, "no level 23"), ("uncompressed", 0, "no level 0"),
     ("estargz", 10, "estargz has no level 10")],
)  # fmt: skip
def test_what_there_is_not_is_refused_and_the_error_says_what_there_is(kind: str, level: int | None, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        version(kind, level)
    assert "gzip and estargz take levels 0-9" in raised.value.hint
    assert "zstd 1-22" in raised.value.hint


LEVELS = [(kind, level) for kind in ("gzip", "zstd") for level in KINDS[kind].levels]


@pytest.mark.parametrize(("kind", "level"), LEVELS)
def test_every_level_gives_what_others_read(kind: str, level: int) -> None:
    stream = compressor(kind, level=level)
    data = stream.compress(TEXT) + stream.flush()
    command = ["gzip", "-dc"] if kind == "gzip" else ["zstd", "-dcq"]
    assert subprocess.run(command, input=data, capture_output=True, check=True).stdout == TEXT


def test_a_higher_level_is_smaller_as_far_as_the_levels_differ() -> None:
    program = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("[a-t]*.py")))

    def size(kind: str, level: int | None = None) -> int:
        stream = compressor(kind, level=level)
        return len(stream.compress(program) + stream.flush())

    assert size("gzip", 0) > size("gzip", 1) > size("gzip", 3) == size("gzip", 9)
    assert size("gzip") == size("gzip", 2)
    assert size("zstd", 1) > size("zstd") == size("zstd", 3) > size("zstd", 19)


def test_no_zstd_needs_a_window_that_readers_need_not_have() -> None:
    stream = compressor("zstd", level=22)
    head = stream.compress(NOISE) + stream.flush()
    assert zstandard.get_frame_parameters(head).window_size <= 8 << 20


def test_gzip_of_many_members_and_zero_padding() -> None:
    data = gzip.compress(TEXT) + gzip.compress(b"") + gzip.compress(NOISE) + bytes(1000)
    for most in (1 << 20, 1000):
        assert all_of(decompress(Dribble(data, most), TAR + "+gzip")) == TEXT + NOISE


def test_zstd_of_many_frames_and_skippable_ones() -> None:
    skippable = struct.pack("<II", 0x184D2A55, 10) + b"0123456789"
    plain = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    sized = zstandard.ZstdCompressor(level=19)
    data = skippable + plain.compress(TEXT) + sized.compress(NOISE) + skippable + sized.compress(b"") + skippable
    for most in (1 << 20, 777):
        assert all_of(decompress(Dribble(data, most), TAR + "+zstd")) == TEXT + NOISE


@pytest.mark.parametrize("said", [TAR, TAR + "+gzip", TAR + "+zstd", "application/octet-stream"])
@pytest.mark.parametrize("name", ["gzip", "zstd", "uncompressed"])
def test_the_bytes_win_over_a_wrong_media_type(name: str, said: str) -> None:
    assert all_of(decompress(Dribble(packed(name, TEXT), 2), said), 50_000) == TEXT


@pytest.mark.parametrize("make", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress,
                                  zstandard.ZstdCompressor(write_content_size=False).compress])  # fmt: skip
@pytest.mark.parametrize("data", [TEXT, NOISE])
def test_I3_truncation_anywhere_is_an_error(make: object, data: bytes) -> None:
    whole = make(data)  # type: ignore[operator]
    for keep in {4, 5, 17, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1}:
        with pytest.raises(VerificationError, match="truncated"):
            all_of(decompress(Dribble(whole[:keep], 4096), TAR))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_I3_a_flipped_bit_is_an_error(name: str) -> None:
    whole = packed(name, NOISE)
    for at in (len(whole) // 2, len(whole) - 2):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        with pytest.raises(VerificationError):
            all_of(decompress(Dribble(bytes(damaged), 4096), TAR))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_garbage_behind_the_data_is_an_error(name: str) -> None:
    with pytest.raises(VerificationError):
        all_of(decompress(io.BytesIO(packed(name, TEXT) + b"garbage" * 10), TAR))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_an_empty_blob_of_a_compressed_type_is_an_error(name: str) -> None:
    with pytest.raises(VerificationError):
        decompress(io.BytesIO(b""), f"{TAR}+{name}")


def test_the_error_of_a_source_passes_through() -> None:
    class Broken:
        def __init__(self) -> None:
            self._first = packed("gzip", NOISE)[:1000]

        def read(self, size: int = -1, /) -> bytes:
            first, self._first = self._first, b""
            if not first:
                raise ConnectionResetError("gone")
            return first

    with pytest.raises(ConnectionResetError):
        all_of(decompress(Broken(), TAR))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_memory_stays_small_when_little_expands_to_much(name: str) -> None:
    program = f"""
import io, resource
from storage.compression import compressor
from storage.decompression import decompress
stream, zeros = compressor({name!r}), bytes(1 << 20)
bomb = b"".join(stream.compress(zeros) for _ in range(600)) + stream.flush()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source, total = decompress(io.BytesIO(bomb), ""), 0
while data := source.read(1 << 20):
    total += len(data)
assert total == 600 << 20, total
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40_000  # KiB


SHORT = [b"abcdefgh" * 3, b"in/bin/sh" * 8, TEXT[:100], TEXT[:1024], TEXT]
"""Of which a match may be found, or not, that begins where a stream begins."""


@pytest.mark.parametrize("level", range(4))
def test_I12_a_member_depends_on_nothing_but_its_data(level: int) -> None:
    made: list[set[bytes]] = [set() for _ in SHORT]
    ended = threading.Event()

    def compress() -> None:
        """On a stack of its own, which stays: what ISA-L takes from an address is another thing in each thread."""
        for number, data in enumerate(SHORT[:-1]):
            made[number].add(gzip_member(data, level))
        ended.wait()

    usual = threading.stack_size(256 << 10)
    try:
        threads = [threading.Thread(target=compress) for _ in range(600)]
        for thread in threads:
            thread.start()
    finally:
        threading.stack_size(usual)
        ended.set()
    for thread in threads:
        thread.join()
    for data, members in zip(SHORT, made, strict=True):
        members.add(gzip_member(data, level))
        assert {gzip.decompress(member) for member in members} == {data}
        assert len(members) == 1, f"{len(members)} forms of {data[:20]!r}"


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("threads", [0, 1, 2], ids=["member", "thread", "threads"])
def test_I12_the_first_block_of_gzip_is_too_short_for_code_that_hashes_an_address(level: int, threads: int) -> None:
    stream = compressor("gzip", threads, level)
    packed = stream.compress(TEXT * 3) + stream.flush() if threads else gzip_member(TEXT * 3, level)
    begun = packed[: packed.index(b"\x00\x00\xff\xff") + 4]  # an empty block marks the end of the first one
    assert zlib.decompressobj(31).decompress(begun) == TEXT[:4]
    assert gzip.decompress(packed) == TEXT * 3


def test_the_version_tells_what_the_library_makes_on_this_processor() -> None:
    samples = {version("gzip", level).split()[3] for level in range(4)}
    assert len(samples) == 4
    assert version("estargz", 2).split()[3] == version("gzip", 2).split()[3]


def test_a_last_job_that_is_full_ends_the_same_whether_a_thread_was_free_for_it_or_not() -> None:
    data = random.Random(0).randbytes(BLOCK) * 32  # eight jobs
    made = set()
    for _ in range(8):
        stream = compressor("zstd", 1)
        out = b"".join(stream.compress(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)) + stream.flush()
        made.add(out)
        assert out[-7:-4] == b"\1\0\0"  # an empty block, and the checksum
    assert len(made) == 1
