"""The Merkle tree of a log, kept in tiles, so that a root or a proof re-reads nothing of the log.

A tile is 256 hashes side by side, as in C2SP tlog-tiles: tile (level, number) holds nodes [256 × number, …) of the
tree's level 8 × `level`, leaf hashes at level 0; the last tile of a level may have fewer. All lie in one SQLite file
that anybody may delete: it is folded from the log (I1). It is also a witness: a leaf hash in it is of the event as it
was when it was folded, which tells *where* a log was changed once a signed root tells that it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import chain, islice, repeat
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.errors import LogError
from storage.interfaces.log import StoredRows
from storage.logtree import merkle
from storage.logtree.leaves import leaf_hashes
from storage.regular import check_database

HASH = 32  # bytes
TILE = 256  # hashes
_DEPTH = 8  # levels of the tree that a tile spans
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS tiles (level INTEGER NOT NULL, number INTEGER NOT NULL, hashes BLOB NOT NULL, "
    "PRIMARY KEY (level, number))"
)


class Tree:
    """The tree of `size` leaves. Not thread-safe. One process at a time may `extend` and `keep`."""

    def __init__(self, path: Path | None = None, *, read_only: bool = False) -> None:
        """With what is kept at `path`, if anything is; a file that is none counts as nothing. `read_only`: neither
        made nor changed."""
        self._path = path
        self._read_only = read_only or path is None
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._changed: set[tuple[int, int]] = set()
        self._db: sqlite3.Connection | None = None
        self.size = 0
        if path is not None:
            try:
                self._open(path)
            except (sqlite3.Error, UnicodeDecodeError):  # SQLite's message has the bytes of a broken schema
                self.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._db is not None:
            self._db.close()

    def _open(self, path: Path) -> None:
        if self._read_only and not path.exists():
            return
        try:
            check_database(path, linked=False)
        except OSError as error:
            raise sqlite3.DatabaseError(str(error)) from error
        how = "mode=ro&immutable=1" if self._read_only else "mode=rwc"
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
        self._db.execute("PRAGMA trusted_schema=OFF")  # reason: the file may come with a root from elsewhere
        if not self._read_only:
            self._db.execute("PRAGMA synchronous=OFF")  # reason: what a crash damages is folded again (`matches`)
            self._db.execute(_SCHEMA)
        for (sql,) in self._db.execute("SELECT sql FROM sqlite_schema"):
            if sql not in {None, _SCHEMA.replace("IF NOT EXISTS ", "")}:
                raise sqlite3.DatabaseError("its schema is none of ours")  # a view might go on for ever
        row = self._db.execute(
            "SELECT number, length(hashes) FROM tiles WHERE level = 0 ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if row is not None and isinstance(row[0], int) and isinstance(row[1], int):
            self.size = row[0] * TILE + row[1] // HASH

    def discard(self) -> None:
        """Begin anew, in the file too (once it is kept)."""
        self._tiles.clear()
        self._changed.clear()
        self.size = 0
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._path is not None and not self._read_only:
            with suppress(OSError):  # reason: what stands there and is no file is left to who put it there
                self._path.unlink(missing_ok=True)
            with suppress(sqlite3.Error):  # reason: a tree that cannot be kept is as good, and slower the next time
                self._open(self._path)

    # ------------------------------------------------------------ growing

    def extend(self, log: StoredRows, until: int) -> None:
        """Fold events of `log` up to `until` that are not in the tree yet. Raises LogError, also where one is
        missing: the tree is of no use then."""
        if until <= self.size:
            return
        after = self.size
        self.add(leaf_hashes(log.rows(after, until)))
        if self.size != until:  # reason: rows come in order, so that none is missing when their number is right
            there = (row[0] for row in log.rows(after, until))
            sound = next((seq for seq, found in enumerate(there, after + 1) if seq != found), self.size + 1) - 1
            raise LogError(f"events are missing after event {sound}", hint="refledger audit verify tells more")

    def add(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes."""
        number, rest = divmod(self.size, TILE)
        tile, source = self._tile(0, number) if rest else b"", iter(leaves)
        while more := b"".join(islice(source, TILE - rest)):
            tile, rest = tile + more, 0
            if len(tile) == TILE * HASH:
                self._finish(0, number, tile)
                number, tile = number + 1, b""
            else:
                self._put(0, number, tile)
            self.size = number * TILE + len(tile) // HASH

    def _finish(self, level: int, number: int, tile: bytes) -> None:
        """A tile is full: its root is a hash of the level above."""
        self._put(level, number, tile)
        above, rest = divmod(number, TILE)
        upper = (self._tile(level + 1, above) if rest else b"")[: rest * HASH] + _perfect(tile)
        if rest == TILE - 1:
            self._finish(level + 1, above, upper)
        else:
            self._put(level + 1, above, upper)

    def _put(self, level: int, number: int, tile: bytes) -> None:
        self._tiles[level, number] = tile
        self._changed.add((level, number))

    def keep(self) -> None:
        """Write what is new into the file. One that cannot be written to stays behind, which costs time only."""
        if self._db is None or self._read_only:
            return
        new = [(*place, self._tiles[place]) for place in sorted(self._changed)]
        with suppress(sqlite3.Error):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO tiles VALUES (?, ?, ?)", new)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._db.execute("ROLLBACK")
                raise
            self._changed.clear()

    # ------------------------------------------------------------ asking

    def matches(self, size: int, root: bytes) -> bool:
        """Is it a tree of `size` leaves, and `root` its root? Every hash that later roots are made of enters into
        that one, so a tree that matches can be gone on with, whatever happened to the file."""
        return self.size == size and self.root() == root

    def root(self, size: int | None = None) -> bytes:
        """Of the tree of the first `size` leaves. b"" when the file lacks what is needed."""
        size = self.size if size is None else size
        try:
            return merkle.subtree(self.node, 0, size)
        except (LookupError, sqlite3.Error):
            return b""

    def agrees(self, log: StoredRows, seq: int) -> bool:
        """Is event `seq` what it was when it was folded? Raises LogError."""
        try:
            return next(leaf_hashes(log.rows(seq - 1, seq)), b"") == self.node(0, seq - 1)
        except (LookupError, sqlite3.Error):
            return False

    def first_change(self, log: StoredRows, root: bytes) -> int | None:
        """The first event that is not what it was when it was folded, by the hashes kept here if they lead to `root`,
        which somebody vouches for; None when they do not, and when there is none. Raises LogError."""
        try:
            whole = merkle.Frontier()
            whole.extend(self.leaves())
            if whole.size != self.size or whole.root() != root:
                return None
            there = chain(leaf_hashes(log.rows(0, self.size)), repeat(b""))
            pairs = enumerate(zip(self.leaves(), there, strict=False), 1)
            return next((seq for seq, (was, is_now) in pairs if was != is_now), None)
        except (LookupError, sqlite3.Error):
            return None

    def leaves(self, after: int = 0) -> Iterator[bytes]:
        """Leaf hashes of the events behind `after`, in order. Raises LookupError, sqlite3.Error."""
        number, rest = divmod(after, TILE)
        while number * TILE < self.size:
            tile = self._read(0, number)
            yield from (tile[i : i + HASH] for i in range(rest * HASH, len(tile), HASH))
            number, rest = number + 1, 0

    def node(self, level: int, index: int) -> bytes:
        """See merkle.Node. Raises LookupError, sqlite3.Error when the file lacks it."""
        above, depth = divmod(level, _DEPTH)
        number, start = divmod(index << depth, TILE)
        hashes = self._tile(above, number)[start * HASH : (start + (1 << depth)) * HASH]
        if len(hashes) != HASH << depth:
            raise LookupError(f"the tree has no node {index} at level {level}")
        return _perfect(hashes)

    def _tile(self, level: int, number: int) -> bytes:
        tile = self._tiles.get((level, number))
        if tile is None:
            tile = self._tiles[level, number] = self._read(level, number)
        return tile

    def _read(self, level: int, number: int) -> bytes:
        if (level, number) in self._tiles:
            return self._tiles[level, number]
        row = None
        if self._db is not None:
            sql = "SELECT hashes FROM tiles WHERE level = ? AND number = ?"
            row = self._db.execute(sql, (level, number)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise LookupError(f"the tree has no tile {number} at level {level}")
        return row[0]

    def dump(self) -> list[tuple[int, int, bytes]]:
        """All tiles, in order: equal for equal logs."""
        places = set(self._tiles)
        if self._db is not None:
            places |= set(self._db.execute("SELECT level, number FROM tiles"))
        return [(*place, self._read(*place)) for place in sorted(places)]


def _perfect(hashes: bytes) -> bytes:
    """The root of a perfect tree: a power of two of hashes."""
    while len(hashes) > HASH:
        pairs = range(0, len(hashes), 2 * HASH)
        hashes = b"".join([sha256(b"\1" + hashes[i : i + 2 * HASH]).digest() for i in pairs])
    return hashes
