"""Registries in memory, and clients of theirs over a network that fails: what the engine sees of the outside world."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from storage.digest import Digest, sha256
from storage.errors import RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider, Reference, Referrer
from storage.interfaces.registry import BlobStream, ByteStream
from storage.reference import check_provider, is_tag
from storage.referrers import FallbackTag, referring
from storage.registry.attempts import Observe, Verb
from storage.registry.manifests import media_type_of
from tests.simulation.bodies import Download, Sending
from tests.simulation.chance import Chance, Faults
from tests.simulation.hosts import Host
from tests.simulation.wire import (
    BEGIN,
    NO_MOUNT,
    READ,
    REQUEST,
    WRITE,
    WRONG,
    Access,
    Call,
    Wire,
    blob_call,
    flipped,
    manifest_call,
    refusal,
)

LASTING_BYTES = 256
"""Blobs of this size are uploaded so that another process may go on."""
Uploads = dict[tuple[str, Digest], str]
"""Uploads that broke off, by target and blob, and where they may be gone on with."""


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
        uploads: Uploads | None = None,
    ) -> MemoryClient:  # fmt: skip
        """What a process reads and writes registries with. `logins` by host; `observe` as RegistryClient has it;
        `uploads`: where it remembers uploads that broke off, for the processes of one root."""
        return MemoryClient(Wire(self.hosts, self.log, self.chance, self.faults, logins or {}, observe), uploads)

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


class MemoryClient:
    """RegistrySource, RegistryTarget and RegistryListing."""

    def __init__(self, wire: Wire, uploads: Uploads | None = None) -> None:
        self._wire = wire
        self._uploads = uploads
        self._fallback = FallbackTag(self._tagged, self.put_manifest)

    async def aclose(self) -> None:
        """As RegistryClient."""

    # ------------------------------------------------------------ RegistrySource

    async def resolve(self, reference: Reference) -> Descriptor:
        """See RegistrySource.resolve."""
        name, provider = str(reference.digest or reference.tag), reference.provider
        call = manifest_call("HEAD", provider, name, "resolve", str(reference))
        async with self._wire.request(call, READ) as (host, access, _):
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
        stream = Download(self._wire, provider, blob, start, stop, verified=not start and end is None)
        await stream.connect()
        try:
            yield stream
        finally:
            stream.close()

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """See RegistrySource.exists."""
        call = blob_call("HEAD", provider, digest, "exists")
        try:
            async with self._wire.request(call, READ) as (host, access, _):
                access.status = host.blob(provider.repository, digest)[0]
        except RegistryError as error:
            if error.kind == "missing":
                return False
            raise
        return access.status == 200

    # ------------------------------------------------------------ RegistryListing

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """See RegistryListing.tags."""
        call = Call("GET", "tags", provider, "list", "resolve", "the list of tags", str(provider), told=False)
        async with self._wire.request(call, READ) as (host, access, _):
            access.status, body = host.tags(provider.repository)
        if access.status != 200:
            raise refusal(call, access.status, body)
        return tuple(body.decode().split("\n"))

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str = "") -> tuple[Referrer, ...]:
        """See RegistryListing.referrers."""
        where = f"{provider}@{subject}"
        call = Call("GET", "referrers", provider, subject, "resolve", "the list of referrers", where, told=False)
        async with self._wire.request(call, (*REQUEST, "401")) as (host, access, _):
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
        call = Call(
            "POST", "mount", target, digest, "mount", "the mount", f"{target}@{digest}", write=True
        )
        try:
            async with self._wire.request(call, (*WRITE, NO_MOUNT)) as (host, access, kind):
                login, name = self._wire.login(target), source.repository
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
        begin = Call("POST", "uploads", target, blob.digest, "upload", "the upload", where, write=True, told=False)
        async with self._wire.request(begin, BEGIN) as (host, access, _):
            access.status = 202
        kept = self._kept(host, target, blob) if resume is not None else None
        sending = Sending(self._wire, target, blob, where, chunks, resume, kept)
        data = await sending.run()
        self._forget(host, target, blob)
        end = Call("PUT", "uploads", target, blob.digest, "upload", "the upload", where, write=True)
        async with self._wire.request(end, WRITE, sent=len(data)) as (host, access, _):
            access.status, _ = host.store(target.repository, blob.digest, data)
        if access.status != 201 and sending.begun:  # the parts do not fit together: once more, all from one source
            await self.upload(target, blob, chunks)
        elif access.status != 201:
            what = f"the bytes that arrived at the registry are not {blob.digest}"
            raise VerificationError(what, where=where, hint="they were damaged here or on the way: try again")

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """See RegistryTarget.put_manifest."""
        wanted, digest = None if is_tag(name) else Digest(name), sha256(data)
        where = f"{target}{'@' if wanted else ':'}{name}"
        if wanted not in {None, digest}:
            raise VerificationError(f"the manifest has the digest {digest}", where=where)
        call = Call("PUT", "manifests", target, name, "put", "the manifest's upload", where, write=True)
        async with self._wire.request(call, WRITE, sent=len(data)) as (host, access, _):
            access.status, body = host.put_manifest(target.repository, name, media_type, data)
        if access.status != 201:
            raise refusal(call, access.status, body)
        if not host.listing and (refers := referring(data, media_type)) is not None:
            await self._fallback.add(target, *refers)
        return digest

    # ------------------------------------------------------------ the parts

    async def _get_manifest(
        self, provider: Provider, name: str, digest: Digest | None, verb: Verb, where: str
    ) -> tuple[str, bytes]:
        call = manifest_call("GET", provider, name, verb, where)
        async with self._wire.request(call, (*READ, WRONG)) as (host, access, kind):
            access.status, data, media_type = host.manifest(provider.repository, name)
            access.bytes = len(data)
        if access.status != 200:
            raise refusal(call, access.status, data)
        data = flipped(data) if kind == WRONG else data
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

    def _kept(self, host: Host, target: Provider, blob: Descriptor) -> bytearray | None:
        """What the registry has of an upload that may last: of one that broke off, if it has not forgotten it."""
        if self._uploads is None or blob.size < LASTING_BYTES:
            return None
        key = str(target), blob.digest
        location = self._uploads.get(key, "")
        if location not in host.uploads or self._wire.chance.maybe(30):
            location = self._uploads[key] = host.begin_upload()
        return host.uploads[location]

    def _forget(self, host: Host, target: Provider, blob: Descriptor) -> None:
        if self._uploads is not None:
            host.uploads.pop(self._uploads.pop((str(target), blob.digest), ""), None)
