"""Compressing on many threads: the same bytes as on one, for every reader, and no thread outlives its stream."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import time
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.compression import BLOCK, compressor, version
from tests.waiting import PATIENCE

PARALLEL = ["gzip", "zstd"]
SIZE = 9 * BLOCK + 12_345  # several blocks of gzip, several jobs of zstd


@cache
def large() -> bytes:
    """SIZE bytes. Neither noise nor one line repeated: words, some of them new."""
    rng = random.Random(7)
    words = [rng.randbytes(rng.randint(2, 12)) for _ in range(3000)]
    return b"".join(rng.choices(words, k=SIZE // 6))[:SIZE]  # a word has 7 bytes on average


def packed(name: str, data: bytes, cuts: list[int], threads: int | None = None) -> bytes:
    """`data` compressed in pieces that end at `cuts` and at its end."""
    stream = compressor(name, threads)
    edges = [0, *sorted(cuts), len(data)]
    out = [stream.compress(data[start:end]) for start, end in pairwise(edges)]
    return b"".join([*out, stream.flush()])


def tasks() -> set[str]:
    """Threads of this process, also those that Python does not know."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


def none_left(before: set[str]) -> bool:
    deadline = time.monotonic() + PATIENCE  # a thread that was joined may be listed a moment longer
    while not tasks() <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    return tasks() <= before


@cache
def alone(name: str) -> bytes:
    """`large()` compressed in one piece, by one thread."""
    return packed(name, large(), [], 1)


@pytest.mark.parametrize("name", PARALLEL)
@pytest.mark.parametrize("threads", [2, 3, 4, 5, 6, 7, 8, None])
def test_any_number_of_threads_gives_the_same_bytes(name: str, threads: int | None) -> None:
    cuts = list(range(0, SIZE, BLOCK))
    assert packed(name, large(), cuts, threads) == alone(name)


@settings(max_examples=20)
@given(
    st.sampled_from(PARALLEL),
    st.integers(1, 8),
    st.lists(st.integers(0, SIZE), max_size=12) | st.integers(1000, 3 * BLOCK).map(
        lambda step: list(range(0, SIZE, step))
    ),
)  # fmt: skip
def test_any_cutting_of_the_input_gives_the_same_bytes(name: str, threads: int, cuts: list[int]) -> None:
    assert packed(name, large(), cuts, threads) == alone(name)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, SIZE])
@pytest.mark.parametrize("cut", ["whole", "blocks", "ends"])
def test_every_reader_takes_it(tmp_path: Path, size: int, cut: str) -> None:
    data = large()[:size]
    cuts = {"whole": [], "blocks": list(range(BLOCK, size, BLOCK)), "ends": [min(1, size), max(0, size - 1)]}[cut]
    (tmp_path / "x.gz").write_bytes(packed("gzip", data, cuts))
    (tmp_path / "x.zst").write_bytes(packed("zstd", data, cuts))
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == data
    assert zstandard.ZstdDecompressor().stream_reader((tmp_path / "x.zst").read_bytes()).readall() == data
    subprocess.run(["gzip", "-t", str(tmp_path / "x.gz")], check=True)
    subprocess.run(["zstd", "-tq", str(tmp_path / "x.zst")], check=True)


@pytest.mark.parametrize("size", [0, BLOCK, SIZE])
def test_gzip_is_one_member_without_name_or_time(size: int) -> None:
    blob = packed("gzip", large()[:size], [])
    member = zlib.decompressobj(31)
    assert member.decompress(blob) == large()[:size]
    assert member.eof
    assert member.unused_data == b""
    assert blob[:8] == b"\x1f\x8b\x08" + bytes(5)


def test_zstd_is_one_frame_with_a_checksum() -> None:
    blob = packed("zstd", large(), [])
    assert zstandard.get_frame_parameters(blob).has_checksum
    frame = zstandard.ZstdDecompressor().decompressobj()
    assert frame.decompress(blob) == large()
    assert frame.eof
    assert frame.unused_data == b""


def test_blocks_know_the_end_of_the_one_before() -> None:
    """Else repetitions across blocks, and there are many in layers, would cost their whole length again."""
    once = os.urandom(16_384)
    data = bytes(BLOCK - 16_384) + once + once + bytes(BLOCK - 16_384)
    assert len(packed("gzip", data, [])) < 16_384 * 3 // 2


def test_the_versions_tell_the_size_of_the_blocks() -> None:
    assert "blocks of 1 MiB" in version("gzip")
    assert os.uname().machine in version("gzip")
    assert "jobs of 4 MiB" in version("zstd")


@pytest.mark.parametrize("name", [*PARALLEL, "uncompressed"])
@pytest.mark.parametrize("blocks", [0, 1, 9])
@pytest.mark.parametrize("end", ["flush", "close", "both"])
def test_no_thread_outlives_its_stream(name: str, blocks: int, end: str) -> None:
    before = tasks()
    stream = compressor(name, 4)
    for at in range(blocks):
        stream.compress(large()[at * BLOCK : (at + 1) * BLOCK])
    if end != "close":
        stream.flush()
    if end != "flush":
        stream.close()
        stream.close()
    assert none_left(before)


@pytest.mark.parametrize("name", PARALLEL)
def test_memory_does_not_grow_with_the_data(name: str) -> None:
    """However slowly they are compressed, no more than a few blocks wait."""
    program = f"""
import resource
from storage.compression import compressor
stream, block = compressor({name!r}, 2), bytes(range(256)) * 4096
for _ in range(50):
    stream.compress(block)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(400):
    stream.compress(block)
stream.flush()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # KiB, of 400 MiB
