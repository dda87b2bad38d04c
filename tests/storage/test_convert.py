"""Blobs made of blobs: from every compression to every other one, or not at all."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import zstandard

from storage.blobs import DirectoryBlobs
from storage.compression import KINDS, version
from storage.digest import Digest, sha256
from storage.errors import InputError, VerificationError
from storage.interfaces.images import ESTARGZ, Compression
from storage.interfaces.packing import PackedBlob
from storage.packing import BlobConverter
from tests.storage.layers.trees import TAR, file, info, make_tar, members

LAYER = make_tar(
    info("etc"), file("etc/one", b"one" * 1000), file("big", random.Random(1).randbytes(3_000_000)),
    info("link", mtime=1_400_000_000), file("end", b"end", mtime=1_400_000_000),
)  # fmt: skip
OURS = sorted(KINDS)


def plain(blob: bytes) -> bytes:
    """What it expands to, as others read it."""
    if blob[:2] == b"\x1f\x8b":
        return gzip.decompress(blob)
    if blob[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().stream_reader(blob).readall()
    return blob


class Store:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = DirectoryBlobs(path, owner="b1")

    def convert(
        self, data: bytes, diff_id: Digest, kind: Any, level: int | None = None, **more: Any
    ) -> PackedBlob | None:
        return BlobConverter(self.blobs).convert(io.BytesIO(data), "", diff_id, Compression(kind, level), **more)

    def made(self, kind: str, level: int | None = None, data: bytes = LAYER) -> tuple[PackedBlob, bytes]:
        """`data` as `kind`."""
        packed = self.convert(data, sha256(plain(data)), kind, level)
        assert packed is not None
        return packed, self.blobs.get(packed.blob.digest)

    def kept(self) -> list[Path]:
        return [path for where in ("blobs", "tmp") for path in (self.path / where).rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


@pytest.mark.parametrize(("before", "after"), list(product(OURS, OURS)))
def test_every_compression_becomes_every_other_one(store: Store, before: str, after: str) -> None:
    first, data = store.made(before)
    packed, out = store.made(after, data=data)
    assert (packed.blob.digest, packed.blob.size) == (sha256(out), len(out))
    assert packed.blob.media_type == KINDS[after].media_type
    assert packed.compressor == version(after)
    assert packed.diff_id == sha256(plain(out))
    assert (ESTARGZ in packed.blob.annotations) == (after == "estargz")
    assert [name for name in members(plain(out)) if "stargz" not in name and "landmark" not in name] == members(LAYER)
    if after != "estargz":
        assert packed.diff_id == first.diff_id
        assert plain(out) == plain(data)
    # whatever way it came, it is the same blob
    assert out == store.made(after, data=plain(data))[1]


@pytest.mark.parametrize("kind", ["gzip", "zstd", "estargz"])
def test_the_bytes_do_not_depend_on_the_number_of_cores(store: Store, tmp_path: Path, kind: str) -> None:
    program = f"""
import io, os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:int(sys.argv[1])]))
from pathlib import Path
from storage.blobs import DirectoryBlobs
from storage.digest import Digest
from storage.interfaces.images import Compression
from storage.packing import BlobConverter
data = Path(sys.argv[2]).read_bytes()
made = BlobConverter(DirectoryBlobs(Path(sys.argv[3]), owner="b1")).convert(
    io.BytesIO(data), "", Digest(sys.argv[4]), Compression({kind!r}))
