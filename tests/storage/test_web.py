"""Files of the web: bounded, asked again politely, credentials only where they belong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from storage.digest import sha256
from storage.errors import RegistryError
from storage.registry.limits import Limits
from storage.registry.transport import Transport
from storage.sources import Answer, Known, Login
from storage.web import WebClient
from tests.registry_fixture import free_port
from tests.web_fixture import Page, WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def get(
    url: str, *, known: Known | None = None, login: Login | None = None, tries: int = 3, **bounds: Any
) -> tuple[Answer, bytes]:
    """The answer and what was written in the last try."""
    written: list[bytes] = []

    async def sleep(_: float) -> None:
        pass

    async def main() -> Answer:
        limits = Limits(tries=tries)
        client = WebClient("test", limits, transport=Transport("test", limits, sleep=sleep), **bounds)
        try:
            return await client.get(url, lambda: written.clear() or written.append, known=known, login=login)  # type: ignore[func-returns-value]
        finally:
            await client.aclose()

    return asyncio.run(main()), b"".join(written)


def test_an_answer_says_all_there_is_to_know(web: WebServer) -> None:
    url = web.put("/x", b"data", ETag='"1"', Last_Modified="Fri, 01 Mar 2024 12:00:00 GMT")
    answer, data = get(url)
    assert data == b"data"
    assert answer == Answer(sha256(b"data"), 4, 1709294400, '"1"', "Fri, 01 Mar 2024 12:00:00 GMT")
    assert web.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("modified", ["", "yesterday", "Fri, 31 Feb 2024 12:00:00 GMT", "1 Jan 1960 00:00:00 GMT"])
def test_times_that_are_none_count_as_none(web: WebServer, modified: str) -> None:
    assert get(web.put("/x", b"", Last_Modified=modified))[0].mtime == 0


def test_a_time_without_a_zone_is_the_same_wherever_this_machine_is(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        for zone in ("", " -0000"):
            url = web.put("/x", b"", Last_Modified=f"Fri, 01 Mar 2024 12:00:00{zone}")
            assert get(url)[0].mtime == 1709294400
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_server_that_ignores_conditions_is_not_read_when_its_etag_is_known(web: WebServer) -> None:
    web.put("/x", b"same", ETag='W/"1"')  # the condition asks for another spelling, so it answers with a body
    answer, data = get(web.url + "/x", known=Known('"1"'))
    assert (answer.digest, data) == (None, b"")
    assert web.requests[0].status == 200


def test_a_file_that_is_too_large_is_refused(web: WebServer) -> None:
    url = web.put("/x", b"0123456789")
    with pytest.raises(RegistryError, match="larger than 9 bytes"):
        get(url, max_bytes=9)
    assert get(url, max_bytes=10)[1] == b"0123456789"


def test_what_may_pass_is_tried_again_and_then_said(web: WebServer) -> None:
    web.pages["/x"] = Page(b"busy", status=503)
    with pytest.raises(RegistryError, match="the server answered 503") as raised:
        get(web.url + "/x")
    assert len(web.requests) == 3
    assert "registry" not in str(raised.value)


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(RegistryError, match="refused the connection") as raised:
        get(f"http://127.0.0.1:{free_port()}/x", tries=1)
    assert "registry" not in str(raised.value)


def test_I9_credentials_do_not_follow_a_redirect_to_another_host(web: WebServer) -> None:
    with WebServer() as other:
        other.put("/x", b"data")
        web.pages["/x"] = Page(b"", {"Location": other.url + "/x"}, 302)
        _, data = get(web.url + "/x", login=("u", "p"))
        assert data == b"data"
        assert "Authorization" in web.requests[0].headers
        assert "Authorization" not in other.requests[0].headers


def test_a_redirect_to_nowhere_and_one_in_a_circle_end(web: WebServer) -> None:
    web.pages["/x"] = Page(b"", {}, 302)
    with pytest.raises(RegistryError, match="the server redirects to nowhere"):
        get(web.url + "/x")
    web.pages["/x"] = Page(b"", {"Location": "/x"}, 302)
    with pytest.raises(RegistryError, match="more than 3 redirects"):
        get(web.url + "/x", max_redirects=3)
    assert len(web.requests) == 1 + 4


def test_who_must_agree_to_a_redirect_is_asked_before_the_other_server(web: WebServer) -> None:
    class Refused(Exception):
        pass

    def refuse(url: str) -> None:
        raise Refused(url)

    with WebServer() as other:
        web.pages["/x"] = Page(b"", {"Location": other.url + "/x"}, 302)
        with pytest.raises(Refused, match=other.url + "/x"):
            get(web.url + "/x", redirected=refuse)
        assert other.requests == []


def test_a_file_that_says_no_size_ends_where_it_is_too_large() -> None:
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(100))
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
            written: list[bytes] = []
            limits = Limits(tries=1)
            client = WebClient("test", limits, max_bytes=99)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
            try:
                with pytest.raises(RegistryError, match="larger than 99 bytes"):
                    await client.get(url, lambda: written.append)
            finally:
                await client.aclose()
            assert sum(map(len, written)) <= 99

    asyncio.run(main())


def test_a_query_is_not_in_an_error(web: WebServer) -> None:
    with pytest.raises(RegistryError) as raised:
        get(web.url + "/x?signature=hunter22")
    assert "hunter22" not in str(raised.value)
