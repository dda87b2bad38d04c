"""`RegistryClient`: reading from and writing to any number of registries.

Sources: OCI distribution-spec 1.1, Docker Registry HTTP API v2.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from storage.credentials.lookup import Credentials
from storage.digest import Digest, Hasher, digest_of
from storage.errors import InputError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider, Reference, Referrer, push_scope
from storage.interfaces.registry import BlobStream, ByteStream
from storage.reference import check_provider, is_tag
from storage.referrers import FallbackTag, referring
from storage.registries import Registries
from storage.registry.attempts import Observe, Topic, Verb
from storage.registry.auth import Authenticator
from storage.registry.download import Download
from storage.registry.failures import Unavailable
from storage.registry.lasting import LastingUpload
from storage.registry.limits import Limits
from storage.registry.listing import Listing
from storage.registry.manifests import ACCEPT, KNOWN, media_type_of
from storage.registry.session import Call, Session
from storage.registry.transport import Sleep, Transport
from storage.registry.upload import Upload, cancel_upload
from storage.uploads import UploadSessions

if TYPE_CHECKING:
    import httpx

_NO_HEAD = frozenset({400, 404, 405, 406, 501})
_NOT_YET = frozenset({"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN"})
"""What a registry may say of a manifest whose blobs were just placed: it does not see them yet, or not while somebody
else places the same one (docker-registry empties the link to a blob before it writes it again)."""


class RegistryClient:
    """`RegistrySource`, `RegistryListing` and `RegistryTarget` over one connection pool. Use it in one event loop;
    `aclose` it there.

    `credentials` are asked for when a registry asks; `registries` says how hosts are spoken to; `observe` is told of
    each request once it is over; `uploads`: where large ones are remembered that may be gone on with; `sleep`,
    `clock` (seconds since the epoch) and `jitter` (0 to 1) are passed in for tests.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        user_agent: str,
        limits: Limits | None = None,
        registries: Registries | None = None,
        observe: Observe | None = None,
        uploads: UploadSessions | None = None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._limits = limits or Limits()
        self._uploads = uploads
        self._transport = Transport(
            user_agent, self._limits, sleep=sleep, clock=clock, jitter=jitter, registries=registries
        )
        self._session = Session(self._transport, Authenticator(credentials, self._transport, user_agent), observe)
        self._fallback = FallbackTag(self._tagged, self.put_manifest)
        self._listing = Listing(self._session, self._fallback)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    # ------------------------------------------------------------ RegistrySource

    async def resolve(self, reference: Reference) -> Descriptor:
        """See `RegistrySource.resolve`. HEAD where the registry answers it fully, else GET and hash."""
        name = str(reference.digest or reference.tag)
        provider, where = reference.provider, str(reference)
        call = _manifest_call("HEAD", provider, name, where, "resolve")
        async with self._session.open(call) as response:
            if response.status_code == 200:
                found = _described(response, reference.digest, where)
                if found is not None:
                    return found
            elif response.status_code not in _NO_HEAD:
                raise await self._session.failure(call, response)
        # reason: also after 404, for the answer to a HEAD has no body that says why
        media_type, data = await self._get_manifest(provider, name, where, reference.digest, "resolve")
        digest = digest_of(data, reference.digest.algorithm if reference.digest else "sha256")
        return Descriptor(media_type, digest, len(data))

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """See `RegistrySource.manifest`."""
        return await self._get_manifest(provider, digest, f"{provider}@{digest}", digest, "manifest")

    @asynccontextmanager
    async def blob(
        self, provider: Provider, blob: Descriptor, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """See `RegistrySource.blob`. Raises ValueError for an empty range, or one that the blob does not have."""
        hasher = Hasher(blob.digest.algorithm) if not start and end is None else None
        ask = partial(_blob_call, "GET", provider, blob.digest)
        download = Download(self._session, blob, ask, start, blob.size if end is None else end, hasher)
        await download.connect()
        try:
            yield download
        finally:
            await download.aclose()

    async def exists(self, provider: Provider, digest: Digest) -> bool:
        """See `RegistrySource.exists`."""
        call = _blob_call("HEAD", provider, digest, {}, "exists")
        async with self._session.open(call) as response:
            status = response.status_code
            if status not in {200, 404, 405, 501}:
                raise await self._session.failure(call, response)
        if status in {200, 404}:
            return status == 200
        call = _blob_call("GET", provider, digest, {"Range": "bytes=0-0"}, "exists")
        async with self._session.open(call) as response:
            if response.status_code in {200, 206, 404, 416}:
                return response.status_code != 404
            raise await self._session.failure(call, response)

    # ------------------------------------------------------------ RegistryListing

    async def tags(self, provider: Provider) -> tuple[str, ...]:
        """See `RegistryListing.tags`."""
        return await self._listing.tags(provider)

    async def referrers(self, provider: Provider, subject: Digest, artifact_type: str = "") -> tuple[Referrer, ...]:
        """See `RegistryListing.referrers`."""
        return await self._listing.referrers(provider, subject, artifact_type)

    # ------------------------------------------------------------ RegistryTarget

    async def mount(self, target: Provider, digest: Digest, source: Provider) -> bool:
        """See `RegistryTarget.mount`."""
        if target.registry != source.registry:
            return False
        check_provider(target.registry, target.repository)
        check_provider(source.registry, source.repository)
        where = f"{target}@{digest}"
        scopes = (push_scope(target.repository), source.scope)
        path = f"/v2/{target.repository}/blobs/uploads/?mount={digest}&from={source.repository}"
        topic = Topic("mount", digest, target)
        call = Call("POST", target.registry, path, where, "the mount", scopes, {"Content-Length": "0"}, topic=topic)
        try:
            async with self._session.open(call) as response:
                status, location = response.status_code, response.headers.get("location", "")
                named = response.headers.get("docker-content-digest", digest)
        except RegistryError as error:
            if error.kind == "auth":
                return False  # reason: a token server that denies both scopes together may grant the upload's alone
            raise
        if status == 202 and location:
            opened = Call("DELETE", target.registry, location, where, "the upload", scopes, repeat=False)
            await cancel_upload(self._session, opened)
        return status == 201 and named == digest

    async def upload(
        self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], *,
        resume: Callable[[int], ByteStream] | None = None,
    ) -> None:  # fmt: skip
        """See `RegistryTarget.upload`. What `chunks()` raises is raised as it is, and nothing is stored then."""
        check_provider(target.registry, target.repository)
        stored = partial(self.exists, target, blob.digest)
        given = self._session, target, blob, chunks, f"{target}@{blob.digest}", stored
        upload = Upload(*given)
        if resume is not None and self._uploads is not None and blob.size >= self._limits.lasting_bytes:
            upload = LastingUpload(*given, resume=resume, sessions=self._uploads)
        async with self._transport.writing(target.registry):
            await upload.run()

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """See `RegistryTarget.put_manifest`. Raises InputError for a name that is neither tag nor digest."""
        check_provider(target.registry, target.repository)
        wanted = _digest_name(name)
        digest = digest_of(data, wanted.algorithm if wanted else "sha256")
        where = f"{target}{'@' if wanted else ':'}{name}"
        if wanted not in {None, digest}:
            raise VerificationError(f"the manifest has the digest {digest}", where=where)
        path = f"/v2/{target.repository}/manifests/{name}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        scopes = (push_scope(target.repository),)
        topic = Topic("put", name, target)
        call = Call(
            "PUT", target.registry, path, where, "the manifest's upload", scopes, headers, lambda: data, repeat=False,
            topic=topic,
        )  # fmt: skip

        async def attempt() -> tuple[str, bool]:
            async with self._session.open(call) as response:
                if response.status_code not in {200, 201, 202, 204}:
                    raise await self._session.failure(call, response, _NOT_YET)
                return response.headers.get("docker-content-digest", ""), "oci-subject" in response.headers

        stored, listed = await self._transport.persist(attempt)
        if stored.startswith(f"{digest.algorithm}:") and stored != digest:
            what = f"the registry stored the manifest as {stored[:80]!r}, not {digest}"
            raise VerificationError(what, where=where, hint="the registry does not keep what it is given")
        if not listed and (refers := referring(data, media_type)) is not None:
            await self._fallback.add(target, *refers)
        return digest

    # ------------------------------------------------------------ the parts

    async def _get_manifest(
        self, provider: Provider, name: str, where: str, digest: Digest | None, verb: Verb
    ) -> tuple[str, bytes]:
        """GET, whole or not at all, verified against `digest` when there is one."""
        call = _manifest_call("GET", provider, name, where, verb)

        async def attempt() -> tuple[str, bytes]:
            async with self._session.open(call) as response:
                if response.status_code != 200:
                    raise await self._session.failure(call, response)
                served_as = response.headers.get("content-type", "").partition(";")[0].strip()
                data = await self._transport.read(response, self._limits.manifest_bytes, where)
                try:
                    _check_manifest(data, digest, where)
                except VerificationError as error:
                    if "content-length" in response.headers or "transfer-encoding" in response.headers:
                        raise
                    # reason: such an answer ends like this, whole or broken; asking again tells which
                    raise Unavailable(f"{error.what}, or it broke off", where=where, hint=error.hint) from error
                return media_type_of(data, served_as, where), data

        return await self._transport.persist(attempt, hurried=call.hurried)

    async def _tagged(self, provider: Provider, tag: str) -> bytes | None:
        """The manifest that `tag` names, None when there is none."""
        try:
            return (await self._get_manifest(provider, tag, f"{provider}:{tag}", None, "resolve"))[1]
        except RegistryError as error:
            if error.kind != "missing":
                raise
            return None


