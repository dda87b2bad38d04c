"""GET /notes[?q=WORD], POST /notes, DELETE /notes/ID; JSON both ways."""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from notes.store import LONGEST, Notes


class Server(ThreadingHTTPServer):
    """Serves `notes` on `address`."""

    def __init__(self, address: tuple[str, int], notes: Notes) -> None:
        super().__init__(address, Handler)
        self.notes = notes


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version = "notes"

    def do_GET(self) -> None:
        """List notes."""
        url = urlsplit(self.path)
        if url.path != "/notes":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "only /notes is here"})
            return
        word = parse_qs(url.query).get("q", [""])[0]
        self._answer(HTTPStatus.OK, [note.to_json() for note in self.server.notes.find(word)])

    def do_POST(self) -> None:
        """Add the note `{"text": …}`."""
        try:
            size = int(self.headers.get("Content-Length", ""))
            if size > 8 * LONGEST:
                raise ValueError("too long")
            note = self.server.notes.add(json.loads(self.rfile.read(size))["text"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": f'send {{"text": …}}: {error}'})
            return
        self._answer(HTTPStatus.CREATED, note.to_json())

    def do_DELETE(self) -> None:
        """Remove one note."""
        number = self.path.removeprefix("/notes/")
        found = number.isdecimal() and self.server.notes.remove(int(number))
        self._answer(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND, {"removed": bool(found)})

    def _answer(self, status: HTTPStatus, value: object) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
