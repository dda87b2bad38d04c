"""Servers that misbehave on purpose: a small HTTP server in a thread, and on it a proxy before a real registry."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(slots=True)
class Fault:
    """What to do with the next `times` requests (-1: all) of `method` whose path matches `path`.

    With `status`, answer `status`, `headers`, `body` without asking the registry. Otherwise pass the request on,
    without the request headers `strip`, and treat the answer: leave out the headers `hide`, say `content_length`,
    damage the body (`flip`), append `extra`, end the connection after `cut_after` body bytes, or send no more after
    `stall_after`; `rate`: send that many body bytes a second on each connection.
    `redirect`: answer 307 to the same path at this `host:port`. `demand`: answer 401 with the challenge in `headers`
    unless the request has this `Authorization`.
    """

    method: str = "GET"
    path: str = ""
    times: int = -1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    strip: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    content_length: int | None = None
    flip: bool = False
    extra: bytes = b""
    cut_after: int | None = None
    stall_after: int | None = None
    rate: int = 0
    redirect: str = ""
    demand: str = ""

    def fits(self, seen: Seen) -> bool:
        if not self.times or not re.fullmatch(self.method, seen.method) or not re.search(self.path, seen.path):
            return False
        return not self.demand or seen.headers.get("authorization") != self.demand


class LocalServer:
    """An HTTP server on 127.0.0.1 in a thread of its own; one request a connection. `respond(request, writer)`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.seen: list[Seen] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    async def respond(self, seen: Seen, writer: Writer) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        try:
            first, headers = await read_head(reader)
            method, path, _ = first.split(" ", 2)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            seen = Seen(method, path, headers, body)
            self.seen.append(seen)
            await self.respond(seen, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away: that is its right
        finally:
            writer.close()


class Answering(LocalServer):
    """Answers with what `answer(request)` gives: status, headers, body."""

    def __init__(
        self, answer: Callable[[Seen], tuple[int, Mapping[str, str], bytes]], tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls)
        self._answer = answer

    async def respond(self, seen: Seen, writer: Writer) -> None:
        status, headers, body = self._answer(seen)
        write_answer(writer, status, headers, body)


class FaultyProxy(LocalServer):
    """Before the registry at `upstream`; behaves as the first of `faults` that fits each request says."""

    def __init__(self, upstream: str, *faults: Fault) -> None:
        super().__init__()
        self.upstream = upstream
        self.faults = list(faults)

    async def respond(self, seen: Seen, writer: Writer) -> None:
        fault = next((one for one in self.faults if one.fits(seen)), Fault())
        fault.times -= 1
        if fault.demand:
            write_answer(writer, 401, fault.headers, fault.body)
        elif fault.redirect:
            write_answer(writer, 307, {"Location": f"http://{fault.redirect}{seen.path}"}, b"")
        elif fault.status:
            write_answer(writer, fault.status, fault.headers, fault.body)
        else:
            await self._pass_on(seen, writer, fault)

    async def _pass_on(self, seen: Seen, writer: Writer, fault: Fault) -> None:
        host, _, port = self.upstream.partition(":")
        reader, upstream = await asyncio.open_connection(host, int(port))
        try:
            dropped = {"connection", "authorization", *fault.strip}
            lines = [f"{name}: {value}" for name, value in seen.headers.items() if name not in dropped]
            head = "\r\n".join([f"{seen.method} {seen.path} HTTP/1.1", *lines, "connection: close", "", ""])
            upstream.write(head.encode("latin-1") + seen.body)
            await upstream.drain()
            first, headers = await read_head(reader)
            length = 0 if seen.method == "HEAD" else int(headers.get("content-length", 0))
            body = await reader.readexactly(length)
            await _send_treated(writer, first, headers, body, fault)
        finally:
            upstream.close()


async def _send_treated(writer: Writer, first: str, headers: dict[str, str], body: bytes, fault: Fault) -> None:
    if fault.content_length is not None:
        headers["content-length"] = str(fault.content_length)
    if fault.flip and body:
        middle = len(body) // 2
        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    lines = [f"{name}: {value}" for name, value in headers.items() if name not in {"connection", *fault.hide}]
    writer.write("\r\n".join([first, *lines, "connection: close", "", ""]).encode("latin-1"))
    end = fault.cut_after if fault.cut_after is not None else fault.stall_after
    body = body[:end] + fault.extra
    step = fault.rate // 50 or len(body)
    for start in range(0, len(body), max(step, 1)):
        writer.write(body[start : start + step])
        await writer.drain()
        if fault.rate:
            await asyncio.sleep(0.02)
    if fault.stall_after is not None:
        await asyncio.sleep(3600)


async def read_head(reader: Reader) -> tuple[str, dict[str, str]]:
    """The first line of a request or answer and its headers, names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    return first, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def write_answer(writer: Writer, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """A whole answer."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} Because", *lines, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    writer.write("\r\n".join(head).encode("latin-1") + body)


