"""The tree in tiles: the same roots and nodes as the definition's, kept, damaged, and compared with the log."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import LogError
from storage.log.codec import Row
from storage.logtree import merkle
from storage.logtree.leaves import leaf, leaf_hashes
from storage.logtree.tiles import Tree

COUNT = 70_000  # more than a tile of tiles: three levels
LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(COUNT)]


class Rows:
    """StoredRows of so many events."""

    def __init__(self, count: int, changed: int = 0, missing: int = 0) -> None:
        self._count, self._changed, self._missing = count, changed, missing

    def last_seq(self) -> int:
        return self._count

    def rows(self, after: int, until: int) -> Iterator[Row]:
        for seq in range(after + 1, min(until, self._count) + 1):
            if seq != self._missing:
                yield seq, "build/1", seq, "VertexOutput", b'{"t":%d,"d":{}}' % (seq + (seq == self._changed))


def root_of(leaves: list[bytes]) -> bytes:
    whole = merkle.Frontier()
    whole.extend(leaves)
    return whole.root()


@given(st.lists(st.integers(1, 700), min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_tree_that_grows_by_pieces_has_the_root_of_one_made_at_once(pieces: list[int]) -> None:
    tree = Tree()
    for piece in pieces:
        tree.add(LEAVES[tree.size : tree.size + piece])
        assert tree.root() == root_of(LEAVES[: tree.size])
    whole = Tree()
    whole.add(LEAVES[: tree.size])
    assert tree.dump() == whole.dump()
    for size in (1, tree.size // 2, tree.size - 1):
        assert tree.root(size) == root_of(LEAVES[:size])


def test_nodes_of_every_level_and_proofs_of_a_tree_of_three_levels_of_tiles() -> None:
    tree = Tree()
    tree.add(LEAVES[:65_000])
    tree.add(LEAVES[65_000:])
    assert tree.root() == root_of(LEAVES)
    assert {level for level, _, _ in tree.dump()} == {0, 1, 2}
    for level in range(17):
        last = (COUNT >> level) - 1
        assert tree.node(level, last) == root_of(LEAVES[last << level : (last + 1) << level])
        with pytest.raises(LookupError):
            tree.node(level, last + 1)
    for index in (0, 255, 256, 65_535, 65_536, COUNT - 1):
        path = merkle.inclusion_proof(tree.node, index, COUNT)
        assert merkle.root_of_inclusion(LEAVES[index], index, COUNT, path) == tree.root()
    for first in (1, 256, 65_535, 65_536, 65_537, COUNT):
        path = merkle.consistency_proof(tree.node, first, COUNT)
        old = root_of(LEAVES[:first])
        assert merkle.roots_of_consistency(first, COUNT, path, old) == (old, tree.root())


def test_I1_a_kept_tree_goes_on_and_a_new_one_dumps_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a tree.db"
    for until in (100, 256, 1000):
        with Tree(path) as tree:
            tree.extend(Rows(2000), until)
            tree.keep()
    with Tree(path, read_only=True) as kept:
        assert kept.matches(1000, tree.root())
        again = Tree()
        again.extend(Rows(2000), 1000)
        assert kept.dump() == again.dump()
        kept.extend(Rows(2000), 2000)  # in memory only
        kept.keep()
    with Tree(path) as tree:
        assert tree.size == 1000
    path.unlink()
    with Tree(path, read_only=True) as none:
        assert none.size == 0
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"schema", None])
def test_a_file_that_is_no_tree_counts_as_nothing_and_is_replaced(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tree.db"
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE tiles (nonsense TEXT)")
        db.close()
    elif content == b"schema":  # what SQLite says of it is no text
        with Tree(path) as tree:
            tree.keep()
        data = path.read_bytes().replace(b"CREATE TABLE", b"CREATE TABEL")
        path.write_bytes(data.replace(b"tilestiles", b"\xa6ilestiles"))
    else:
        path.write_bytes(content)
    with Tree(path, read_only=True) as tree:
        assert tree.size == 0 and tree.root() == merkle.EMPTY
    with Tree(path) as tree:
        tree.extend(Rows(300), 300)
        tree.keep()
    with Tree(path, read_only=True) as tree:
        assert tree.size == 300


def test_a_damaged_tile_is_noticed_where_roots_are_made_of_it_and_is_no_witness_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "tree.db"
    with Tree(path) as tree:
        tree.extend(Rows(1000), 1000)
        root = tree.root()
        tree.keep()
    for level, number, kept, told in ((0, 3, False, None), (1, 0, False, 500), (0, 1, True, None)):
        with sqlite3.connect(path) as db:
            [(sound,)] = db.execute("SELECT hashes FROM tiles WHERE level = ? AND number = ?", (level, number))
            wrong = bytes([sound[0] ^ 1]) + sound[1:]
            db.execute("UPDATE tiles SET hashes = ? WHERE level = ? AND number = ?", (wrong, level, number))
        with Tree(path, read_only=True) as tree:
            assert tree.matches(1000, root) is kept
            assert tree.first_change(Rows(1000, changed=500), root) == told
        with sqlite3.connect(path) as db:
            db.execute("UPDATE tiles SET hashes = ? WHERE level = ? AND number = ?", (sound, level, number))
        db.close()


@pytest.mark.parametrize("changed", [1, 256, 257, 600, 1000])
def test_the_kept_hashes_tell_which_event_was_changed(changed: int) -> None:
    tree = Tree()
    tree.extend(Rows(1000), 1000)
    assert tree.first_change(Rows(1000), tree.root()) is None
    assert tree.first_change(Rows(1000, changed=changed), tree.root()) == changed
    assert tree.first_change(Rows(changed - 1), tree.root()) == changed
    assert tree.first_change(Rows(1000, missing=changed), tree.root()) == changed
    assert tree.first_change(Rows(1000, changed=changed), bytes(32)) is None
    assert tree.agrees(Rows(1000), changed) and not tree.agrees(Rows(1000, changed=changed), changed)


def test_a_gap_is_not_folded_over() -> None:
    tree = Tree()
    with pytest.raises(LogError, match="events are missing after event 299"):
        tree.extend(Rows(1000, missing=300), 1000)
    tree = Tree()
    with pytest.raises(LogError, match="events are missing after event 10"):
        tree.extend(Rows(10), 11)


def test_a_leaf_is_all_that_is_stored_of_an_event() -> None:
    row = (7, 'ref/"a"\u2014', 2, "LayerPulled", b'{"t":5,"d":{"x":"\xe2\x80\x94"}}')
    text = leaf(row)
    begin = '{"seq":7,"stream":"ref/\\"a\\"—","version":2,'
    assert text.decode() == begin + '"type":"LayerPulled","state":{"t":5,"d":{"x":"—"}}}'
    assert list(leaf_hashes([row, row])) == [merkle.leaf_hash(text)] * 2


@pytest.mark.parametrize(
    "row", [(1, "s", 1, "T", "text"), (1, "s", 1, "T", None), (1, "s", 1.0, "T", b"{}"), (1, b"s", 1, "T", b"{}"),
            (1, "s", 1, b"T", b"{}"), (1, "s", "1", "T", b"{}"), (1, "\udc00", 1, "T", b"{}")],
)  # fmt: skip
def test_a_row_that_is_no_event_has_the_leaf_of_none(row: Row) -> None:
    assert leaf(row) == b""
    assert list(leaf_hashes([row])) == [merkle.leaf_hash(b"")]


def test_a_tree_that_cannot_be_kept_or_read_costs_time_and_no_more(tmp_path: Path) -> None:
    with Tree(tmp_path / "tree.db") as tree:
        tree.add(LEAVES[:300])
        tree.keep()
        with sqlite3.connect(tmp_path / "tree.db") as other:
            other.execute("DROP TABLE tiles")
        other.close()
        tree.add(LEAVES[300:600])
        tree.keep()
        assert tree.root() == root_of(LEAVES[:600])
    with Tree(tmp_path / "tree.db") as again:
        assert again.size == 0


def test_a_tree_that_lacks_tiles_answers_nothing(tmp_path: Path) -> None:
    with Tree(tmp_path / "tree.db") as tree:
        tree.add(LEAVES[:600])
        tree.keep()
    with sqlite3.connect(tmp_path / "tree.db") as other:
        other.execute("DELETE FROM tiles WHERE level = 0 AND number = 0")
    other.close()
    with Tree(tmp_path / "tree.db", read_only=True) as tree:
        assert tree.size == 600
        assert tree.root(100) == b""
        assert not tree.agrees(Rows(600), 1)
        assert tree.first_change(Rows(600), b"") is None
    with Tree(tmp_path / "none.db", read_only=True) as tree:
        assert tree.size == 0
        with pytest.raises(LookupError, match="no tile 0 at level 0"):
            tree.node(0, 0)


def test_what_stands_in_the_place_of_a_tree_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tree.db")
    with Tree(tmp_path / "tree.db", read_only=True) as tree:
        assert (tree.size, tree.root()) == (0, merkle.EMPTY)
    assert (tmp_path / "tree.db").is_fifo()
    with Tree(tmp_path / "tree.db") as tree:
        tree.extend(Rows(3), 3)
        tree.extend(Rows(3), 2)
        assert tree.size == 3
        tree.keep()
    with Tree(tmp_path / "tree.db", read_only=True) as tree:
        assert tree.size == 3


def test_a_file_that_could_not_be_written_to_once_is_let_go_of_and_written_later(tmp_path: Path) -> None:
    path = tmp_path / "tree.db"
    with Tree(path) as tree, closing(sqlite3.connect(path)) as other:
        tree.add(LEAVES[:300])
        other.execute("CREATE TRIGGER full BEFORE INSERT ON tiles BEGIN SELECT RAISE(ABORT, 'no room'); END")
        other.commit()
        tree.keep()
        other.execute("DROP TRIGGER full")  # locked, if the failed write were still going on
        other.commit()
        tree.keep()
    with Tree(path, read_only=True) as kept:
        assert (kept.size, kept.root()) == (300, root_of(LEAVES[:300]))
