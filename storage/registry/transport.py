"""One HTTP exchange at a time, on httpx, and the patience for several.

httpx is loaded by the first request: a command that asks no registry does not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import RegistryError
from storage.reference import DEFAULT_REGISTRY, is_loopback
from storage.registry.failures import Unavailable, broken
from storage.registry.limits import Limits

if TYPE_CHECKING:
    import ssl

    import httpx

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@cache
def load_httpx() -> Any:
    """The httpx module, without its command line: that would load rich, pygments and click (0.1 s) for nothing."""
    hidden = "httpx" not in sys.modules
    if hidden:
        # reason: makes httpx's own `from ._main import main` fail, which it is prepared for
        sys.modules["httpx._main"] = None  # type: ignore[assignment]
    try:
        import httpcore
        import httpx
    finally:
        if hidden:
            del sys.modules["httpx._main"]
    # reason: at its 64 KiB a read, a pull spends half its time in the HTTP library; asyncio reads 256 KiB at once
    httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 256 * 1024
    for name in ("httpx", "httpcore"):
        # reason: at INFO and below they write URLs and headers, which may be signed or hold tokens
        logging.getLogger(name).setLevel(logging.WARNING)
    return httpx


def base_url(registry: str) -> str:
    """Where the API of `registry` is served. Plain http for loopback hosts (but port 443), as docker does."""
    if registry == DEFAULT_REGISTRY:
        return "https://registry-1.docker.io"
    plain = is_loopback(registry) and not registry.endswith(":443")
    return f"{'http' if plain else 'https'}://{registry}"


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of `url`: credentials for one origin are never sent to another."""
    parsed = load_httpx().URL(url)
    return parsed.scheme, parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80)


def locate(base: str, location: str, where: str) -> str:
    """`location`, absolute or relative to `base`. Raises RegistryError when it leaves https for http."""
    lib = load_httpx()
    try:
        start = lib.URL(base)
        url = start.join(location).copy_with(fragment=None)
    except (lib.InvalidURL, ValueError) as error:
        raise RegistryError("the registry refers to a malformed URL", kind="transport", where=where) from error
    if start.scheme == "https" and url.scheme == "http" and url.netloc == start.netloc:
        url = url.copy_with(scheme="https")  # reason: registries behind a TLS proxy name themselves by plain http
    if url.scheme not in {"http", "https"} or (start.scheme, url.scheme) == ("https", "http"):
        what = f"the registry refers to {url.host or 'nowhere'} over {url.scheme or 'nothing'}, not https"
        raise RegistryError(what, kind="transport", where=where)
    return str(url)


