"""Files of the web: one at a time, bounded, redirects followed by hand.

Sources: RFC 9110 sections 8.8 (validators), 13 (conditional requests) and 15.4 (redirection).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING

from storage.digest import Hasher
from storage.errors import RegistryError
from storage.registry.failures import refused
from storage.registry.limits import Limits
from storage.registry.transport import Transport, host_of, locate, origin, seconds_of
from storage.sources import Answer, Known, Login, Sink

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 16 << 30
"""Bytes of one file at most: a server must not fill the disk."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class WebClient:
    """Implements Web. Use it in one event loop; `aclose` it there. `redirected` is told of each place that a server
    sends to before that is asked, and raises where it must not be."""

    def __init__(
        self,
        user_agent: str,
        limits: Limits | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        max_redirects: int = 10,
        transport: Transport | None = None,
        redirected: Callable[[str], None] | None = None,
    ) -> None:
        self._redirected = redirected
        self._limits = limits or Limits()
        self._transport = transport or Transport(user_agent, self._limits)
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def get(
        self, url: str, begin: Callable[[], Sink], *, known: Known | None = None, login: Login | None = None
    ) -> Answer:
        """See Web.get. A server that answers a condition with the same ETag and a body is not read any further."""
        try:
            return await self._transport.persist(lambda: self._attempt(url, begin, known or Known(), login))
        except RegistryError as error:
            error.what = error.what.replace("the registry", "the server")
            if not error.hint or "registr" in error.hint:
                error.hint = "check the URL, and that this machine reaches it"
            raise

    async def _attempt(self, url: str, begin: Callable[[], Sink], known: Known, login: Login | None) -> Answer:
        where = url.partition("?")[0]  # a query may hold a signature
        response = await self._answer(url, _conditions(known), login, where)
        try:
            if response.status_code == 304 and known != Known():
                return Answer(None, etag=known.etag, last_modified=known.last_modified)
            if response.status_code != 200:
                body = await self._transport.read(response, self._limits.answer_bytes, where)
                raise refused(
                    response, body, registry=host_of(url), where=where, asked="the file",
                    retry_after=self._transport.retry_after(response), who="the server",
                )  # fmt: skip
            etag = response.headers.get("etag", "")
            if etag and _opaque(etag) == _opaque(known.etag):
                return Answer(None, etag=known.etag, last_modified=known.last_modified)
            hasher = await self._read(response, begin(), where)
        finally:
            await response.aclose()
        modified = response.headers.get("last-modified", "")
        return Answer(hasher.digest(), hasher.size, _seconds(modified), etag, modified)

    async def _answer(self, url: str, headers: dict[str, str], login: Login | None, where: str) -> httpx.Response:
        """The answer that redirects lead to. Credentials stay with the origin they are for."""
        first = origin(url)
        for _ in range(self._max_redirects + 1):
            sent = dict(headers)
            if login is not None and origin(url) == first:
                sent["Authorization"] = "Basic " + b64encode(":".join(login).encode()).decode()
            response = await self._transport.send("GET", url, sent, where=where)
            if response.status_code not in _REDIRECTS:
                return response
            location = response.headers.get("location", "")
            await response.aclose()
            if not location:
                raise RegistryError("the server redirects to nowhere", kind="transport", where=where)
            url = locate(url, location, where)
            if self._redirected is not None:
                self._redirected(url)
        raise RegistryError(f"more than {self._max_redirects} redirects", kind="transport", where=where)

    async def _read(self, response: httpx.Response, sink: Sink, where: str) -> Hasher:
        length = response.headers.get("content-length", "")
        expected = int(length) if length.isascii() and length.isdigit() else None
        if expected is not None and expected > self._max_bytes:
            raise self._too_large(where)
        hasher = Hasher()
        async for piece in self._transport.pieces(response, where):
            hasher.update(piece)
            if hasher.size > self._max_bytes:
                raise self._too_large(where)
            sink(piece)
        return hasher

    def _too_large(self, where: str) -> RegistryError:
        return RegistryError(f"the file is larger than {self._max_bytes} bytes", kind="transport", where=where)


def _conditions(known: Known) -> dict[str, str]:
    if known.etag:
        return {"If-None-Match": known.etag}
    return {"If-Modified-Since": known.last_modified} if known.last_modified else {}


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")


def _seconds(last_modified: str) -> int:
    try:
        return max(0, int(seconds_of(last_modified)))
    except ValueError:
        return 0
