"""Run by the image's build: python3 -m unittest discover tests."""

from __future__ import annotations

import json
import tempfile
import threading
import unittest
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from notes.server import Server
from notes.store import Notes


class NotesTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.notes = Notes(Path(directory.name) / "notes.db")

    def test_notes_are_found_by_word_in_order(self) -> None:
        for text in ("buy milk", "call Ada", "Milk the goat"):
            self.notes.add(text)
        self.assertEqual([note.text for note in self.notes.find("milk")], ["buy milk", "Milk the goat"])

    def test_empty_note_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            self.notes.add("  ")

    def test_removed_note_is_gone(self) -> None:
        note = self.notes.add("once")
        self.assertTrue(self.notes.remove(note.id))
        self.assertFalse(self.notes.remove(note.id))

    def test_over_http(self) -> None:
        with Server(("127.0.0.1", 0), self.notes) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/notes"
            with urlopen(Request(url, b'{"text": "hello"}'), timeout=10) as answer:
                self.assertEqual(answer.status, 201)
            with urlopen(url + "?q=HELLO", timeout=10) as answer:
                self.assertEqual([note["text"] for note in json.load(answer)], ["hello"])
            with self.assertRaises(HTTPError) as refused:
                urlopen(Request(url, b"[]"), timeout=10)
            self.assertEqual(refused.exception.code, 400)
            refused.exception.close()
            server.shutdown()


if __name__ == "__main__":
    unittest.main()
