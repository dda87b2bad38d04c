"""What describes a layer is bounded in memory, whatever its tar says."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from storage.errors import VerificationError
from storage.layers.erofs.tree import LayerTree
from storage.tar.reader import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Entry
from storage.tar.rules import Budget

LIMIT = 5_000_000


def entry(name: str, kind: bytes = REGULAR, link: bytes = b"", xattrs: dict[bytes, bytes] | None = None) -> Entry:
    return Entry(name.encode(), kind, mode=0o644, uid=0, gid=0, size=0, mtime=0, link=link, xattrs=xattrs or {})


BOMBS = {
    "empty files": lambda n: entry(f"d/{n}"),
    "directories that are only implied": lambda n: entry(f"{n}/{n}/{n}/{n}/f"),
    "the same name again and again": lambda n: entry(f"d/{n % 2}", SYMLINK if n % 4 else REGULAR, b"t"),
    "long names": lambda n: entry(f"{n:0250}"),
    "long links": lambda n: entry(f"{n}", SYMLINK, b"%04000d" % n),
    "hard links": lambda n: entry(f"{n}", HARD_LINK, b"0") if n else entry("0"),
    "attributes": lambda n: entry(f"{n}", xattrs={b"user.%d" % n: b"v" * 1000}),
    "whiteouts": lambda n: entry(f"d/.wh.{n}"),
    "opaque marks": lambda n: entry(f"{n:0200}/.wh..wh..opq"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_million_entries_are_refused_before_they_fill_memory(name: str) -> None:
    tree = LayerTree(Budget(LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(VerificationError, match="fit in memory"):
            for number in range(1_000_000):
                tree.add(BOMBS[name](number))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * LIMIT
    finally:
        tracemalloc.stop()


def test_marks_on_directories_with_the_same_attributes_share_their_memory() -> None:
    tree = LayerTree(Budget(LIMIT))
    many = {b"user.%d" % number: b"" for number in range(1000)}
    tracemalloc.start()
    try:
        for number in range(300):
            tree.add(entry(f"{number}/", DIRECTORY, xattrs=many))
            tree.add(entry(f"{number}/.wh..wh..opq"))
            tree.add(entry(f"{number}/.wh.gone"))
        tree.finish()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # 300 * 1000 * 8 bytes of places alone would be more
    finally:
        tracemalloc.stop()


def test_a_whiteout_that_is_told_twice_has_one_name() -> None:
    tree = LayerTree()
    for _ in range(2):
        tree.add(entry("d/.wh.gone"))
    tree.finish()
    found = tree.find(b"d/gone")
    assert found is not None
    assert found.links == 1


def test_more_bytes_than_an_event_can_tell_are_refused() -> None:
    tree = LayerTree()
    huge = 1 << 50
    for number in range((1 << 63) // huge - 1):
        tree.add(replace(entry(f"{number}"), size=huge, segments=[]))
    with pytest.raises(VerificationError, match="'last' cannot be laid out: File too large"):
        tree.add(replace(entry("last"), size=huge, segments=[]))


ACL = "0200000001000700ffffffff020004000700000004000500ffffffff10000500ffffffff20000500ffffffff"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("access", "0100000001000700ffffffff04000500ffffffff20000500ffffffff"),  # another version
        ("access", ACL[:-2]),
        ("access", ACL.replace("20000500ffffffff", "")),  # nothing said of others
        ("access", ACL.replace("10000500ffffffff", "")),  # names without a mask
        ("access", ACL.replace("01000700ffffffff", "") + "01000700ffffffff"),  # out of order
        ("access", ACL.replace("0200040007000000", "02000400ffffffff")),  # nobody
        ("access", ACL.replace("01000700", "01000f00")),
        ("access", ACL.replace("01000700", "03000700")),
        ("default", ACL),  # of a file
    ],
)
def test_I3_access_lists_that_a_disk_refuses_are_refused(name: str, value: str) -> None:
    with pytest.raises(VerificationError, match="'f' cannot be laid out"):
        LayerTree().add(entry("f", xattrs={f"system.posix_acl_{name}".encode(): bytes.fromhex(value)}))
