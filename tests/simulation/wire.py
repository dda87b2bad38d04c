"""The network between simulated clients and registries: requests, what strikes them, and the registries' log.

Every request is a point where a fault may strike, before the registry has heard of it or after, and so is every piece
of a blob on its way (see `REQUEST`, `READ`, `WRITE`, `PIECE`, `SENT`). A failure is one that the real client would
raise once its patience is at an end; the kinds that it copes with ("503 once", "resumed", "again") cost time and bytes
here, too. Errors are made by the same functions (storage/registry/failures.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from storage.digest import Digest
from storage.errors import RefledgerError, RegistryError
from storage.interfaces.images import Attempt, Provider
from storage.reference import check_provider
from storage.registry.attempts import Observe, Verb, _outcome
from storage.registry.failures import Unavailable, broken, refused
from tests.simulation.chance import Chance, Crashed, Faults, process
from tests.simulation.hosts import Host

LOST, SLOW, CRASH, AFTER = "lost connection", "slow", "crash", "crash after"
NO_ANSWER, WRONG, NO_MOUNT = "lost answer", "wrong bytes", "refused"
REQUEST = (LOST, "503", CRASH, SLOW, "503 once")
READ = (*REQUEST, "404", "401")
BEGIN = (*REQUEST, "401", "404")
WRITE = (*BEGIN, NO_ANSWER, AFTER)
BLOB = (*READ, WRONG, "wrong size", "no ranges")
PIECE = (LOST, CRASH, WRONG, "resumed", SLOW)
SENT = (LOST, CRASH, "again", SLOW)
SLOW_SECONDS, BACKOFF_SECONDS = 30.0, 0.25


@dataclass(slots=True)
class Access:
    """One request, as the registry logs it. `name`: the digest or the tag; `bytes` of the body that it sent; `began`,
    `ended`: the loop's time, `ended` negative while it goes on; `process`: who asked."""

    host: str
    method: str
    repository: str
    kind: str
    name: str
    began: float
    process: str
    status: int = 0
    bytes: int = 0
    ended: float = -1.0

    @property
    def partial(self) -> bool:
        """Was a range asked for?"""
        return self.status == 206


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `asked`, `where` as RegistryClient has them for errors; `told`: to observers also when it went
    well."""

    method: str
    kind: str
    provider: Provider
    name: str
    verb: Verb
    asked: str
    where: str
    write: bool = False
    told: bool = True


class Wire:
    """The way of one client to all `hosts`, with its `logins` by host; what reaches one is added to `log`."""

    def __init__(
        self, hosts: Mapping[str, Host], log: list[Access], chance: Chance, faults: Faults, logins: Mapping[str, str],
        observe: Observe | None,
    ) -> None:  # fmt: skip
        self.chance = chance
        self.faults = faults
        self._hosts = hosts
        self._log = log
        self._logins = logins
        self._observe = observe

    def login(self, provider: Provider) -> str:
        """Whose login is shown there; "" for nobody's."""
        return self._logins.get(provider.registry, "")

    @asynccontextmanager
    async def request(
        self, call: Call, kinds: tuple[str, ...], *, sent: int = 0
    ) -> AsyncIterator[tuple[Host, Access, str]]:
        """A request, whose body is what the registry does when it arrives: it sets the status. Raises RegistryError."""
        host, access, kind = await self.arrive(call, kinds)
        yield host, access, kind
        access.ended = asyncio.get_running_loop().time()
        if kind == AFTER:
            raise Crashed(f"after {call.method} {call.where}")
        if kind == NO_ANSWER:
            raise self.tell(call, access, error=breakdown(call))
        await self.latency()
        self.tell(call, access, sent=sent)

    async def arrive(self, call: Call, kinds: tuple[str, ...]) -> tuple[Host, Access, str]:
        """The registry that hears `call`, its line in the log, and the fault that is yet to strike, if any. Raises what
        comes of it when it does not get so far, or is refused at the door."""
        check_provider(call.provider.registry, call.provider.repository)
        kind = self.faults.at(f"registry.{call.verb}.{call.method}", *kinds)
        if kind == CRASH:
            raise Crashed(f"before {call.method} {call.where}")
        if kind == "503 once":
            self.tell(call, self._logged(call, 503), error=refusal(call, 503, b""))
            await asyncio.sleep(BACKOFF_SECONDS)
        elif kind == SLOW:
            await asyncio.sleep(SLOW_SECONDS)
        await self.latency()
        host = self._hosts.get(call.provider.registry)
        if host is None or not host.up or kind == LOST:
            raise self.tell(call, None, error=breakdown(call))
        status = int(kind) if kind.isdigit() else 0
        if not status and not host.allows(self.login(call.provider), call.provider.repository, write=call.write):
            status = 401
        if status:
            raise self.tell(call, self._logged(call, status), error=refusal(call, status, b""))
        access = self._logged(call, 0)
        return host, access, kind

    async def latency(self) -> None:
        """Something goes over the network; how long that takes is left to chance."""
        await asyncio.sleep(self.chance.below(40) / 1000 if self.chance.maybe(40) else 0)

    def _logged(self, call: Call, status: int) -> Access:
        asker, now = process(), asyncio.get_running_loop().time()
        line = Access(
            call.provider.registry, call.method, call.provider.repository, call.kind, str(call.name), now,
            asker.name if asker else "", status, ended=now if status else -1.0,
        )  # fmt: skip
        self._log.append(line)
        return line

    def tell(
        self, call: Call, access: Access | None, *, error: RefledgerError | None = None, sent: int = 0
    ) -> RefledgerError:
        """Have the observer know what came of `call`; returns `error`."""
        if self._observe is not None and (call.told or error is not None):
            status = getattr(error, "status", 0) or (access.status if access else 0)
            seconds = asyncio.get_running_loop().time() - access.began if access else 0.0
            self._observe(
                Attempt(
                    call.verb, str(call.name), call.provider, status, _outcome(call.verb, status, error),
                    sent or (access.bytes if access else 0), seconds, error.what if error else "",
                )
            )  # fmt: skip
        return error or RefledgerError("")


def manifest_call(method: str, provider: Provider, name: str, verb: Verb, where: str) -> Call:
    return Call(method, "manifests", provider, name, verb, "the manifest", where)


def blob_call(method: str, provider: Provider, digest: Digest, verb: Verb) -> Call:
    return Call(method, "blobs", provider, digest, verb, "the blob", f"{provider}@{digest}", told=verb != "exists")


def refusal(call: Call, status: int, body: bytes) -> RegistryError:
    error = refused(
        httpx.Response(status), body, registry=call.provider.registry, where=call.where, asked=call.asked
    )
    return error.final() if isinstance(error, Unavailable) else error


def breakdown(call: Call) -> RegistryError:
    error = broken(httpx.ReadError(""), call.provider.registry, call.where)
    assert isinstance(error, Unavailable)
    return error.final()


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else data
