"""Registries in memory, and clients of theirs over a network that fails: what the engine sees of the outside world.

The client is no HTTP client: a failure that it raises is one that the real client would raise once its patience is at
an end, and the kinds that the real one copes with ("503 once", "resumed", "again") cost time and bytes here, too.
Errors are made by the same functions (storage/registry/failures.py).

Every request is a point where a fault may strike, before the registry has heard of it or after, and so is every piece
of a blob on its way (see `REQUEST`, `READ`, `WRITE`, `PIECE`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from storage.digest import Digest, sha256
from storage.errors import RefledgerError, RegistryError, VerificationError
from storage.interfaces import Attempt, BlobStream, ByteStream, Descriptor, Provider, Reference, Referrer
from storage.reference import check_provider, is_tag
from storage.referrers import FallbackTag, referring
from storage.registry.attempts import Observe, Verb, _outcome
from storage.registry.body import wrong_length
from storage.registry.failures import Unavailable, broken, refused
from storage.registry.manifests import media_type_of
from tests.simulation.chance import Chance, Crashed, Faults, process
from tests.simulation.hosts import Answer, Host

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
    """One request, as the registry logs it. `name`: the digest or the tag; `bytes` of the body that it sent; `partial`
    for
    an answer to a range; `began`, `ended`: the loop's time, `ended` negative while it goes on; `process`: who asked."""

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
        return self.status == 206


