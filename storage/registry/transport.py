"""One HTTP exchange at a time, on httpx, and the patience for several."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from storage.errors import RegistryError
from storage.reference import DEFAULT_REGISTRY, is_loopback
from storage.registries import HostSettings, Registries
from storage.registry.clients import Clients, load_httpx
from storage.registry.failures import Unavailable, broken
from storage.registry.limits import Limits
from storage.registry.throttle import Throttle

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


def base_url(registry: str, registries: Registries) -> str:
    """Where the API of `registry` is served. Plain http for loopback hosts (but port 443), as docker does, and where
    the settings say so."""
    name = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
    return f"{'http' if registries.settings(registry).http else 'https'}://{name}"


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of `url`: credentials for one origin are never sent to another."""
    parsed = load_httpx().URL(url)
    return parsed.scheme, parsed.host, _port(parsed)


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
    if not 0 <= (url.port or 0) < 1 << 16:
        raise RegistryError("the registry refers to a malformed URL", kind="transport", where=where)
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
        registries: Registries | None = None,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.registries = registries or Registries()
        self._user_agent = user_agent
        self._sleep = sleep
        self._jitter = jitter
        self._clients = Clients()
        self._throttles: dict[str, Throttle] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        where: str,
        body: bytes | AsyncIterator[bytes] | None = None,
        aside: bool = False,
        hurried: bool = False,
    ) -> httpx.Response:
        """One exchange by the settings of the URL's host, no redirect followed; the body of the answer is still to be
        read, and to be closed. `aside`: for somebody who has a place (see Throttle); `hurried`: as in `persist`. Raises
        Unavailable or RegistryError when there is no answer."""
        lib = load_httpx()
        limits = self.limits
        read = limits.stall_seconds if method in {"GET", "HEAD"} else limits.commit_seconds
        connect = limits.mirror_connect_seconds if hurried else limits.connect_seconds
        timeout = lib.Timeout(limits.stall_seconds, connect=connect, read=read, pool=None)
        # reason for identity: digests are of the bytes as stored, and Range counts them
        fixed = {"User-Agent": self._user_agent, "Accept-Encoding": "identity"}
        # reason: whoever sends a byte of its head now and then does not hold us for ever; how long a body takes is
        # another question
        patience = None if body else limits.connect_seconds + limits.commit_seconds
        parsed = lib.URL(url)
        settings = self._settings(parsed)
        throttle = self._throttle(parsed)
        release = None if throttle is None else await throttle.enter(method, aside=aside)
        response = None
        try:
            secure, proxied = parsed.scheme == "https", not is_loopback(parsed.host)
            client = self._clients.take(settings, secure=secure, proxied=proxied)
            request = client.build_request(method, parsed, headers={**headers, **fixed}, content=body, timeout=timeout)
            async with asyncio.timeout(patience):
                response = await client.send(request, stream=True, follow_redirects=False)
        except (lib.InvalidURL, ValueError) as error:
            # reason: the library looks at where an answer redirects to, followed or not, and not only at its grammar
            what = f"{host_of(url)} refers to a malformed URL"
            raise RegistryError(what, kind="transport", where=where) from error
        except (lib.HTTPError, lib.StreamError, OSError, ExceptionGroup) as error:
            raise broken(error, host_of(url), where) from error
        finally:
            if release is not None and response is None:
                release()
        if release is not None:
            from storage.registry.held import Held

            assert isinstance(response.stream, lib.AsyncByteStream)
            response.stream = Held(response.stream, release)
        return response

    @asynccontextmanager
    async def writing(self, registry: str) -> AsyncIterator[None]:
        """A place to write to `registry` (see Throttle)."""
        throttle = self._throttle(load_httpx().URL(base_url(registry, self.registries)))
        async with nullcontext() if throttle is None else throttle.writing():
            yield

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

    async def persist(self, attempt: Callable[[], Awaitable[T]], *, hurried: bool = False) -> T:
        """`attempt()`, again after a growing pause while it raises Unavailable, `limits.tries` times in all. `hurried`:
        a mirror is asked, so less often, and not once it says when to come again."""
        failures = 0
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                failures += 1
                if failures >= self.limits.tries_of(hurried=hurried) or (hurried and error.retry_after):
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
            return max(0.0, seconds_of(value) - self.clock())
        except ValueError:
            return None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._clients.aclose()

    def _settings(self, url: httpx.URL) -> HostSettings:
        return self.registries.settings(url.netloc.decode("ascii"), _port(url))

    def _throttle(self, url: httpx.URL) -> Throttle | None:
        """What bounds requests to the host of `url`; None when nothing does."""
        settings, host = self._settings(url), f"{url.host}:{_port(url)}"
        if settings.requests_per_second is None and settings.connections is None:
            return None
        if host not in self._throttles:
            self._throttles[host] = Throttle(settings, self.clock, self._sleep)
        return self._throttles[host]


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def seconds_of(date: str) -> float:
    """A date of HTTP (RFC 9110 section 5.6.7) in seconds since the epoch; without a zone it is UTC as well, wherever
    this machine is. Raises ValueError."""
    try:
        time = parsedate_to_datetime(date)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, TypeError) as error:
        raise ValueError(str(error)) from error


def host_of(url: str) -> str:
    """`host[:port]` of `url`, for messages: a whole URL may hold a signature."""
    return str(load_httpx().URL(url).netloc.decode("ascii", "replace")).rpartition("@")[2]
