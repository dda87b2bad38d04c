"""A request as registries want it: authorised, redirects followed by hand, repeated while a failure may pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from storage.errors import RefledgerError, RegistryError
from storage.registry.attempts import Exchange, Observe, Topic, over
from storage.registry.auth import Authenticator, Scopes
from storage.registry.failures import PASSING, Unavailable, codes, refused
from storage.registry.transport import Transport, base_url, host_of, locate, origin

if TYPE_CHECKING:
    import httpx

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `target` is a path or, for upload locations, a URL; `asked` names what is asked for in errors;
    `body` opens the body anew for every try. `repeat` is False for what the caller repeats as a whole; `topic`: what is
    told of it, None for what goes without saying; `aside`: it is of an upload that has its place (see Throttle)."""

    method: str
    registry: str
    target: str
    where: str
    asked: str
    scopes: Scopes
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], bytes | AsyncIterator[bytes]] | None = None
    repeat: bool = True
    topic: Topic | None = None
    aside: bool = False

    @property
    def hurried(self) -> bool:
        """Is a mirror asked? Then there are others."""
        return self.topic is not None and bool(self.topic.provider.mirror_of)


class Session:
    """Requests to any number of registries, over one transport."""

    def __init__(
        self, transport: Transport, authenticator: Authenticator, observe: Observe | None = None
    ) -> None:
        self.transport = transport
        self._auth = authenticator
        self._observe = observe

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[httpx.Response]:
        """The answer to `call`, whatever its status but those that may pass; closed when the context ends.
        Raises RegistryError."""
        response = await self.send(call)
        try:
            yield response
        except RefledgerError as error:
            over(response, error)
            raise
        else:
            over(response)
        finally:
            await response.aclose()

    async def send(self, call: Call) -> httpx.Response:
        """As `open`; the caller closes the answer."""
        if call.repeat:
            return await self.transport.persist(lambda: self._told(call), hurried=call.hurried)
        return await self._told(call)

    async def failure(
        self, call: Call, response: httpx.Response, passing: frozenset[str] = frozenset()
    ) -> RegistryError:
        """The error for a refusal; reads the rest of the answer. `passing`: codes of errors that may pass."""
        transport = self.transport
        shown = response.request.headers.get("authorization", "").partition(" ")[2]
        try:
            body = await transport.read(response, transport.limits.answer_bytes, call.where)
        except RegistryError:
            body = b""  # reason: the status is known and says more than the broken explanation
        error = refused(
            response, body, registry=call.registry, where=call.where, asked=call.asked,
            retry_after=transport.retry_after(response), secrets=(shown,) if shown else (),
        )  # fmt: skip
        if error.kind == "transport" and passing & codes(body):
            return Unavailable(error.what, status=error.status, where=error.where, hint=error.hint)
        return error

    async def _told(self, call: Call) -> httpx.Response:
        exchange = Exchange(call.topic, self._observe)
        try:
            response = await self._once(call, exchange)
        except RefledgerError as error:
            exchange.unanswered(error)
            raise
        exchange.answered(response)
        return response

    async def _once(self, call: Call, exchange: Exchange) -> httpx.Response:
        header = await self._auth.header(call.registry, call.scopes, call.where)
        response = await self._follow(call, header, exchange)
        home = origin(base_url(call.registry, self.transport.registries))
        if response.status_code == 401 and origin(str(response.url)) == home:
            challenges = response.headers.get_list("www-authenticate")
            answer = await self._answer(call, challenges, response, header)
            if answer:
                await response.aclose()
                response = await self._follow(call, answer, exchange)
        if response.status_code in {401, 403} and origin(str(response.url)) != home:
            # reason: links to object stores are signed, and expire; the registry gives another one
            await response.aclose()
            what = f"{host_of(str(response.url))}, which has {call.asked} for the registry, denies access to it"
            raise Unavailable(f"{what} ({response.status_code})", status=response.status_code, where=call.where)
        if response.status_code in PASSING:
            raise await self.failure(call, response)
        return response

    async def _answer(self, call: Call, challenges: list[str], response: httpx.Response, rejected: str) -> str:
        try:
            return await self._auth.answer(call.registry, call.scopes, challenges, call.where, rejected=rejected)
        except BaseException:
            await response.aclose()
            raise

    async def _follow(self, call: Call, header: str, exchange: Exchange) -> httpx.Response:
        """Send `call`; follow redirects of GET and HEAD. The header goes to the registry's own origin only, and is
        not shown again once a redirect has left it."""
        home = base_url(call.registry, self.transport.registries)
        url = locate(home, call.target, call.where)
        at_home = True
        for _ in range(self.transport.limits.redirects + 1):
            at_home = at_home and origin(url) == origin(home)
            headers = {**call.headers, "Authorization": header} if header and at_home else call.headers
            body = exchange.body(call.body() if call.body else None)
            response = await self.transport.send(
                call.method, url, headers, where=call.where, body=body, aside=call.aside, hurried=call.hurried
            )
            location = response.headers.get("location")
            if response.status_code not in _REDIRECTS or call.method not in {"GET", "HEAD"} or not location:
                return response
            await response.aclose()
            url = locate(url, location, call.where)
        raise RegistryError("the registry redirects in circles", kind="transport", where=call.where)
