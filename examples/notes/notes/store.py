"""Notes in one SQLite file."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, made TEXT NOT NULL)
"""
_ADD = "INSERT INTO note (text, made) VALUES (?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')) RETURNING id, text, made"
_FIND = "SELECT id, text, made FROM note WHERE instr(lower(text), lower(?)) ORDER BY id"
LONGEST = 10_000  # characters


@dataclass(frozen=True)
class Note:
    """`made` is UTC, ISO 8601."""

    id: int
    text: str
    made: str

    def to_json(self) -> dict[str, object]:
        """`{id, text, made}`."""
        return asdict(self)


class Notes:
    """The notes of one file, which is made when it is missing."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._open() as database:
            database.execute(_SCHEMA)

    def add(self, text: str) -> Note:
        """Keep `text`. Raises ValueError when it is empty or longer than LONGEST."""
        text = text.strip()
        if not 0 < len(text) <= LONGEST:
            raise ValueError(f"a note has 1 to {LONGEST} characters")
        with self._open() as database:
            row = database.execute(_ADD, (text,)).fetchone()
        return Note(*row)

    def find(self, word: str = "") -> list[Note]:
        """Notes that contain `word`, oldest first."""
        with self._open() as database:
            return [Note(*row) for row in database.execute(_FIND, (word,))]

    def remove(self, number: int) -> bool:
        """Drop a note; False when there is none of this number."""
        with self._open() as database:
            return database.execute("DELETE FROM note WHERE id = ?", (number,)).rowcount == 1

    def _open(self) -> sqlite3.Connection:
        # reason: the server answers each request in its own thread, and a connection belongs to one thread
        return sqlite3.connect(self._path, timeout=10)
