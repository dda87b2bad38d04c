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

from storage.credentials import Credentials
from storage.digest import Digest, Hasher
from storage.errors import InputError, RegistryError, VerificationError
from storage.interfaces import BlobStream, ByteStream, Descriptor, Provider, Reference
from storage.reference import check_provider, is_tag
from storage.registry.auth import Authenticator
from storage.registry.download import Download
from storage.registry.limits import Limits
from storage.registry.manifests import ACCEPT, KNOWN, media_type_of
from storage.registry.session import Call, Session
from storage.registry.transport import Sleep, Transport
from storage.registry.upload import Upload, cancel_upload, push_scope

if TYPE_CHECKING:
    import httpx

_NO_HEAD = frozenset({400, 404, 405, 406, 501})


class RegistryClient:
    """`RegistrySource` and `RegistryTarget` over one connection pool. Use it in one event loop; `aclose` it there.

    `credentials` are asked for when a registry asks; `sleep`, `clock` (seconds since the epoch) and `jitter` (0 to 1)
    are passed in for tests.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        user_agent: str,
        limits: Limits | None = None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._limits = limits or Limits()
        self._transport = Transport(user_agent, self._limits, sleep=sleep, clock=clock, jitter=jitter)
        self._session = Session(self._transport, Authenticator(credentials, self._transport, user_agent))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    # ------------------------------------------------------------ RegistrySource

    async def resolve(self, reference: Reference) -> Descriptor:
        """See `RegistrySource.resolve`. HEAD where the registry answers it fully, else GET and hash."""
        name = str(reference.digest or reference.tag)
        provider, where = reference.provider, str(reference)
        call = _manifest_call("HEAD", provider, name, where)
        async with self._session.open(call) as response:
            if response.status_code == 200:
                found = _described(response, reference.digest, where)
                if found is not None:
                    return found
            elif response.status_code not in _NO_HEAD:
                raise await self._session.failure(call, response)
        # reason: also after 404, for the answer to a HEAD has no body that says why
        media_type, data = await self._get_manifest(provider, name, where, reference.digest)
        hasher = Hasher(reference.digest.algorithm if reference.digest else "sha256")
        hasher.update(data)
        return Descriptor(media_type, hasher.digest(), len(data))

    async def manifest(self, provider: Provider, digest: Digest) -> tuple[str, bytes]:
        """See `RegistrySource.manifest`."""
        return await self._get_manifest(provider, digest, f"{provider}@{digest}", digest)

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
        call = _blob_call("HEAD", provider, digest, {})
        async with self._session.open(call) as response:
            status = response.status_code
            if status not in {200, 404, 405, 501}:
                raise await self._session.failure(call, response)
        if status in {200, 404}:
            return status == 200
        call = _blob_call("GET", provider, digest, {"Range": "bytes=0-0"})
        async with self._session.open(call) as response:
            if response.status_code in {200, 206, 404, 416}:
                return response.status_code != 404
            raise await self._session.failure(call, response)

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
        call = Call("POST", target.registry, path, where, "the mount", scopes, {"Content-Length": "0"})
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

    async def upload(self, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream]) -> None:
        """See `RegistryTarget.upload`. What `chunks()` raises is raised as it is, and nothing is stored then."""
        check_provider(target.registry, target.repository)
        stored = partial(self.exists, target, blob.digest)
        await Upload(self._session, target, blob, chunks, f"{target}@{blob.digest}", stored).run()

    async def put_manifest(self, target: Provider, name: str, media_type: str, data: bytes) -> Digest:
        """See `RegistryTarget.put_manifest`. Raises InputError for a name that is neither tag nor digest."""
        check_provider(target.registry, target.repository)
        wanted = _digest_name(name)
        hasher = Hasher(wanted.algorithm if wanted else "sha256")
        hasher.update(data)
        digest = hasher.digest()
        where = f"{target}{'@' if wanted else ':'}{name}"
        if wanted not in {None, digest}:
            raise VerificationError(f"the manifest has the digest {digest}", where=where)
        path = f"/v2/{target.repository}/manifests/{name}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        scopes = (push_scope(target.repository),)
        call = Call("PUT", target.registry, path, where, "the manifest's upload", scopes, headers, lambda: data)
        async with self._session.open(call) as response:
            if response.status_code not in {200, 201, 202, 204}:
                raise await self._session.failure(call, response)
            stored = response.headers.get("docker-content-digest", "")
        if stored.startswith(f"{digest.algorithm}:") and stored != digest:
            what = f"the registry stored the manifest as {stored[:80]!r}, not {digest}"
            raise VerificationError(what, where=where, hint="the registry does not keep what it is given")
        return digest

    # ------------------------------------------------------------ the parts

    async def _get_manifest(
        self, provider: Provider, name: str, where: str, digest: Digest | None
    ) -> tuple[str, bytes]:
        """GET, whole or not at all, verified against `digest` when there is one."""
        call = _manifest_call("GET", provider, name, where)

        async def attempt() -> tuple[str, bytes]:
            async with self._session.open(call) as response:
                if response.status_code != 200:
                    raise await self._session.failure(call, response)
                served_as = response.headers.get("content-type", "").partition(";")[0].strip()
                return served_as, await self._transport.read(response, self._limits.manifest_bytes, where)

        served_as, data = await self._transport.persist(attempt)
        if digest is not None:
            hasher = Hasher(digest.algorithm)
            hasher.update(data)
            if hasher.digest() != digest:
                what = f"the registry's manifest has the digest {hasher.digest()}"
                raise VerificationError(what, where=where, hint="the copy in the registry is damaged: push it again")
        return media_type_of(data, served_as, where), data


def _manifest_call(method: str, provider: Provider, name: str, where: str) -> Call:
    check_provider(provider.registry, provider.repository)
    path = f"/v2/{provider.repository}/manifests/{name}"
    repeat = method == "HEAD"  # reason: a GET is repeated with the reading of its body
    headers = {"Accept": ACCEPT}
    return Call(method, provider.registry, path, where, "the manifest", (provider.scope,), headers, repeat=repeat)


def _blob_call(method: str, provider: Provider, digest: Digest, headers: dict[str, str]) -> Call:
    check_provider(provider.registry, provider.repository)
    where = f"{provider}@{digest}"
    path = f"/v2/{provider.repository}/blobs/{digest}"
    return Call(method, provider.registry, path, where, "the blob", (provider.scope,), headers)


def _described(response: httpx.Response, wanted: Digest | None, where: str) -> Descriptor | None:
    """The descriptor that the headers of a HEAD tell, or None when they do not tell all of it."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip()
    length = response.headers.get("content-length", "")
    try:
        digest = Digest(response.headers.get("docker-content-digest", ""))
    except InputError:
        return None
    if media_type not in KNOWN or not length.isdigit():
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
