"""What every BlobStore promises."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import Digest, sha256
from storage.errors import VerificationError


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in walk(root) if path.is_file()}


def walk(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        yield path
        if path.is_dir():
            yield from walk(path)


def test_what_is_put_can_be_read_again(place: Path) -> None:
    blobs = DirectoryBlobs(place, owner="b1")
    digest = blobs.put(b"content")
    assert digest == sha256(b"content")
    assert blobs.get(digest) == b"content"
    assert blobs.size(digest) == 7
    with blobs.open(digest) as stream:
        assert stream.read() == b"content"
    assert blobs.put(b"content") == digest


def test_what_is_not_here_says_so_and_reading_makes_nothing(place: Path) -> None:
    blobs = DirectoryBlobs(place / "root", owner="b1")
    assert blobs.size(sha256(b"no")) is None
    for read in (blobs.open, blobs.get):
        with pytest.raises(FileNotFoundError):
            read(sha256(b"no"))
    assert not (place / "root").exists()


def test_I6_nothing_is_visible_before_commit_and_the_unfinished_names_its_owner(place: Path) -> None:
    blobs = DirectoryBlobs(place, owner="build7")
    writer = blobs.writer()
    writer.write(b"abc")
    writer.write(memoryview(b"def"))  # type: ignore[arg-type]
    assert blobs.size(sha256(b"abcdef")) is None
    assert [path.name.partition("-")[0] for path in (place / "tmp").iterdir()] == ["build7"]
    assert writer.commit(sha256(b"abcdef")) == (sha256(b"abcdef"), 6)
    writer.abort()
    assert blobs.get(sha256(b"abcdef")) == b"abcdef"
    assert list((place / "tmp").iterdir()) == []


def test_I3_wrong_bytes_leave_nothing(place: Path) -> None:
    blobs = DirectoryBlobs(place, owner="b1")
    writer = blobs.writer()
    writer.write(b"evil")
    with pytest.raises(VerificationError, match="not sha256"):
        writer.commit(sha256(b"good"))
    writer.abort()
    assert files(place) == {"oci-layout", "index.json"}


def test_an_aborted_blob_leaves_nothing(place: Path) -> None:
    writer = DirectoryBlobs(place, owner="b1").writer()
    writer.write(b"half")
    writer.abort()
    writer.abort()
    assert files(place) == {"oci-layout", "index.json"}


def test_sha512_names_are_verified_with_sha512(place: Path) -> None:
    blobs = DirectoryBlobs(place, owner="b1")
    expected = Digest("sha512:" + hashlib.sha512(b"data").hexdigest())
    writer = blobs.writer()
    writer.write(b"data")
    assert writer.commit(expected) == (expected, 4)
    assert blobs.get(expected) == b"data"
    assert (place / "blobs/sha512" / expected.hex).exists()
    writer = blobs.writer()
    writer.write(b"dada")
    with pytest.raises(VerificationError):
        writer.commit(expected)


def test_I3_a_blob_that_rotted_on_disk_is_not_given_out(place: Path) -> None:
    blobs = DirectoryBlobs(place, owner="b1")
    digest = blobs.put(b"content")
    blobs.path(digest).write_bytes(b"c0ntent")
    with pytest.raises(VerificationError) as caught:
        blobs.get(digest)
    assert digest.hex in caught.value.where


def test_a_blob_of_wrong_length_is_put_anew(place: Path) -> None:
    blobs = DirectoryBlobs(place, owner="b1")
    digest = blobs.put(b"content")
    blobs.path(digest).write_bytes(b"")
    assert blobs.get(blobs.put(b"content")) == b"content"


@pytest.mark.parametrize("look", ["get", "sound"])
def test_I6_a_sound_blob_that_was_put_meanwhile_is_not_removed_as_damaged(place: Path, look: str) -> None:
    """Found by tests/simulation/test_races.py, seed 346: one process had read the damaged one, another put it anew."""
    lost: list[str] = []

    class Slow(DirectoryBlobs):
        def _drop(self, digest: Digest) -> bool:
            other.put(b"content")
            return super()._drop(digest)

    blobs = Slow(place, owner="b1", lost=lambda digest, problem: lost.append(problem))
    other = DirectoryBlobs(place, owner="b2", lost=lambda digest, problem: None)
    digest = other.put(b"content")
    blobs.path(digest).write_bytes(b"c0ntent")
    assert getattr(blobs, look)(digest) in {b"content", True}
    assert other.get(digest) == b"content"
    assert lost == []