def _check_manifest(data: bytes, digest: Digest | None, where: str) -> None:
    """Raises VerificationError when `data` is not `digest`, if there is one."""
    if digest is None:
        return
    if (found := digest_of(data, digest.algorithm)) != digest:
        what = f"the registry's manifest has the digest {found}"
        raise VerificationError(what, where=where, hint="the copy in the registry is damaged: push it again")


def _manifest_call(method: str, provider: Provider, name: str, where: str, verb: Verb) -> Call:
    check_provider(provider.registry, provider.repository)
    path = f"/v2/{provider.repository}/manifests/{name}"
    repeat = method == "HEAD"  # reason: a GET is repeated with the reading of its body
    headers = {"Accept": ACCEPT}
    topic, scopes = Topic(verb, name, provider), (provider.scope,)
    return Call(method, provider.registry, path, where, "the manifest", scopes, headers, repeat=repeat, topic=topic)


def _blob_call(method: str, provider: Provider, digest: Digest, headers: dict[str, str], verb: Verb = "pull") -> Call:
    check_provider(provider.registry, provider.repository)
    where = f"{provider}@{digest}"
    path = f"/v2/{provider.repository}/blobs/{digest}"
    topic = Topic(verb, digest, provider, failures_only=verb == "exists")
    return Call(method, provider.registry, path, where, "the blob", (provider.scope,), headers, topic=topic)


def _described(response: httpx.Response, wanted: Digest | None, where: str) -> Descriptor | None:
    """The descriptor that the headers of a HEAD tell, or None when they do not tell all of it."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip()
    length = response.headers.get("content-length", "")
    try:
        digest = Digest(response.headers.get("docker-content-digest", ""))
    except InputError:
        return None
    if media_type not in KNOWN or not length.isdigit() or len(length) > 18:
        return None
    if wanted is not None and wanted.algorithm == digest.algorithm and wanted != digest:
        what = f"the registry has {digest} under this digest"
        raise VerificationError(what, where=where, hint="the copy in the registry is damaged: push it again")
    return Descriptor(media_type, wanted or digest, int(length))


def _digest_name(name: str) -> Digest | None:
    """`name` as a digest; None for a tag. Raises InputError for neither."""
    if is_tag(name):
        return None
    return Digest(name)
