"""Layers laid out as directories: what names lead to, and how much may be known of them."""

from __future__ import annotations

import io
import os
import stat
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from storage.errors import VerificationError
from storage.tar.reader import DIRECTORY, REGULAR, Entry, TarReader
from storage.tar.rules import Budget
from storage.tar.unpack import unpack_tree
from tests.storage.layers.test_directory import opened
from tests.storage.layers.trees import TAR, diff_id
from tests.storage.tar.tars import CHAR, DIR, LINK, Member, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ownership and devices need root")

LIMIT = 2_000_000


class Members:
    """Members without content."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def data(self) -> Iterator[memoryview]:
        return iter(())


def entry(name: bytes, kind: bytes = REGULAR, xattrs: dict[bytes, bytes] | None = None) -> Entry:
    return Entry(name, kind, mode=0o644, uid=0, gid=0, size=0, mtime=0, xattrs=xattrs or {})


BOMBS = {
    "the same whiteout again and again": lambda n: entry(b"d/.wh.gone"),
    "opaque marks": lambda n: entry(b"d/.wh..wh..opq"),
    "attributes of directories": lambda n: entry(b"%d" % n, DIRECTORY, {b"user.%d" % k: b"" for k in range(100)}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_known_until_the_end_is_bounded(tmp_path: Path, name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(VerificationError, match="fit in memory"):
            unpack_tree(Members(BOMBS[name](n) for n in range(1_000_000)), tmp_path, Budget(LIMIT))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * LIMIT
    finally:
        tracemalloc.stop()


def test_more_bytes_than_an_event_can_tell_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.tar.unpack.MOST_BYTES", 5000)
    tar = write([Member(b"a", data=bytes(3000)), Member(b"b", data=bytes(3000))])
    with pytest.raises(VerificationError, match="'b' cannot be laid out: File too large"):
        unpack_tree(TarReader(io.BytesIO(tar)), tmp_path)


@pytest.fixture(params=["directory", "erofs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_links_to_what_is_not_there_yet_are_followed_forty_times(tmp_path: Path, kind: str) -> None:
    """Each leads by way of a directory that is missing, so that the kernel alone does not see the chain."""
    chain = [Member(b"l%d" % n, LINK, link=b"m%d/../l%d" % (n, n + 1)) for n in range(60)]
    with opened(kind, tmp_path) as layers:
        few = write([*chain[:20], Member(b"l0/f", data=b"x")])
        layers.unpack(diff_id(few), TAR, io.BytesIO(few))
        assert (layers.lower(diff_id(few)) / "l20/f").read_bytes() == b"x"
        many = write([*chain, Member(b"l0/f", data=b"x")])
        with pytest.raises(VerificationError, match="'l0/f' cannot be laid out"):
            layers.unpack(diff_id(many), TAR, io.BytesIO(many))
        assert not layers.has(diff_id(many))


DEEP = b"/".join([b"d" * 200] * 18)  # 3617 bytes


def test_directories_deeper_than_a_path_reaches_are_implied_like_others(tmp_path: Path, kind: str) -> None:
    further = b"/".join([b"e" * 200] * 5)
    tar = write([Member(DEEP + b"/", DIR), Member(b"s", LINK, link=DEEP), Member(b"s/" + further + b"/f", data=b"x")])
    with opened(kind, tmp_path) as layers:
        layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
        top = os.open(layers.lower(diff_id(tar)), os.O_RDONLY)
        found = os.stat(b"s/" + further, dir_fd=top)
        os.close(top)
        assert stat.S_IMODE(found.st_mode) == 0o755
        assert found.st_mtime == 0


def test_a_relative_link_that_leads_nowhere_from_too_deep_is_refused(tmp_path: Path) -> None:
    further = b"/".join([b"e" * 200] * 5)
    tar = write([
        Member(DEEP + b"/", DIR), Member(b"s", LINK, link=DEEP), Member(b"s/" + further + b"/", DIR),
        Member(b"s/" + further + b"/l", LINK, link=b"nowhere"), Member(b"s/" + further + b"/l/f", data=b"x"),
    ])  # fmt: skip
    with pytest.raises(VerificationError, match="cannot be laid out: File name too long"):
        unpack_tree(TarReader(io.BytesIO(tar)), tmp_path)


def test_a_directory_whose_place_another_one_took_is_not_dressed_as_the_first(tmp_path: Path, kind: str) -> None:
    tar = write([
        Member(b"d/", DIR), Member(b"l", LINK, link=b"d"), Member(b"l/x/", DIR, mode=0o700),
        Member(b"l/keep"), Member(b"d/x", data=b"a file"), Member(b"d/other/", DIR), Member(b"d/x/", DIR, mode=0o711),
    ])  # fmt: skip
    with opened(kind, tmp_path) as layers:
        layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
        assert stat.S_IMODE((layers.lower(diff_id(tar)) / "d/x").stat().st_mode) == 0o711


def test_attributes_of_what_must_not_be_opened_are_kept(tmp_path: Path, kind: str) -> None:
    xattrs = {b"trusted.note": b"x", b"user.no": b"only files and directories have these"}
    tar = write([Member(b"l", LINK, link=b"t", xattrs=xattrs), Member(b"c", CHAR, device=(1, 3), xattrs=xattrs)])
    with opened(kind, tmp_path) as layers:
        layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
        for name in ("l", "c"):
            path = layers.lower(diff_id(tar)) / name
            assert os.listxattr(path, follow_symlinks=False) == ["trusted.note"]
            assert os.getxattr(path, "trusted.note", follow_symlinks=False) == b"x"


@pytest.mark.parametrize("xattrs", [{b"user.": b"x"}, {b"security.capability": b"x"}, {b"user.x": bytes(70_000)}])
def test_attributes_that_no_disk_takes_are_the_layers_fault(
    tmp_path: Path, kind: str, xattrs: dict[bytes, bytes]
) -> None:
    tar = write([Member(b"f", data=b"x", xattrs=xattrs)])
    with opened(kind, tmp_path) as layers, pytest.raises(VerificationError, match="'f' cannot be laid out"):
        layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
