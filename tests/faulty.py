"""A proxy before a real registry that misbehaves on purpose, and the servers that it is one of."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tests.local_server import MANY, Answering, LocalServer, Seen, read_body, read_head, write_answer

__all__ = ["Answer", "Answering", "Fault", "FaultyProxy", "LocalServer", "Request", "Seen", "read_head", "write_answer"]


@dataclass(slots=True)
class Fault:
    """What to do with the next `times` requests (-1: all) of `method` whose path matches `path` and that are as `when`
    says, after the first `skip` of them.

    With `status`, answer `status`, `headers`, `body` without asking the registry. Otherwise pass the request on,
    without the request headers `strip` and as `edit_request` changes it, and treat the answer: leave out the headers
    `hide`, say `content_length`, damage the body (`flip`: in the middle), append `extra`, let `edit_answer`
    change it, send it `chunked`. `swallow`: the registry's answer is lost; what is sent is `status`, or nothing.

    End the connection after `cut_after` body bytes, reset it after `reset_after`, or send no more after `stall_after`:
    0 is before the first, -1 before the last one; `headless`: nor is the head of the answer sent. `inbound`: these
    count the bytes of the request's body instead, of which the rest is not read; what was read goes on to the registry
    as a broken request with `forward`. `keep`: so many bytes of the body go on to the registry as if they were all; who
    asks for the state of that upload afterwards learns of them.

    `rate`: send that many body bytes a second on each connection, and next to nothing once `crawl_after` bytes were
    sent in all; `drip`: a byte of the body (`headless`: of the head) at a time, so many seconds apart. `goes_stale`:
    the connection seems to be kept, and is reset by the next request. `redirect`: answer 307 to the same path at this
    `host:port`. `demand`: answer 401 with the challenge in `headers` unless the request has this `Authorization`.
    """

    method: str = "GET"
    path: str = ""
    times: int = -1
    when: Callable[[Seen], bool] | None = None
    skip: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    strip: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    content_length: int | None = None
    flip: bool = False
    extra: bytes = b""
    edit_request: Callable[[Request], None] | None = None
    edit_answer: Callable[[Answer], None] | None = None
    chunked: bool = False
    swallow: bool = False
    cut_after: int | None = None
    reset_after: int | None = None
    stall_after: int | None = None
    headless: bool = False
    inbound: bool = False
    forward: bool = False
    keep: int | None = None
    rate: int = 0
    crawl_after: int | None = None
    drip: float = 0
    goes_stale: bool = False
    redirect: str = ""
    demand: str = ""
    fired: int = field(default=0, init=False)
    sent: int = field(default=0, init=False)

    def fits(self, seen: Seen) -> bool:
        """Is `seen` to be treated so? Counts it when it is."""
        if not self.times or not re.fullmatch(self.method, seen.method) or not re.search(self.path, seen.path):
            return False
        if self.demand and seen.headers.get("authorization") == self.demand:
            return False
        if self.when is not None and not self.when(seen):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        self.fired += 1
        return True

    @property
    def silent(self) -> bool:
        """Is this about waiting for bytes that do not come?"""
        return self.stall_after is not None or self.drip > 0

    @property
    def ends_at(self) -> int | None:
        """Where in the body the connection is left."""
        places = (self.cut_after, self.reset_after, self.stall_after)
        return next((place for place in places if place is not None), None)


@dataclass(slots=True)
class Request:
    """What the registry is asked; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """What the registry said; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class FaultyProxy(LocalServer):
    """Before the registry at `upstream`; behaves as the first of `faults` that fits each request says."""

    def __init__(self, upstream: str, *faults: Fault) -> None:
        super().__init__()
        self.upstream = upstream
        self.faults = list(faults)
        self._moved: dict[str, str] = {}  # paths of uploads to where the registry has them now

    async def handle(self, head: Seen, reader: Reader, writer: Writer) -> None:
        """See LocalServer.handle."""
        fault = next((one for one in self.faults if one.fits(head)), Fault())
        most = None
        if fault.inbound and fault.ends_at is not None:
            most = _place(fault.ends_at, int(head.headers.get("content-length", MANY)))
        seen = replace(head, body=await read_body(reader, head.headers, most))
        self.seen.append(seen)
        if fault.inbound:
            if fault.forward or fault.keep is not None:
                await self._ask(seen, fault, broken=fault.forward)
            if fault.status:
                write_answer(writer, fault.status, fault.headers, fault.body)
                await reader.read()  # reason: to close with bytes unread is a reset, which may overtake the answer
            await _leave(writer, fault)
        elif fault.demand:
            write_answer(writer, 401, fault.headers, fault.body)
        elif fault.redirect:
            write_answer(writer, 307, {"Location": f"http://{fault.redirect}{seen.path}"}, b"")
        elif fault.status:
            if fault.swallow:
                await self._ask(seen, fault)
            write_answer(writer, fault.status, fault.headers, fault.body)
        elif (answer := await self._ask(seen, fault)) is not None:
            await _send_treated(writer, answer, fault)
            if fault.goes_stale:
                await reader.read(1)
                await _leave(writer, Fault(reset_after=0))

    async def _ask(self, seen: Seen, fault: Fault, *, broken: bool = False) -> Answer | None:
        """What the registry answers; with `broken`, it is left alone before it has all of the body."""
        host, _, port = self.upstream.partition(":")
        reader, upstream = await asyncio.open_connection(host, int(port))
        headers = {name: value for name, value in seen.headers.items() if name not in {"connection", *fault.strip}}
        bare = seen.path.partition("?")[0]
        path = self._moved.get(bare, seen.path) if seen.method == "GET" else seen.path
        request = Request(path, headers, seen.body[: fault.keep])
        if headers.pop("transfer-encoding", "") or fault.keep is not None:
            headers["content-length"] = str(len(request.body) + broken)
        if fault.edit_request is not None:
            fault.edit_request(request)
        try:
            lines = [f"{name}: {value}" for name, value in headers.items()]
            head = "\r\n".join([f"{seen.method} {request.path} HTTP/1.1", *lines, "connection: close", "", ""])
            upstream.write(head.encode("latin-1") + request.body)
            await upstream.drain()
            if broken:
                await asyncio.sleep(0.05)  # reason: for the registry to have read and kept what came
                return None
            first, got = await read_head(reader)
            status = int(first.split(" ")[1])
            if fault.keep is not None:
                self._moved[bare] = "/" + got["location"].split("/", 3)[3]
            bodiless = seen.method == "HEAD" or status in {204, 304}
            content = b"" if bodiless else await read_body(reader, got)
            if got.pop("transfer-encoding", ""):
                got["content-length"] = str(len(content))
            return Answer(status, got, content)
        finally:
            upstream.close()


async def _send_treated(writer: Writer, answer: Answer, fault: Fault) -> None:
    if fault.content_length is not None:
        answer.headers["content-length"] = str(fault.content_length)
    if fault.flip and (body := answer.body):
        middle = len(body) // 2
        answer.body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    if fault.edit_answer is not None:
        fault.edit_answer(answer)
    headers, end, body = answer.headers, fault.ends_at, answer.body
    if end is not None:
        body = body[: _place(end, len(body))]
    body += fault.extra
    if (not fault.headless or fault.drip) and not fault.swallow:
        if fault.chunked:
            headers.pop("content-length", None)
            headers["transfer-encoding"] = "chunked"
        dropped = {"connection", *fault.hide}
        lines = [f"{name}: {value}" for name, value in headers.items() if name not in dropped]
        kept = [] if fault.goes_stale else ["connection: close"]
        head = "\r\n".join([f"HTTP/1.1 {answer.status} Because", *lines, *kept, "", ""]).encode("latin-1")
        if not fault.headless:
            writer.write(head)
            head = b""
        await _trickle(writer, head + (_chunked(body, whole=end is None) if fault.chunked else body), fault)
    if end is not None:
        await _leave(writer, fault)
    elif fault.swallow:
        await _leave(writer, Fault(reset_after=0))


async def _trickle(writer: Writer, data: bytes, fault: Fault) -> None:
    at = 0
    while at < len(data):
        step = 1 if fault.drip else fault.rate // 50 or len(data)
        if fault.crawl_after is not None and fault.sent >= fault.crawl_after:
            step = 10
        writer.write(data[at : at + step])
        await writer.drain()
        at += step
        fault.sent += step
        if fault.rate or fault.drip:
            await asyncio.sleep(fault.drip or 0.02)


async def _leave(writer: Writer, fault: Fault) -> None:
    """Stall, reset or just end, as `fault` says."""
    await writer.drain()
    if fault.stall_after is not None:
        await asyncio.sleep(3600)
    if fault.reset_after is not None:
        await asyncio.sleep(0.02)  # reason: a reset may overtake what was sent before it
        linger = struct.pack("ii", 1, 0)  # do not wait for anything: RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


def _place(end: int | None, length: int) -> int:
    """How many of `length` bytes come before the place `end`; negative ones count from the end."""
    if end is None:
        return length
    return max(0, length + end) if end < 0 else min(end, length)


def _chunked(body: bytes, *, whole: bool) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + (b"\r\n0\r\n\r\n" if whole else b"")
