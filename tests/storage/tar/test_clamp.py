"""Tars without later times: only times change, and nothing at all when none is later."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import VerificationError
from storage.tar.clamp import Clamped, clamp_header
from storage.tar.reader import Entry, TarReader
from tests.storage.layers.trees import file, gnu_tar, info, make_tar

EPOCH = 1_500_000_000


def clamped(tar: bytes, epoch: int = EPOCH, size: int = -1) -> bytes:
    source = Clamped(io.BytesIO(tar), epoch)
    out = []
    while data := source.read(size):
        out.append(data)
    return b"".join(out)


def told(tar: bytes) -> list[tuple[Entry, bytes]]:
    """All of a tar, but for its times."""
    reader, found = TarReader(io.BytesIO(tar)), []
    for entry in reader:
        content = b"".join(map(bytes, reader.data()))
        entry.mtime = 0
        found.append((entry, content))
    return found


def times(tar: bytes) -> list[int]:
    return [entry.mtime for entry in TarReader(io.BytesIO(tar))]


def tree(directory: Path) -> Path:
    """What makes GNU tar use all of its spellings."""
    (directory / ("d" * 120)).mkdir(parents=True)
    (directory / ("d" * 120) / ("f" * 130)).write_bytes(b"long" * 1000)
    (directory / "early").write_bytes(b"x")
    (directory / "link").symlink_to("l" * 150)
    (directory / "hard").hardlink_to(directory / "early")
    with (directory / "sparse").open("wb") as sparse:
        for at in range(40):
            sparse.seek(at * 100_000)
            sparse.write(b"%d" % at)
        sparse.truncate(5_000_000)
    subprocess.run(["touch", "-d", "@1400000000.25", str(directory / "early")], check=True)
    return directory


FORMATS = [
    ("--format=ustar", "--exclude=*dddd*", "--exclude=link"), ("--format=gnu",), ("--format=gnu", "--sparse"),
    ("--format=oldgnu", "--sparse"), ("--format=gnu", "--atime-preserve", "--incremental"), ("--format=posix",),
    ("--format=posix", "--sparse", "--sparse-version=0.0"), ("--format=posix", "--sparse", "--sparse-version=0.1"),
    ("--format=posix", "--sparse", "--sparse-version=1.0"),
    ("--format=posix", "--pax-option=globexthdr.name=g,mtime=1600000000.5"),
]  # fmt: skip


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_every_spelling_is_clamped_and_nothing_else_changes(tmp_path: Path, options: tuple[str, ...]) -> None:
    tar = gnu_tar(tree(tmp_path / "tree"), *options)
    out = clamped(tar)
    assert told(out) == told(tar)
    before, after = times(tar), times(out)
    assert max(before) > EPOCH * 10**9
    assert after == [min(one, EPOCH * 10**9) for one in before]
    listed = subprocess.run(["tar", "-tf", "-"], input=out, capture_output=True, check=True)
    assert listed.stderr == b""
    assert clamped(out) == out
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", str(tmp_path / "out"), "-xf", "-"], input=out, check=True)
    assert (tmp_path / "out" / "sparse").read_bytes() == (tmp_path / "tree" / "sparse").read_bytes()


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_a_tar_without_later_times_stays_what_it_is(tmp_path: Path, options: tuple[str, ...]) -> None:
    tar = gnu_tar(tree(tmp_path / "tree"), *options) + b"whatever follows" * 100
    for size in (-1, 7, 100_000):
        assert clamped(tar, 8 * 10**9, size) == tar


def test_no_time_is_left_that_tells_when_the_tar_was_made(tmp_path: Path) -> None:
    """Access and change times too, and those of the headers that hold them."""
    options = "--format=posix", "--pax-option=exthdr.name=%d/x"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x")
    (tmp_path / "tree" / "file").touch()
    out = clamped(gnu_tar(tmp_path / "tree", *options))
    with tarfile.open(fileobj=io.BytesIO(out)) as members:
        (member,) = [one for one in members if one.isfile()]
    assert {key: member.pax_headers[key] for key in ("mtime", "atime", "ctime")} == dict.fromkeys(
        ("mtime", "atime", "ctime"), str(EPOCH)
    )
    assert out == clamped(clamped(out))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 3000)), max_size=6), st.integers(0, 2**34),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.booleans(),
)  # fmt: skip
def test_any_time_is_clamped(members: list[tuple[int, int]], epoch: int, form: int, fraction: bool) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for number, (mtime, size) in enumerate(members):
            one = tarfile.TarInfo(f"f{number}")
            one.mtime, one.size = mtime + (0.5 if fraction else 0), size
            archive.addfile(one, io.BytesIO(bytes(size)))
    tar = out.getvalue()
    assert times(clamped(tar, epoch)) == [min(one, epoch * 10**9) for one in times(tar)]
    assert told(clamped(tar, epoch)) == told(tar)


@pytest.mark.parametrize("cut", [100, 700, 512 + 5000, 512 * 20 + 600])
def test_a_truncated_tar_is_an_error(cut: int) -> None:
    tar = make_tar(file("a", bytes(9000)), info("d"), file("b", bytes(9000)))
    with pytest.raises(VerificationError, match="truncated"):
        clamped(tar[:cut])


def test_what_belongs_to_no_file_is_bounded() -> None:
    header = tarfile.TarInfo("names")
    header.type, header.size = b"D", 64 << 20
    with pytest.raises(VerificationError, match="belong to no file"):
        clamped(header.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20) + make_tar(file("x", b"x")))


def test_a_broken_extended_header_is_an_error() -> None:
    tar = make_tar(file("x" * 150, b"x"))
    with pytest.raises(VerificationError, match="broken PAX"):
        clamp_header(tar[:512] + b"garbage" + tar[519:1536], EPOCH)
