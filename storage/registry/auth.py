"""Showing a registry who asks: nothing, Basic, or a bearer token from the token server that the registry names.

Sources: distribution "Token Authentication Specification" and "OAuth2 Token Authentication", RFC 9110 section 11.

Where secrets go. A credential belongs to one registry. It is sent to that registry's own origin (Basic), or to the
`realm` that this registry named when it refused a request, as docker does: Docker Hub's registry-1.docker.io names
auth.docker.io, and there is no other way to learn of it. A realm must be https, unless its host is one that is spoken
to in plain http (loopback, or `http = true` in registries.toml), and on this machine only if the registry is, too: a
registry must not have us talk to what listens here. Nothing is sent to hosts that a redirect or an upload
location leads to.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from storage.credentials.lookup import Credential, Credentials
from storage.errors import RegistryError
from storage.reference import is_loopback
from storage.registry.clients import load_httpx
from storage.registry.failures import refused
from storage.registry.transport import Transport, host_of

if TYPE_CHECKING:
    import httpx

Scopes = tuple[str, ...]
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9_-]*)(?=\s|,|$)(?!\s*=)")
_PARAMETER = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_DEFAULT_SECONDS = 60  # token specification: what a token lasts when the server does not say
_LEEWAY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a `WWW-Authenticate` header: scheme in lower case, parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Grant:
    """An `Authorization` header that is good for `scopes` until `expires` (seconds since the epoch). `refresh`: the
    identity token that came with it."""

    header: str = field(repr=False)
    expires: float = float("inf")
    scopes: Scopes = ()
    refresh: str = field(default="", repr=False)


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges of some `WWW-Authenticate` headers, in order; what does not fit the grammar ends its header."""
    found: list[Challenge] = []
    for text in headers:
        position = 0
        while scheme := _SCHEME.match(text, position):
            position = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(text, position):
                position = parameter.end()
                quoted = parameter[2]
                value = parameter[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters[parameter[1].lower()] = value
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def merge_scopes(ours: Scopes, challenged: str) -> Scopes:
    """`ours` and what the registry asked for, actions of one resource united (`repository:name:pull,push`)."""
    actions: dict[str, dict[str, None]] = {}
    for scope in (*ours, *challenged.split()):
        resource, _, wanted = scope.rpartition(":")
        actions.setdefault(resource, {}).update(dict.fromkeys(wanted.split(",")))
    return tuple(f"{name}:{','.join(wanted)}" if name else next(iter(wanted)) for name, wanted in actions.items())


def covers(granted: Scopes, wanted: Scopes) -> bool:
    """Are all actions of `wanted` among those of `granted`?"""
    return merge_scopes(granted, " ".join(wanted)) == merge_scopes(granted, "")


class Authenticator:
    """`Authorization` headers by registry and scopes; a token is fetched once and kept until shortly before it ends.
    `offline`: token servers are asked for an identity token, too, as a login does."""

    def __init__(
        self, credentials: Credentials, transport: Transport, client_id: str, *, offline: bool = False
    ) -> None:
        self._credentials = credentials
        self._transport = transport
        self._client_id = client_id
        self._offline = offline
        self._challenges: dict[str, Challenge] = {}
        self._grants: dict[str, dict[Scopes, Grant]] = {}
        self._locks: dict[tuple[str, Scopes], asyncio.Lock] = {}

    def asked_by(self, registry: str) -> bool:
        """Did `registry` ask for credentials?"""
        return registry in self._challenges

    def identity_token(self, registry: str) -> str:
        """The identity token that came with a token for `registry`; "" for none."""
        grants = self._grants.get(registry, {}).values()
        return next((grant.refresh for grant in grants if grant.refresh), "")

    async def header(self, registry: str, scopes: Scopes, where: str) -> str:
        """The header to send at once; "" while `registry` never asked for one. Raises RegistryError."""
        challenge = self._challenges.get(registry)
        if challenge is None:
            return ""
        return await self._grant(registry, scopes, challenge, where, rejected="")

    async def answer(
        self, registry: str, scopes: Scopes, challenges: Sequence[str], where: str, *, rejected: str
    ) -> str:
        """The header that answers a 401 with `challenges`, `rejected` being what was sent; "" when there is none.
        Raises RegistryError."""
        parsed = parse_challenges(challenges)
        challenge = next((one for scheme in ("bearer", "basic") for one in parsed if one.scheme == scheme), None)
        if challenge is None:
            return ""
        # reason for without: the scope in it is that of this one request, and no later token is to have it, too
        lasting = {name: value for name, value in challenge.parameters.items() if name != "scope"}
        self._challenges[registry] = replace(challenge, parameters=lasting)
        return await self._grant(registry, scopes, challenge, where, rejected=rejected)

    async def _grant(self, registry: str, scopes: Scopes, challenge: Challenge, where: str, *, rejected: str) -> str:
        if challenge.scheme == "basic":
            scopes = ()
        wanted = tuple(sorted(scopes))
        grants = self._grants.setdefault(registry, {})
        async with self._locks.setdefault((registry, wanted), asyncio.Lock()):
            have = self._usable(grants, wanted)
            if have and have.header != rejected:
                return have.header
            grants.pop(wanted, None)
            credential = await self._credentials.lookup(registry)
            grant = await self._new_grant(registry, scopes, challenge, credential, where)
            if grant is None or grant.header == rejected:
                return ""
            grants[wanted] = grant
            return grant.header

    def _usable(self, grants: Mapping[Scopes, Grant], wanted: Scopes) -> Grant | None:
        """The grant for `wanted`, or else a wider one. Reason for this order: some servers give less than they are
        asked for; who was refused with the wider grant has one of its own since."""
        now = self._transport.clock()
        if wanted in grants:
            return grants[wanted] if grants[wanted].expires > now else None
        alive = (grant for grant in grants.values() if grant.expires > now)
        return next((grant for grant in alive if covers(grant.scopes, wanted)), None)

    async def _new_grant(
        self, registry: str, scopes: Scopes, challenge: Challenge, credential: Credential | None, where: str
    ) -> Grant | None:
        if credential and credential.registry_token:
            return Grant(f"Bearer {credential.registry_token}", scopes=scopes)
        if challenge.scheme == "basic":
            return Grant(_basic(credential)) if credential and credential.username else None
        return await self._fetch_token(registry, scopes, challenge, credential, where)

    async def _fetch_token(
        self, registry: str, scopes: Scopes, challenge: Challenge, credential: Credential | None, where: str
    ) -> Grant:
        realm = self._checked_realm(challenge, registry, where)
        scopes = merge_scopes(scopes, challenge.parameters.get("scope", ""))
        service = challenge.parameters.get("service", "")
        if credential and credential.identity_token:
            secrets: tuple[str, ...] = (credential.identity_token,)
            response = await self._ask_oauth2(realm, service, scopes, credential.identity_token, where)
        else:
            response, secrets = await self._ask_plainly(realm, service, scopes, credential, where)
        transport = self._transport
        body = await transport.read(response, transport.limits.answer_bytes, where)
        who = f"the token server {host_of(realm)}"
        if response.status_code != 200:
            raise refused(
                response, body, registry=registry, where=where, asked="a token", who=who, secrets=secrets,
                retry_after=transport.retry_after(response),
            )  # fmt: skip
        return replace(_granted(body, transport.clock(), who, where), scopes=scopes)

    async def _ask_plainly(
        self, realm: str, service: str, scopes: Scopes, credential: Credential | None, where: str
    ) -> tuple[httpx.Response, tuple[str, ...]]:
        """GET, with Basic when there is a credential; also what must not be repeated in an error."""
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if self._offline and credential:
            query += [("account", credential.username), ("client_id", self._client_id), ("offline_token", "true")]
        url = load_httpx().URL(realm)
        url = url.copy_with(params=[*url.params.multi_items(), *query])
        headers: dict[str, str] = {}
        secrets: tuple[str, ...] = ()
        if credential and credential.username:
            headers["Authorization"] = _basic(credential)
            secrets = (credential.password, headers["Authorization"].partition(" ")[2])
        return await self._transport.send("GET", str(url), headers, where=where, aside=True), secrets

    async def _ask_oauth2(self, realm: str, service: str, scopes: Scopes, refresh: str, where: str) -> httpx.Response:
        """POST the identity token."""
        form = {
            "grant_type": "refresh_token", "refresh_token": refresh, "service": service,
            "client_id": self._client_id, "scope": " ".join(scopes),
        }  # fmt: skip
        body = str(load_httpx().QueryParams(form)).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._transport.send("POST", realm, headers, where=where, body=body, aside=True)

    def _checked_realm(self, challenge: Challenge, registry: str, where: str) -> str:
        realm = challenge.parameters.get("realm", "")
        lib = load_httpx()
        try:
            url = lib.URL(realm)
        except lib.InvalidURL:
            url = lib.URL("")
        host = url.netloc.decode("ascii")
        plain = url.scheme == "http" and self._transport.registries.settings(host, url.port or 80).http
        if not (host and (url.scheme == "https" or plain)):
            what = "the registry names a token server that is not https: no credentials were sent"
            hint = f"ask who runs {registry}"
            raise RegistryError(what, kind="auth", status=401, where=where, hint=hint)
        if is_loopback(host) and not is_loopback(registry):
            what = "the registry names a token server on this machine: nothing was asked"
            raise RegistryError(what, kind="auth", status=401, where=where, hint=f"ask who runs {registry}")
        return realm


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _granted(body: bytes, now: float, who: str, where: str) -> Grant:
    try:
        answer: Any = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
        refresh = answer.get("refresh_token")
        seconds = float(answer.get("expires_in") or _DEFAULT_SECONDS)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        token, refresh, seconds = None, None, 0.0
    if not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise RegistryError(f"{who} gave no token", kind="auth", where=where, hint="try again later")
    lasts = max(seconds, _DEFAULT_SECONDS)  # token specification: never less than 60 seconds
    refresh = refresh if isinstance(refresh, str) and refresh.isascii() and refresh.isprintable() else ""
    return Grant(f"Bearer {token}", now + lasts - _LEEWAY_SECONDS, refresh=refresh)
