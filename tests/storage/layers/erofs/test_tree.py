"""What describes a layer is bounded in memory, whatever its tar says."""

from __future__ import annotations

import tracemalloc

import pytest

from storage.errors import VerificationError
from storage.layers.erofs.tree import Budget, LayerTree
from storage.tar.reader import HARD_LINK, REGULAR, SYMLINK, Entry

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