class Transport:
    """Sends requests; `persist` repeats what failed in passing. One per process and event loop."""

    def __init__(
        self,
        user_agent: str,
        limits: Limits,
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        proxies: bool = False,
    ) -> None:
        """`proxies`: plain http to other machines goes through the proxies that the environment names, too."""
        self.limits = limits
        self._proxies = proxies
        self.clock = clock
        self._user_agent = user_agent
        self._sleep = sleep
        self._jitter = jitter
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        where: str,
        body: bytes | AsyncIterator[bytes] | None = None,
    ) -> httpx.Response:
        """One exchange, no redirect followed; the body of the answer is still to be read, and to be closed.
        Raises Unavailable or RegistryError when there is no answer."""
        lib = load_httpx()
        limits = self.limits
        read = limits.stall_seconds if method in {"GET", "HEAD"} else limits.commit_seconds
        timeout = lib.Timeout(limits.stall_seconds, connect=limits.connect_seconds, read=read, pool=None)
        # reason for identity: digests are of the bytes as stored, and Range counts them
        fixed = {"User-Agent": self._user_agent, "Accept-Encoding": "identity"}
        parsed = lib.URL(url)
        client = self._client(parsed.scheme, proxied=self._proxies and not is_loopback(parsed.host))
        request = client.build_request(method, parsed, headers={**headers, **fixed}, content=body, timeout=timeout)
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except (lib.HTTPError, lib.StreamError, OSError) as error:
            raise broken(error, host_of(url), where) from error

    async def pieces(self, response: httpx.Response, where: str) -> AsyncIterator[bytes]:
        """The body of `response` as it comes off the wire. Raises Unavailable when it breaks off, or but trickles."""
        lib = load_httpx()
        limits, now = self.limits, asyncio.get_running_loop().time
        waited, came, asked = 0.0, 0, now()
        try:
            async for piece in response.aiter_raw():
                waited += now() - asked  # reason: not the time that the reader took
                came += len(piece)
                if waited >= limits.stall_seconds:
                    if came < limits.stall_bytes:
                        what = f"{host_of(str(response.url))} sends almost nothing"
                        raise Unavailable(what, where=where, hint="check the network, or try again later")
                    waited, came = 0.0, 0
                yield piece
                asked = now()
        except (lib.HTTPError, lib.StreamError, OSError) as error:
            raise broken(error, host_of(str(response.url)), where) from error

    async def read(self, response: httpx.Response, limit: int, where: str) -> bytes:
        """The whole body, closed. Raises RegistryError when it is longer than `limit` bytes."""
        data = bytearray()
        try:
            async for piece in self.pieces(response, where):
                data += piece
                if len(data) > limit:
                    raise RegistryError(f"the answer is longer than {limit} bytes", kind="transport", where=where)
        finally:
            await response.aclose()
        return bytes(data)

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """`attempt()`, again after a growing pause while it raises Unavailable, `limits.tries` times in all."""
        failures = 0
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                failures += 1
                if failures >= self.limits.tries:
                    raise
                await self.pause(failures, error.retry_after)

    async def pause(self, failures: int, retry_after: float | None = None) -> None:
        """Wait before the try that follows `failures` failed ones; as long as the server asked, within the cap."""
        limits = self.limits
        backoff = min(limits.backoff_seconds * 2.0 ** (failures - 1), limits.backoff_cap_seconds)
        seconds = backoff * (0.5 + self._jitter() / 2)
        if retry_after is not None:
            seconds = max(seconds, min(retry_after, limits.retry_after_cap_seconds))
        await self._sleep(seconds)

    def retry_after(self, response: httpx.Response) -> float | None:
        """Seconds that the `Retry-After` of `response` (delay or date, RFC 9110 section 10.2.3) asks to wait."""
        value = response.headers.get("retry-after", "").strip()
        if not value:
            return None
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - self.clock())
        except (ValueError, OverflowError):
            return None

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    def _client(self, scheme: str, *, proxied: bool) -> httpx.AsyncClient:
        """The client for `scheme`. Reason for several: loading the certificates takes longer than a loopback pull."""
        secure = scheme == "https"
        name = f"{scheme} by proxy" if proxied and not secure else scheme
        if name not in self._clients:
            self._clients[name] = _new_client(secure=secure, trust_env=secure or proxied)
        return self._clients[name]


def host_of(url: str) -> str:
    """`host[:port]` of `url`, for messages: a whole URL may hold a signature."""
    return str(load_httpx().URL(url).netloc.decode("ascii", "replace")).rpartition("@")[2]


def _new_client(*, secure: bool, trust_env: bool) -> httpx.AsyncClient:
    import ssl  # reason: comes with httpx, so that importing this module stays cheap
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    lib = load_httpx()
    context = _trusting_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client: httpx.AsyncClient = lib.AsyncClient(
        verify=context,
        trust_env=trust_env,  # reason: proxies are for hosts elsewhere, plain http is mostly for this machine
        # reason: copying from registry to registry holds one connection while it asks for another; a bound deadlocks
        limits=lib.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30.0),
        # reason: some registries answer a session cookie with CSRF checks
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )
    return client


def _trusting_context() -> ssl.SSLContext:
    """The system's certificate authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR` honoured), as docker trusts them."""
    import ssl

    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return ssl.create_default_context()
    import certifi  # reason: a slim image without the system's certificates

    return ssl.create_default_context(cafile=certifi.where())