print(made.blob.digest)
"""
    (tmp_path / "layer.tar").write_bytes(LAYER)
    arguments = [str(tmp_path / "layer.tar"), str(tmp_path / "root"), sha256(LAYER)]
    found = {
        subprocess.run([sys.executable, "-c", program, cores, *arguments], check=True, capture_output=True).stdout
        for cores in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("after", OURS)
@pytest.mark.parametrize("before", OURS)
def test_I3_damaged_bytes_and_another_layer_leave_nothing(tmp_path: Path, before: str, after: str) -> None:
    _, data = Store(tmp_path / "other").made(before)
    store, diff_id, threads = Store(tmp_path / "root"), sha256(plain(data)), set(threading.enumerate())
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    for bad, expected in (
        (bytes(damaged), diff_id), (data[: len(data) // 2], diff_id), (data, sha256(b"")), (b"", diff_id),
        (data + b"more", diff_id),
    ):  # fmt: skip
        with pytest.raises(VerificationError):
            store.convert(bad, expected, after)
    assert [path.name for path in store.kept()] == []
    assert set(threading.enumerate()) <= threads


def test_the_error_of_a_source_passes_through_and_leaves_nothing(store: Store) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(1000)
            if not data:
                raise ConnectionResetError("gone")
            return data

    for kind in OURS:
        with pytest.raises(ConnectionResetError):
            BlobConverter(store.blobs).convert(
                Broken(LAYER[:2_000_000]), TAR, sha256(LAYER), Compression(kind)  # type: ignore[arg-type]
            )
    assert store.kept() == []


@pytest.mark.parametrize("kind", OURS)
def test_clamping_is_a_conversion_too(store: Store, kind: str) -> None:
    packed = store.convert(gzip.compress(LAYER), sha256(LAYER), kind, clamp_mtime=1_500_000_000)
    assert packed is not None
    assert packed.diff_id != sha256(LAYER)
    again = store.convert(store.blobs.get(packed.blob.digest), packed.diff_id, kind, clamp_mtime=1_500_000_000)
    assert again == packed


def test_a_layer_without_later_times_need_not_be_kept_anew(store: Store) -> None:
    assert store.convert(LAYER, sha256(LAYER), "zstd", clamp_mtime=1_800_000_000, even_if_same=False) is None
    assert [path.name for path in store.kept()] == []
    assert store.convert(LAYER, sha256(LAYER), "zstd", clamp_mtime=1_800_000_000) is not None
    with pytest.raises(VerificationError):  # it is not what it should be, whatever it became
        store.convert(LAYER, sha256(b""), "zstd", clamp_mtime=1_800_000_000, even_if_same=False)


def test_levels_are_asked_for_and_refused(store: Store) -> None:
    sizes = [store.made("zstd", level)[0].blob.size for level in (1, None, 19)]
    assert len(set(sizes)) == 3
    with pytest.raises(InputError, match="gzip has no level 11"):
        store.made("gzip", 11)


@pytest.mark.parametrize("kind", OURS)
def test_memory_does_not_grow_with_the_layer(tmp_path: Path, kind: str) -> None:
    """Of 200 MiB, that come as 200 KiB."""
    program = f"""
import io, resource, sys, tarfile
from pathlib import Path
from storage.blobs import DirectoryBlobs
from storage.compression import compressor
from storage.digest import Hasher
from storage.interfaces.images import Compression
from storage.packing import BlobConverter
stream, diff, packed, block = compressor("zstd"), Hasher(), [], bytes(range(256)) * 4096
def add(data):
    diff.update(data)
    packed.append(stream.compress(data))
for number in range(4):
    one = tarfile.TarInfo(f"f{{number}}")
    one.size = 50 << 20
    add(one.tobuf())
    for _ in range(50):
        add(block)
add(bytes(1024))
packed.append(stream.flush())
convert = BlobConverter(DirectoryBlobs(Path(sys.argv[1]), owner="b1")).convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(io.BytesIO(b"".join(packed)), "", diff.digest(), Compression({kind!r}), 1_000_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000, done.stdout  # KiB


def test_tools_read_every_kind(store: Store, tmp_path: Path) -> None:
    for kind, flag in {"gzip": "-z", "estargz": "-z", "zstd": "--zstd", "uncompressed": "-v"}.items():
        _, data = store.made(kind)
        (tmp_path / kind).write_bytes(data)
        command = ["tar", flag, "-x", "-O", "-f", str(tmp_path / kind), "etc/one"]
        done = subprocess.run(command, check=True, capture_output=True)
        assert done.stdout == b"one" * 1000
        assert os.fsdecode(done.stderr).replace("etc/one\n", "") == ""
