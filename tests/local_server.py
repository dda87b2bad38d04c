"""A small HTTP server in a thread, and what it takes to read and write HTTP by hand."""

from __future__ import annotations

import asyncio
import ssl
import threading
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from tests.waiting import PATIENCE

MANY = 1 << 40
"""Bytes; of a body that does not say how long it is."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


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

    async def handle(self, head: Seen, reader: Reader, writer: Writer) -> None:
        """A request whose body is still to be read."""
        seen = replace(head, body=await reader.readexactly(int(head.headers.get("content-length", 0))))
        self.seen.append(seen)
        await self.respond(seen, writer)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)

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
            await self.handle(Seen(method, path, headers), reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, which is its right, or the server is stopped
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


async def read_head(reader: Reader) -> tuple[str, dict[str, str]]:
    """The first line of a request or answer and its headers, names in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    return first, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def read_body(reader: Reader, headers: Mapping[str, str], most: int | None = None) -> bytes:
    """The body of a request or an answer, of which no more than the first `most` bytes are read."""
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", 0))
        return await reader.readexactly(length if most is None else min(length, most))
    most = MANY if most is None else most
    body = b""
    while len(body) < most and (size := int(await reader.readuntil(b"\r\n"), 16)):
        body += await reader.readexactly(min(size, most - len(body)))
        if len(body) < most:
            await reader.readexactly(2)
    return body


def write_answer(writer: Writer, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """A whole answer."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {status} Because", *lines, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    writer.write("\r\n".join(head).encode("latin-1") + body)
