"""A layer's list of files can be kept, and compared with another one's."""

from __future__ import annotations

import io
import tarfile

import pytest

from storage.digest import sha256
from storage.errors import VerificationError
from storage.tar.filelist import compare, dump, list_tar, load


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return io.BytesIO(out.getvalue())


def member(name: str, data: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


@pytest.mark.parametrize("time", ["99999999999", "-99999999999"])
def test_a_time_that_no_number_of_64_bits_tells_is_the_furthest(time: str) -> None:
    (fact,) = list_tar(tar_of(member("a", pax_headers={"mtime": time})))
    assert abs(fact.mtime) == (1 << 63) - 1
    assert load(dump([fact])) == [fact]


def test_a_list_says_what_the_tar_says_and_survives_being_kept() -> None:
    facts = list(
        list_tar(
            tar_of(
                member("a", b"hello", mode=0o600, uid=7, mtime=5), member("l", type=tarfile.SYMTYPE, linkname="a"),
                member("d", type=tarfile.DIRTYPE), member("n", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            )
        )
    )  # fmt: skip
    assert [(f.path, f.kind, f.content) for f in facts] == [
        ("a", "file", str(sha256(b"hello"))), ("l", "symlink", "a"), ("d/", "dir", ""), ("n", "char", "1:3"),
    ]  # fmt: skip
    assert (facts[0].mode, facts[0].owner, facts[0].mtime) == (0o600, "7:0", 5_000_000_000)
    assert load(dump(facts)) == facts


def test_every_difference_has_its_name_and_time_only_when_it_counts() -> None:
    before = list(list_tar(tar_of(member("a", b"1"), member("b", b"1"), member("c", b"1", mtime=1))))
    now = list(list_tar(tar_of(member("a", b"2"), member("c", b"1", mtime=2), member("d", b"1"))))
    found = {change.path: change.how for change in compare(before, now, times=True)}
    assert found == {"a": ("content",), "b": ("only before",), "c": ("time",), "d": ("only now",)}
    assert "c" not in {change.path for change in compare(before, now, times=False)}


@pytest.mark.parametrize("data", [b"{", b"[1]\n", b'["a","file","x","0:0",1,1,"",[]]\n', b"\xff\n"])
def test_a_damaged_list_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        load(data)
