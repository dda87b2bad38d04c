"""The command line: notes add TEXT…, notes list [WORD], notes serve [--host HOST] [--port PORT]."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from notes.server import Server
from notes.store import Notes


def main() -> int:
    """Exit code 0, or 2 for a note that cannot be kept."""
    parser = argparse.ArgumentParser(prog="notes", description="Keeps short notes.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add").add_argument("text", nargs="+")
    commands.add_parser("list").add_argument("word", nargs="?", default="")
    serve = commands.add_parser("serve")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()

    notes = Notes(Path(os.environ.get("NOTES_FILE", "notes.db")))
    if given.command == "add":
        try:
            print(notes.add(" ".join(given.text)).id)
        except ValueError as error:
            print(f"notes: {error}", file=sys.stderr)
            return 2
    elif given.command == "list":
        for note in notes.find(given.word):
            print(f"{note.id:>4}  {note.made}  {note.text}")
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # reason: process 1 of a container has no default handler
        with Server((given.host, given.port), notes) as server:
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
