"""Uploads of large blobs go on where they broke off, in another process too, and never put parts together wrongly."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from storage.digest import sha256
from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Provider
from storage.registry import Limits, RegistryClient
from storage.registry.lasting import _Feed
from storage.uploads import KEPT_SECONDS, UploadSessions
from tests.registry_fixture import WEB, RegistryProcess
from tests.storage.registry.kit import described, fetched, noise, use
from tests.waiting import PATIENCE

BIG = noise(Limits().lasting_bytes + 123_456, seed=3)
HALF = 4 << 20


class Source:
    """`data` from an offset on; `opened`: the offsets. Until `cured`, it breaks off after `HALF`, or waits there."""

    def __init__(self, data: bytes = BIG, *, waits: bool = False) -> None:
        self.data = data
        self.waits = waits
        self.cured = False
        self.opened: list[int] = []
        self.reached = asyncio.Event()

    def __call__(self, start: int = 0) -> AsyncIterator[bytes]:
        self.opened.append(start)
        return self._chunks(start)

    async def _chunks(self, start: int) -> AsyncIterator[bytes]:
        for begin in range(start, len(self.data), 1 << 19):
            if begin >= HALF and not self.cured:
                self.reached.set()
                if self.waits:
                    await asyncio.sleep(3600)
                raise RegistryError("the source is gone", kind="transport")
            yield self.data[begin : begin + (1 << 19)]


@pytest.fixture
def sessions(tmp_path: Path) -> UploadSessions:
    return UploadSessions(tmp_path / "up loads")


def run(provider: Provider, source: Source, sessions: UploadSessions, data: bytes = BIG) -> None:
    """One upload, by a client of its own, as another process would."""
    blob = described(data)
    use(lambda client: client.upload(provider, blob, source, resume=source), uploads=sessions)


def sent(registry: RegistryProcess, mark: int) -> list[str]:
    """Methods of the requests since `mark`."""
    return [line.method for line in registry.requests()[mark:]]


def stored(provider: Provider, data: bytes = BIG) -> bool:
    return use(lambda client: fetched(client, provider, described(data)))[0] == data


def test_what_arrived_before_a_failure_is_not_sent_again(
    registry: RegistryProcess, repository: str, sessions: UploadSessions, tmp_path: Path
) -> None:
    provider, source = Provider.of(registry.host, repository), Source()
    mark = registry.mark()
    with pytest.raises(RegistryError, match="the source is gone"):
        run(provider, source, sessions)
    [kept] = (tmp_path / "up loads").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    source.cured = True
    run(provider, source, sessions)
    assert source.opened == [0, HALF]
    assert sent(registry, mark) == ["POST", "PATCH", "GET", "PATCH", "PUT"]
    assert stored(provider)
    assert not list((tmp_path / "up loads").iterdir())


def test_whoever_is_cancelled_hears_first_what_arrived(
    registry: RegistryProcess, repository: str, sessions: UploadSessions
) -> None:
    provider, source = Provider.of(registry.host, repository), Source(waits=True)

    async def interrupted(client: RegistryClient) -> None:
        upload = asyncio.ensure_future(client.upload(provider, described(BIG), source, resume=source))
        await source.reached.wait()
        await asyncio.sleep(0.05)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    use(interrupted, uploads=sessions)
    source.cured = True
    run(provider, source, sessions)
    assert source.opened[0] == 0
    assert source.opened[1] == HALF
    assert stored(provider)


def test_an_upload_that_the_registry_forgot_begins_anew(
    registry: RegistryProcess, repository: str, sessions: UploadSessions
) -> None:
    provider, source = Provider.of(registry.host, repository), Source()
    with pytest.raises(RegistryError):
        run(provider, source, sessions)
    location = sessions.load(provider, described(BIG))
    WEB.delete(location).raise_for_status()
    source.cured = True
    run(provider, source, sessions)
    assert source.opened == [0, 0]
    assert stored(provider)


def test_I3_parts_that_do_not_fit_together_are_thrown_away_and_sent_once_more(
    registry: RegistryProcess, repository: str, sessions: UploadSessions
) -> None:
    provider = Provider.of(registry.host, repository)
    other = Source(noise(len(BIG), seed=4))  # somebody gave wrong bytes, and broke off
    with pytest.raises(RegistryError):
        run(provider, other, sessions)
    source = Source()
    source.cured = True
    run(provider, source, sessions)
    assert source.opened == [HALF, 0]
    assert stored(provider)


def test_I3_a_whole_that_is_wrong_is_refused_and_nothing_stays(
    registry: RegistryProcess, repository: str, sessions: UploadSessions
) -> None:
    provider, source = Provider.of(registry.host, repository), Source(noise(len(BIG), seed=4))
    source.cured = True
    with pytest.raises(VerificationError):
        run(provider, source, sessions)
    assert source.opened == [0]
    assert not use(lambda client: client.exists(provider, sha256(BIG)))
    assert not sessions.load(provider, described(BIG))


@pytest.mark.parametrize("data", [BIG[:-1], BIG + b"x"])
def test_a_source_of_another_length_is_refused(
    registry: RegistryProcess, repository: str, sessions: UploadSessions, data: bytes
) -> None:
    provider, source = Provider.of(registry.host, repository), Source(data)
    source.cured = True
    with pytest.raises(VerificationError, match="are promised"):
        run(provider, source, sessions)
    assert not use(lambda client: client.exists(provider, sha256(BIG)))


def test_small_blobs_are_one_put(registry: RegistryProcess, repository: str, sessions: UploadSessions) -> None:
    small, mark = noise(100_000), registry.mark()
    source = Source(small)
    run(Provider.of(registry.host, repository), source, sessions, small)
    assert sent(registry, mark) == ["POST", "PUT"]


class Picky(ThreadingHTTPServer):
    """A registry that answers PATCH with `status`, or (0) hangs up on it."""

    def __init__(self, status: int) -> None:
        methods: list[str] = []
        self.methods = methods

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                line = self.raw_requestline = self.rfile.readline(65537)
                if not line or not self.parse_request():
                    self.close_connection = True
                    return
                methods.append(self.command)
                if self.command == "PATCH" and not status:
                    self.close_connection = True
                    return
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        self.rfile.read(size + 2)
                    self.rfile.readline()
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response({"POST": 202, "PATCH": status, "PUT": 201}.get(self.command, 204))
                self.send_header("Location", "/v2/a/blobs/uploads/1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.parametrize("status", [404, 405, 411, 413, 415, 501, 0])
def test_a_registry_that_takes_no_patch_gets_it_in_one_piece(sessions: UploadSessions, status: int) -> None:
    with Picky(status) as server:
        source = Source()
        source.cured = True
        run(Provider.of(f"127.0.0.1:{server.server_port}", "a"), source, sessions)
    assert [method for method in server.methods if method != "GET"][-2:] == ["POST", "PUT"]
    assert server.methods.count("PATCH") == (1 if status else 2)


def test_what_nobody_went_on_with_is_forgotten(tmp_path: Path) -> None:
    now = 0.0
    sessions = UploadSessions(tmp_path / "u", clock=lambda: now)
    provider, blob = Provider.of("127.0.0.1:1", "a"), described(b"x")
    sessions.save(provider, blob, "http://127.0.0.1:1/v2/a/blobs/uploads/1")
    [kept] = (tmp_path / "u").iterdir()
    now = kept.stat().st_mtime + KEPT_SECONDS - 1
    sessions.sweep()
    assert sessions.load(provider, blob)
    now += 2
    sessions.sweep()
    assert not sessions.load(provider, blob)


def test_damaged_files_are_passed_over(sessions: UploadSessions, tmp_path: Path) -> None:
    provider, blob = Provider.of("127.0.0.1:1", "a"), described(b"x")
    sessions.save(provider, blob, "http://127.0.0.1:1/v2/a/blobs/uploads/1")
    [kept] = (tmp_path / "up loads").iterdir()
    for text in ("", "{", "[]", '{"location": 7}'):
        kept.write_text(text)
        assert sessions.load(provider, blob) == ""
    kept.unlink()
    os.mkfifo(kept)
    assert sessions.load(provider, blob) == "", "nobody waits for it"


def test_a_location_is_written_where_no_link_leads(sessions: UploadSessions, tmp_path: Path) -> None:
    provider, blob = Provider.of("127.0.0.1:1", "a"), described(b"x")
    sessions.save(provider, blob, "http://127.0.0.1:1/v2/a/blobs/uploads/1")
    [kept] = (tmp_path / "up loads").iterdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    kept.with_suffix(f".{os.getpid()}.part").symlink_to(victim)
    sessions.save(provider, blob, "http://127.0.0.1:1/v2/a/blobs/uploads/2")
    assert victim.read_text() == "precious"
    assert sessions.load(provider, blob).endswith("/1"), "to lose the other costs bytes, no more"


def test_whoever_is_cancelled_while_the_source_is_closed_hears_of_it() -> None:
    closing = asyncio.Event()

    async def source(_start: int) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closing.set()
            await asyncio.sleep(0.01)

    async def read() -> None:
        async with _Feed(source, 0, described(b"x" * 1000), "here").open():
            await asyncio.sleep(0.01)
        await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.ensure_future(read())
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), PATIENCE)

    asyncio.run(main())
