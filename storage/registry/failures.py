"""What a failed request means for a person: one line, who said what, and what to do.

    RegistryError          final: asking again gives the same
    └── Unavailable        may pass: retried with backoff; a RegistryError like any other once tries are used up
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from storage.errors import RegistryError
from storage.reference import DEFAULT_REGISTRY

if TYPE_CHECKING:
    import httpx

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# reason: alerts of RFC 8446 section 6.2, as OpenSSL writes them; before TLS 1.3 there was none for "required"
_CERTIFICATE_ALERTS = ("CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_UNKNOWN")
_QUOTED = re.compile(r"(?:bytearray\()?b['\"].*", re.DOTALL)
"""What the HTTP library quotes of an answer that is none (I9): servers may have put the request's headers into it."""


class Unavailable(RegistryError):
    """A failure that may pass. `retry_after`: seconds the server asked to wait, or None."""

    def __init__(
        self, what: str, *, status: int = 0, where: str = "", hint: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(what, kind="transport", status=status, where=where, hint=hint)
        self.retry_after = retry_after

    def final(self) -> RegistryError:
        """The same, once nobody is to try again."""
        return RegistryError(self.what, kind=self.kind, status=self.status, where=self.where, hint=self.hint)


def broken(error: Exception, host: str, where: str) -> RegistryError:
    """The error for a request to `host` that got no answer, or whose answer broke off."""
    import socket  # reason: both are needed for a failure only
    import ssl

    name = type(error).__name__
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = f"the certificate of {host} is not trusted: {printable(cause.verify_message)}"
            hint = "name its authority's file as `ca` in registries.toml, or add it to the system's (or SSL_CERT_FILE)"
            return RegistryError(what, kind="transport", where=where, hint=hint)
        if isinstance(cause, ssl.SSLError) and any(word in (cause.reason or "") for word in _CERTIFICATE_ALERTS):
            what = f"{host} does not accept this client's certificate, or wants one: {printable(cause.reason)}"
            hint = "name one as `client_certificate` in registries.toml, with `client_key`"
            return RegistryError(what, kind="auth", where=where, hint=hint)
        if isinstance(cause, ssl.SSLError) and name == "ConnectError":
            what = f"no TLS connection to {host}: {printable(cause.reason or 'handshake failed')}"
            hint = "a registry that speaks plain http needs `http = true` in registries.toml, unless it is on loopback"
            return RegistryError(what, kind="transport", where=where, hint=hint)
        if isinstance(cause, socket.gaierror):
            what = f"the host name {host} cannot be resolved: {printable(cause.strerror or '')}"
            return Unavailable(what, where=where, hint="check the name and this machine's DNS")
        if isinstance(cause, ConnectionRefusedError):
            return Unavailable(f"{host} refused the connection", where=where, hint=f"is a registry running at {host}?")
    if name == "ConnectTimeout":
        return Unavailable(f"{host} did not accept a connection in time", where=where, hint="check the network")
    if name.endswith("Timeout") or isinstance(error, TimeoutError):
        return Unavailable(f"{host} stopped answering", where=where, hint="check the network, or try again later")
    detail = printable(_QUOTED.sub("…", str(error))) or name
    return Unavailable(f"the connection to {host} broke: {detail}", where=where, hint="check the network")


def refused(
    response: httpx.Response, body: bytes, *, registry: str, where: str, asked: str, retry_after: float | None = None,
    secrets: Collection[str] = (), who: str = "the registry",
) -> RegistryError:  # fmt: skip
    """The error for an answer that is a refusal. `asked` names what was asked for, as in "the manifest"."""
    status = response.status_code
    said = _said(body, secrets)
    tail = f": {said}" if said else ""
    if status in {401, 403}:
        what = f"{who} denies access to {asked} ({status}){tail}"
        return RegistryError(what, kind="auth", status=status, where=where, hint=login_hint(registry))
    if status in {404, 410}:
        what = f"{who} does not have {asked} ({status}){tail}"
        hint = "check the name; some registries also say this when a login is missing"
        return RegistryError(what, kind="missing", status=status, where=where, hint=hint)
    what = f"{who} answered {status} when asked for {asked}{tail}"
    if status == 429:
        hint = f"it limits requests: try again later, or raise the limit with: {login_hint(registry)}"
        return Unavailable(what, status=status, where=where, hint=hint, retry_after=retry_after)
    if status in PASSING:
        return Unavailable(what, status=status, where=where, hint="try again later", retry_after=retry_after)
    hint = "a proxy before the registry bounds the size of requests" if status == 413 else ""
    return RegistryError(what, kind="transport", status=status, where=where, hint=hint)


def login_hint(registry: str) -> str:
    """The command that gives credentials for `registry`."""
    return "refledger login" if registry == DEFAULT_REGISTRY else f"refledger login {registry}"


def printable(text: str, limit: int = 300) -> str:
    """One line of `text` without control characters, at most `limit` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _said(body: bytes, secrets: Collection[str]) -> str:
    """The messages of a registry's JSON error (distribution-spec "Error Codes") or a token server's."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    errors = answer.get("errors")
    entries = errors if isinstance(errors, list) else [answer]
    texts = [
        entry.get("message") or entry.get("code") or entry.get("details") or entry.get("error_description")
        or entry.get("error")
        for entry in entries[:3] if isinstance(entry, dict)
    ]  # fmt: skip
    text = "; ".join(part for part in texts if isinstance(part, str))
    for secret in secrets:  # reason: some servers quote the header they refuse
        if secret:
            text = text.replace(secret, "…")
    return printable(text)


def codes(body: bytes) -> set[str]:
    """The error codes of a registry's JSON error."""
    try:
        answer = json.loads(body)
        return {str(entry["code"]) for entry in answer["errors"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything that led to it, groups opened."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__context__, one.__cause__]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
