"""httpx, and its clients: one for each way of securing a connection.

httpx is loaded by the first request: a command that asks no registry does not pay for it.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from storage.registries import HostSettings

if TYPE_CHECKING:
    import ssl

    import httpx


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


class Clients:
    """Clients by what they show and trust. Reason for several: loading the certificates takes longer than a loopback
    pull, and a client certificate is for the host that it was given for."""

    def __init__(self) -> None:
        self._clients: dict[object, httpx.AsyncClient] = {}

    def take(self, settings: HostSettings, *, secure: bool, proxied: bool) -> httpx.AsyncClient:
        """The client for https (`secure`) or http; `proxied`: by the proxies that the environment names. Raises OSError
        for files of `settings` that cannot be used."""
        files = (settings.ca, settings.client_certificate, settings.client_key)
        name = (secure, *files) if secure else (secure, proxied)
        if name not in self._clients:
            self._clients[name] = _new_client(settings, secure=secure, trust_env=secure or proxied)
        return self._clients[name]

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()


def _new_client(settings: HostSettings, *, secure: bool, trust_env: bool) -> httpx.AsyncClient:
    import ssl  # reason: comes with httpx, so that importing this module stays cheap
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    lib = load_httpx()
    context = _context(settings) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client: httpx.AsyncClient = lib.AsyncClient(
        verify=context,
        trust_env=trust_env,  # reason: proxies are for hosts elsewhere, plain http is mostly for this machine
        # reason: copying from registry to registry holds one connection while it asks for another; a bound deadlocks
        limits=lib.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30.0),
        # reason: some registries answer a session cookie with CSRF checks
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )
    return client


def _context(settings: HostSettings) -> ssl.SSLContext:
    """The system's authorities and `settings.ca` are trusted, `settings.client_certificate` is shown."""
    import ssl

    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        context = ssl.create_default_context()
    else:
        import certifi  # reason: a slim image without the system's certificates

        context = ssl.create_default_context(cafile=certifi.where())
    if settings.ca is not None:
        context.load_verify_locations(settings.ca)
    if settings.client_certificate is not None:
        context.load_cert_chain(settings.client_certificate, settings.client_key)
    return context