class MemoryRegistries:
    """All registries of a simulated world, by host name. `log`: every request that reached one, in the order in which
    they did."""

    def __init__(self, chance: Chance, faults: Faults) -> None:
        self.chance = chance
        self.faults = faults
        self.hosts: dict[str, Host] = {}
        self.log: list[Access] = []

    def host(self, name: str) -> Host:
        """The registry of that name, which is there from now on."""
        return self.hosts.setdefault(name, Host(name))

    def client(
        self, logins: Mapping[str, str] | None = None, *, observe: Observe | None = None,
        uploads: dict[tuple[str, Digest], str] | None = None,
    ) -> MemoryClient:  # fmt: skip
        """What a process reads and writes registries with. `logins` by host; `observe` as RegistryClient has it;
        `uploads`: where it remembers uploads that broke off, for the processes of one root."""
        return MemoryClient(self, logins or {}, observe, uploads)

    def holes(self) -> list[str]:
        """Tags that lead to something that is not there (I11)."""
        return [hole for host in self.hosts.values() for hole in host.holes()]

    def layer_gets(self, digests: set[str] | None = None) -> list[Access]:
        """The requests that read blobs, or those among `digests`, and were answered with bytes."""
        return [
            line for line in self.log
            if line.method == "GET" and line.kind == "blobs" and line.status in {200, 206}
            and (digests is None or line.name in digests)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Call:
    """One request: `asked`, `where` as RegistryClient has them for errors; `told` to observers also when it went
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


class MemoryClient:
    """RegistrySource, RegistryTarget and RegistryListing."""

    def __init__(
        self, registries: MemoryRegistries, logins: Mapping[str, str], observe: Observe | None,
        uploads: dict[tuple[str, Digest], str] | None,
    ) -> None:  # fmt: skip
        self._registries = registries
        self._chance, self._faults = registries.chance, registries.faults
        self._logins = logins
        self._observe = observe
        self._uploads = uploads
        self._fallback = FallbackTag(self._tagged, self.put_manifest)

    async def aclose(self) -> None:
        """As RegistryClient."""

    # ------------------------------------------------------------ RegistrySource

    async def resolve(self, reference: Reference) -> Descriptor:
        """See RegistrySource.resolve."""
        name, provider = str(reference.digest or reference.tag), reference.provider
        call = _manifest_call("HEAD", provider, name, "resolve", str(reference))
        async with self._request(call, READ) as (host, access, _):
            status, data, media_type = host.manifest(provider.repository, name)
            access.status = status
        if status == 200:
            return Descriptor(media_type, reference.digest or host.digest_of(provider.repository, name), len(data))
        media_type, data = await self._get_manifest(provider, name, reference.digest, "resolve", str(reference))
        return Descriptor(media_type, sha256(data), len(data))

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """See RegistrySource.manifest."""
        return await self._get_manifest(provider, digest, digest, "manifest", f"{provider}@{digest}")

    @asynccontextmanager
    async def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """See RegistrySource.blob."""
        stop = blob.size if end is None else end
        if not (0 <= start < stop <= blob.size or (start, stop, blob.size) == (0, 0, 0)):
            raise ValueError(f"no range {start} to {stop} in {blob.size} bytes")
        stream = _Stream(self, provider, blob, start, stop, verified=not start and end is None)
        await stream.connect()
        try:
            yield stream
        finally:
            stream.close()

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """See RegistrySource.exists."""
        call = _blob_call("HEAD", provider, digest, "exists")
        try:
            async with self._request(call, READ) as (host, access, _):
                access.status = host.blob(provider.repository, digest)[0]
        except RegistryError as error:
            if error.kind == "missing":
                return False
            raise
        return access.status == 200

    # ------------------------------------------------------------ RegistryListing

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """See RegistryListing.tags."""
        call = _Call("GET", "tags", provider, "list", "resolve", "the list of tags", str(provider), told=False)
        async with self._request(call, READ) as (host, access, _):
            access.status, body = host.tags(provider.repository)
        if access.status != 200:
            raise _refused(call, access.status, body)
        return tuple(body.decode().split("\n"))

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str = "") -> tuple[Referrer, ...]:
        """See RegistryListing.referrers."""
        where = f"{provider}@{subject}"
        call = _Call("GET", "referrers", provider, subject, "resolve", "the list of referrers", where, told=False)
        async with self._request(call, (*REQUEST, "401")) as (host, access, _):
            access.status = 200 if host.listing else 404
        if access.status == 404:
            found = await self._fallback.list(provider, subject)
        else:
            found = [Referrer.from_json(entry) for entry in host.referrers(provider.repository, subject)]
        return tuple(one for one in found if not artifact_type or one.artifact_type == artifact_type)

    # ------------------------------------------------------------ RegistryTarget

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """See RegistryTarget.mount."""
        if target.registry != source.registry:
            return False
        check_provider(source.registry, source.repository)
        call = _Call(
            "POST", "mount", target, digest, "mount", "the mount", f"{target}@{digest}", write=True
        )
        try:
            async with self._request(call, (*WRITE, NO_MOUNT)) as (host, access, kind):
                login, name = self.login(target), source.repository
                granted = kind != NO_MOUNT and host.mount(target.repository, digest, name, login)
                access.status = 201 if granted else 202
        except RegistryError as error:
            if error.kind in {"auth", "missing"}:
                return False
            raise
        return access.status == 201

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        """See RegistryTarget.upload."""
        where = f"{target}@{blob.digest}"
        begin = _Call("POST", "uploads", target, blob.digest, "upload", "the upload", where, write=True, told=False)
        async with self._request(begin, BEGIN) as (_, access, _kind):
            access.status = 202
        data = await self._sent(target, blob, chunks, where)
        end = _Call("PUT", "uploads", target, blob.digest, "upload", "the upload", where, write=True)
        async with self._request(end, WRITE, sent=len(data)) as (host, access, _):
            access.status, _ = host.store(target.repository, blob.digest, data)
        if access.status != 201:
            what = f"the bytes that arrived at the registry are not {blob.digest}"
            raise VerificationError(what, where=where, hint="they were damaged here or on the way: try again")

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """See RegistryTarget.put_manifest."""
        wanted, digest = None if is_tag(name) else Digest(name), sha256(data)
        where = f"{target}{'@' if wanted else ':'}{name}"
        if wanted not in {None, digest}:
            raise VerificationError(f"the manifest has the digest {digest}", where=where)
        call = _Call("PUT", "manifests", target, name, "put", "the manifest's upload", where, write=True)
        async with self._request(call, WRITE, sent=len(data)) as (host, access, _):
            access.status, body = host.put_manifest(target.repository, name, media_type, data)
        if access.status != 201:
            raise _refused(call, access.status, body)
        if not host.listing and (refers := referring(data, media_type)) is not None:
            await self._fallback.add(target, *refers)
        return digest

    # ------------------------------------------------------------ the parts

    def login(self, provider: Provider) -> str:
        """Whose login is shown there; "" for nobody's."""
        return self._logins.get(provider.registry, "")

    @asynccontextmanager
    async def _request(
        self, call: _Call, kinds: tuple[str, ...], *, sent: int = 0
    ) -> AsyncIterator[tuple[Host, Access, str]]:
        """A request, whose body is what the registry does when it arrives: it sets the status. Raises RegistryError."""
        host, access, kind = await self.arrive(call, kinds)
        yield host, access, kind
        access.ended = asyncio.get_running_loop().time()
        if kind == AFTER:
            raise Crashed(f"after {call.method} {call.where}")
        if kind == NO_ANSWER:
            raise self.tell(call, access, error=_broken(call))
        await self.latency()
        self.tell(call, access, sent=sent)

    async def arrive(self, call: _Call, kinds: tuple[str, ...]) -> tuple[Host, Access, str]:
        """The registry that hears `call`, its line in the log, and the fault that is yet to strike, if any. Raises what
        comes of it when it does not get so far, or is refused at the door."""
        check_provider(call.provider.registry, call.provider.repository)
        kind = self._faults.at(f"registry.{call.verb}.{call.method}", *kinds)
        if kind == CRASH:
            raise Crashed(f"before {call.method} {call.where}")
        if kind == "503 once":
            self.tell(call, self._logged(call, 503), error=_refused(call, 503, b""))
            await asyncio.sleep(BACKOFF_SECONDS)
        elif kind == SLOW:
            await asyncio.sleep(SLOW_SECONDS)
        await self.latency()
        host = self._registries.hosts.get(call.provider.registry)
        if host is None or not host.up or kind == LOST:
            raise self.tell(call, None, error=_broken(call))
        status = int(kind) if kind.isdigit() else 0
        if not status and not host.allows(self.login(call.provider), call.provider.repository, write=call.write):
            status = 401
        if status:
            raise self.tell(call, self._logged(call, status), error=_refused(call, status, b""))
        access = self._logged(call, 0)
        return host, access, kind

    async def latency(self) -> None:
        """Something goes over the network; how long that takes is left to chance."""
        await asyncio.sleep(self._chance.below(40) / 1000 if self._chance.maybe(40) else 0)

    def _logged(self, call: _Call, status: int) -> Access:
        asker, now = process(), asyncio.get_running_loop().time()
        line = Access(
            call.provider.registry, call.method, call.provider.repository, call.kind, str(call.name), now,
            asker.name if asker else "", status, ended=now if status else -1.0,
        )  # fmt: skip
        self._registries.log.append(line)
        return line

    def tell(
        self, call: _Call, access: Access | None, *, error: RefledgerError | None = None, sent: int = 0
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

    async def _sent(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], where: str
    ) -> bytes:
        """What the source of an upload gives, sent piece by piece."""
        while True:
            stream, came, again = chunks(), bytearray(), False
            try:
                async for piece in stream:
                    kind = self._faults.at("registry.send", *SENT)
                    if kind == CRASH:
                        raise Crashed(f"while sending {where}")
                    if kind == LOST:
                        raise Unavailable(f"the connection to {target.registry} broke", where=where).final()
                    if again := kind == "again":
                        break
                    await (asyncio.sleep(SLOW_SECONDS) if kind == SLOW else self.latency())
                    came += piece
                    if len(came) > blob.size:
                        raise wrong_length("goes on after the", blob.size, where)
            finally:
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()
            if not again:
                if len(came) != blob.size:
                    raise wrong_length(f"ends after {len(came)}", blob.size, where)
                return bytes(came)
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _get_manifest(
        self, provider: Provider, name: str, digest: Digest | None, verb: Verb, where: str
    ) -> tuple[str, bytes]:
        call = _manifest_call("GET", provider, name, verb, where)
        async with self._request(call, (*READ, WRONG)) as (host, access, kind):
            access.status, data, media_type = host.manifest(provider.repository, name)
            access.bytes = len(data)
        if access.status != 200:
            raise _refused(call, access.status, data)
        data = _flipped(data) if kind == WRONG else data
        if digest is not None and sha256(data) != digest:
            what = f"the registry's manifest has the digest {sha256(data)}"
            raise VerificationError(what, where=where, hint="the copy in the registry is damaged: push it again")
        return media_type_of(data, media_type, where), data

    async def _tagged(self, provider: Provider, tag: str) -> bytes | None:
        try:
            return (await self._get_manifest(provider, tag, None, "resolve", f"{provider}:{tag}"))[1]
        except RegistryError as error:
            if error.kind != "missing":
                raise
            return None


class _Stream:
    """BlobStream of `blob` from `start` to `end`; `verified`: is the digest looked at?"""

    def __init__(
        self, client: MemoryClient, provider: Provider, blob: Descriptor, start: int, end: int, *, verified: bool
    ) -> None:
        self._client = client
        self._provider = provider
        self._blob = blob
        self._offset = start
        self._end = end
        self._verified = verified
        self._access: Access | None = None
        self._data = b""
        self._call = _blob_call("GET", provider, blob.digest, "pull")
        self._came: list[bytes] = []
        self.wire_bytes = 0
        self.resumed_from = 0
        self.ranged = False

    async def connect(self) -> None:
        """Ask for what is missing yet."""
        client, call = self._client, self._call
        host, access, kind = await client.arrive(call, BLOB)
        self._access = access
        access.status, body = host.blob(self._provider.repository, self._blob.digest)
        if access.status != 200:
            self.close()
            raise client.tell(call, access, error=_refused(call, access.status, body))
        if kind == "wrong size":
            body += b"!"
        if kind == WRONG:
            body = _flipped(body)
        if len(body) != self._blob.size:
            self.close()
            promised = f"the registry has {len(body)} bytes where {self._blob.size} are promised"
            raise client.tell(call, access, error=self._corrupt(promised))
        self._data = body
        asked = self._offset > 0 or self._end < self._blob.size
        self.ranged = asked and host.ranges and kind != "no ranges"
        if self.ranged:
            access.status = 206
        else:
            self._count(self._offset)
        await client.latency()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        client = self._client
        while self._offset < self._end:
            left = self._end - self._offset
            size = left if client._chance.maybe(50) else 1 + client._chance.below(left)
            kind = client._faults.at("registry.piece", *PIECE)
            if kind == CRASH:
                raise Crashed(f"while reading {self._call.where}")
            if kind == LOST:
                raise client.tell(self._call, self._access, error=_broken(self._call))
            if kind == "resumed":
                self.close()
                await asyncio.sleep(BACKOFF_SECONDS)
                await self.connect()
                self.resumed_from = self._offset
            piece = self._data[self._offset : self._offset + size]
            self._count(len(piece))
            self._offset += len(piece)
            piece = _flipped(piece[::-1])[::-1] if kind == WRONG else piece  # another byte than `connect` may have
            if self._verified:
                self._came.append(piece)
            await (asyncio.sleep(SLOW_SECONDS) if kind == SLOW else client.latency())
            yield piece
        if self._verified and (found := sha256(b"".join(self._came))) != self._blob.digest:
            raise client.tell(self._call, self._access, error=self._corrupt(f"its bytes have the digest {found}"))
        client.tell(self._call, self._access)
        self.close()

    def close(self) -> None:
        """The connection is not needed any more."""
        access, self._access = self._access, None
        if access is not None and access.ended < 0:
            access.ended = asyncio.get_running_loop().time()

    def _count(self, size: int) -> None:
        self.wire_bytes += size
        if self._access is not None:
            self._access.bytes += size

    def _corrupt(self, why: str) -> VerificationError:
        what = f"the registry's blob is not what its digest promises: {why}"
        hint = "the copy in the registry is damaged: push the image again"
        return VerificationError(what, where=self._call.where, hint=hint)


def _manifest_call(method: str, provider: Provider, name: str, verb: Verb, where: str) -> _Call:
    return _Call(method, "manifests", provider, name, verb, "the manifest", where)


def _blob_call(method: str, provider: Provider, digest: Digest, verb: Verb) -> _Call:
    return _Call(method, "blobs", provider, digest, verb, "the blob", f"{provider}@{digest}", told=verb != "exists")


def _refused(call: _Call, status: int, body: bytes) -> RegistryError:
    error = refused(
        httpx.Response(status), body, registry=call.provider.registry, where=call.where, asked=call.asked
    )
    return error.final() if isinstance(error, Unavailable) else error


def _broken(call: _Call) -> RegistryError:
    error = broken(httpx.ReadError(""), call.provider.registry, call.where)
    assert isinstance(error, Unavailable)
    return error.final()


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else data


__all__ = ["Access", "Answer", "MemoryClient", "MemoryRegistries"]
