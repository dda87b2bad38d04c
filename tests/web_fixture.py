"""A web server on loopback with an access log, and git repositories that are served as the world serves them."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from tests.registry_fixture import free_port
from tests.waiting import PATIENCE


@dataclass(slots=True)
class Page:
    """What a path answers: `status` with `headers` and `body`; an ETag in `headers` is honoured."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came, and what was answered."""

    path: str
    status: int
    headers: Mapping[str, str]


class WebServer:
    """`pages` by path; `requests` in the order they were done."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                page = outer.pages.get(self.path.partition("?")[0], Page(b"nothing here", status=404))
                status, body = page.status, page.body
                etag, asked = page.headers.get("ETag"), self.headers.get("If-None-Match")
                since = self.headers.get("If-Modified-Since")
                same = (etag and asked == etag) or (since and since == page.headers.get("Last-Modified"))
                if status == 200 and same:
                    status, body = 304, b""
                outer.requests.append(Request(self.path, status, dict(self.headers)))
                self.send_response(status)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def put(self, path: str, body: bytes, **headers: str) -> str:
        """Answer `path` with `body`; underscores in header names are dashes. Returns the URL."""
        self.pages[path] = Page(body, {name.replace("_", "-"): value for name, value in headers.items()})
        return self.url + path

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Repository:
    """A git repository in `directory`, with an author and times of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        """What `git ARGUMENTS` prints in it."""
        who = {"NAME": "A", "EMAIL": "a@example.org", "DATE": "2024-03-01T12:00:00Z"}
        env = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        config = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": "file:git:http"}
        done = subprocess.run(
            ["git", *arguments], cwd=self.directory, env={**os.environ, **env, **config},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, files: Mapping[str, str | bytes], message: str = "change") -> str:
        """Write `files` (those below bin/ executable) and commit everything; returns the commit."""
        for name, data in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
            path.chmod(0o755 if name.startswith("bin/") else 0o644)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


@contextmanager
def git_daemon(base: Path) -> Iterator[str]:
    """All repositories below `base` over git://; gives the URL of `base`."""
    port = free_port()
    daemon = subprocess.Popen(
        ["git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={base}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                break
        else:
            raise AssertionError("git daemon does not answer")
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(daemon.pid, 15)
        daemon.wait(PATIENCE)


@contextmanager
def git_over_http(base: Path, login: tuple[str, str] | None = None) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """All repositories below `base` over smart http, through git's own backend; gives the URL of `base`, and the
    Authorization headers that came so far ("" for none). With a `login`, others are refused."""
    from base64 import b64encode

    seen: list[str] = []
    wanted = "Basic " + b64encode(":".join(login).encode()).decode() if login else ""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._serve(body)

        def _serve(self, body: bytes) -> None:
            seen.append(self.headers.get("Authorization", ""))
            if wanted and seen[-1] != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            env = {
                "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(base), "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""), "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            }  # fmt: skip
            done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
            head, _, answer = done.stdout.partition(b"\r\n\r\n")
            headers = [line.partition(": ") for line in head.decode().split("\r\n")]
            status = next((int(value.split()[0]) for name, _, value in headers if name == "Status"), 200)
            self.send_response(status)
            for name, _, value in headers:
                if name and name != "Status":
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", lambda: list(seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
