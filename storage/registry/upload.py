"""A blob on its way out: one PUT where the registry takes it, PATCHes of bounded size where it does not, or where the
connection breaks in the middle of a large one: pieces can be gone on with.

Source: OCI distribution-spec ("Pushing blobs": POST then PUT; in chunks; `OCI-Chunk-Min-Length`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from storage.errors import RefledgerError, RegistryError, VerificationError
from storage.interfaces.images import Descriptor, Provider, push_scope
from storage.interfaces.registry import ByteStream
from storage.registry.attempts import Topic
from storage.registry.auth import Scopes
from storage.registry.body import Body
from storage.registry.failures import Unavailable, codes, refused
from storage.registry.session import Call, Session
from storage.registry.transport import locate

if TYPE_CHECKING:
    import httpx

# reason: servers that want another way of uploading, or a proxy that bounds bodies, say it in one of these ways
_OTHER_WAY = frozenset({404, 405, 411, 413, 415, 416, 501})
_BAD_BYTES = frozenset({"DIGEST_INVALID", "SIZE_INVALID"})
_RANGE = re.compile(r"(?:bytes=)?[0-9]{1,18}-([0-9]{1,18})")
_SMALLEST = 1 << 16
"""Bytes; a proxy that refuses pieces of this size takes none."""


class Upload:
    """One blob to one repository. `stored` asks whether the repository has the blob."""

    def __init__(
        self, session: Session, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], where: str,
        stored: Callable[[], Awaitable[bool]],
    ) -> None:  # fmt: skip
        self._session = session
        self._limits = session.transport.limits
        self._target = target
        self._blob = blob
        self._chunks = chunks
        self._where = where
        self._stored = stored
        self._scopes: Scopes = (push_scope(target.repository),)
        self._in_doubt = False  # bytes went out, and nobody said what became of them
        self._ways = [self._in_one_piece]  # the one that is tried next stands last

    async def run(self) -> None:
        """Upload, from the start again while a failure may pass. Raises RegistryError, VerificationError, and what
        the source of the bytes raises (that one is not repeated: the source has its own patience)."""
        await self._session.transport.persist(self._try)

    async def _try(self) -> None:
        if self._in_doubt and await self._is_there():
            return
        self._in_doubt = False
        body = Body(self._chunks, self._blob.size, self._where)
        way = self._ways[-1]
        try:
            async with body:
                await way(body)
        except RegistryError as error:
            sent, size = body.position, self._blob.size
            if sent and body.failure is None and error.status in _OTHER_WAY and self._turn(way):
                await self._try()
                return
            if isinstance(error, Unavailable) and sent:
                self._in_doubt = True
                if not error.status and size > self._limits.patch_bytes:
                    self._turn(self._in_one_piece)
            raise

    def _turn(self, way: object) -> bool:
        """Try the other way next; False when both have been turned away from."""
        if way == self._in_one_piece and len(self._ways) == 1:
            self._ways.append(self._in_pieces)
            return True
        if way == self._in_pieces and len(self._ways) == 2:
            self._ways.append(self._in_one_piece)
            return True
        return False

    async def _is_there(self) -> bool:
        """Is the blob there already? When an answer was lost, it may be. Who cannot say so can still take it."""
        try:
            return await self._stored()
        except RegistryError:
            return False

    async def _in_one_piece(self, body: Body) -> None:
        """POST, PUT."""
        location, _ = await self._begin()
        call = self._call("PUT", self._with_digest(location), {"Content-Length": str(self._blob.size)}, body.whole)
        try:
            async with self._session.open(call) as response:
                await self._confirm(call, response)
        except RefledgerError as error:
            await self._give_up(location, error)
            raise

    async def _in_pieces(self, body: Body) -> None:
        """POST, PATCH as often as needed, PUT. What breaks is gone on with where the registry says that it ended."""
        location, least = await self._begin()
        pieces = _Pieces(max(self._limits.patch_bytes, least), least)
        transport, failures, offset = self._session.transport, 0, 0
        try:
            while True:
                reached = offset
                try:
                    while offset < self._blob.size:
                        location, offset = await self._patch(location, body, offset, pieces)
                    await body.finish()
                    await self._close(location)
                except Unavailable as error:
                    failures = 1 if offset > reached else failures + 1
                    if body.failure is not None or failures >= self._limits.tries:
                        raise error.final() from error
                    await transport.pause(failures, error.retry_after)
                    if offset == self._blob.size and await self._is_there():
                        return
                    kept = await self._kept(location)
                    if kept is None:
                        raise
                    location, offset = kept
                else:
                    return
        except RefledgerError as error:
            await self._give_up(location, error)
            raise

    async def _patch(self, location: str, body: Body, begin: int, pieces: _Pieces) -> tuple[str, int]:
        """Send a piece from offset `begin` on; the location for what follows, and its offset."""
        end = min(begin + pieces.bytes, self._blob.size)
        headers = {
            "Content-Length": str(end - begin), "Content-Range": f"{begin}-{end - 1}",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        call = self._call("PATCH", location, headers, lambda: body.take(begin, end - begin))
        async with self._session.open(call) as response:
            if response.status_code == 413 and pieces.shrink():
                return location, begin
            if response.status_code == 416:
                raise Unavailable("the registry has another part of the upload", status=416, where=self._where)
            if response.status_code not in {202, 204}:
                error = await self._session.failure(call, response)
                if response.status_code == 404 and begin:
                    raise Unavailable(error.what, status=404, where=error.where)  # it has forgotten the upload
                raise error
            taken = _ends(response)
            if 0 < taken == begin:
                raise Unavailable("the registry took nothing of a part of the upload", where=self._where)
            return location_of(response, location, self._where), taken if begin < taken < end else end

    async def _kept(self, location: str) -> tuple[str, int] | None:
        """Where an upload that broke can be gone on with; None when the registry has given it up."""
        call = self._call("GET", location, repeat=True)
        async with self._session.open(call) as response:
            if response.status_code not in {200, 202, 204}:
                return None
            offset = _ends(response)
            there = location_of(response, location, self._where)
            return (there, offset) if 0 <= offset <= self._blob.size else None

    async def _close(self, location: str) -> None:
        call = self._call("PUT", self._with_digest(location), {"Content-Length": "0"})
        async with self._session.open(call) as response:
            await self._confirm(call, response)

    async def _give_up(self, location: str, error: RefledgerError) -> None:
        """Cancel the upload, unless nobody answers there."""
        if not isinstance(error, RegistryError) or error.status:
            await cancel_upload(self._session, self._call("DELETE", location))

    async def _begin(self) -> tuple[str, int]:
        """The location of a new upload, and the bytes that each of its pieces but the last must have."""
        path = f"/v2/{self._target.repository}/blobs/uploads/"
        call = self._call("POST", path, {"Content-Length": "0"}, repeat=True)
        async with self._session.open(call) as response:
            if response.status_code != 202:
                raise await self._session.failure(call, response)
            location = location_of(response, "", self._where)
            if not location:
                raise RegistryError("the registry opened an upload without a location", kind="transport",
                                    where=self._where)  # fmt: skip
            least = response.headers.get("oci-chunk-min-length", "")
            return location, int(least) if least.isascii() and least.isdigit() and len(least) < 12 else 0

    async def _confirm(self, call: Call, response: httpx.Response) -> None:
        """Did the registry take the blob, under our digest?"""
        digest = self._blob.digest
        if response.status_code not in {201, 204}:
            transport = self._session.transport
            body = await transport.read(response, transport.limits.answer_bytes, self._where)
            if codes(body) & _BAD_BYTES:
                what = f"the bytes that arrived at the registry are not {digest}"
                raise VerificationError(what, where=self._where, hint="they were damaged here or on the way: try again")
            raise refused(response, body, registry=call.registry, where=self._where, asked=call.asked)
        named = response.headers.get("docker-content-digest", str(digest))
        if named.partition(":")[0] == digest.algorithm and named != digest:
            what = f"the registry stored the blob as {named[:80]!r}, not {digest}"
            raise VerificationError(what, where=self._where, hint="the registry does not keep what it is given")

    def _with_digest(self, location: str) -> str:
        return f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': self._blob.digest})}"

    def _call(
        self, method: str, target: str, headers: dict[str, str] | None = None,
        body: Callable[[], AsyncIterator[bytes]] | None = None, *, repeat: bool = False,
    ) -> Call:  # fmt: skip
        sent = dict(headers or {})
        if body is not None:
            sent.setdefault("Content-Type", "application/octet-stream")
        registry = self._target.registry
        # reason: what carries the bytes tells of the upload; the rest of it only matters when it failed
        told = Topic("upload", self._blob.digest, self._target, failures_only=method not in {"PUT", "PATCH"})
        topic = None if method == "DELETE" else told  # a courtesy
        return Call(
            method, registry, target, self._where, "the upload", self._scopes, sent, body, repeat, topic, aside=True
        )


class _Pieces:
    """How large the pieces of an upload are: `bytes`, of which the registry wants at least `least`."""

    def __init__(self, size: int, least: int) -> None:
        self.bytes = size
        self._least = max(least, 1)

    def shrink(self) -> bool:
        """Make them smaller, for a proxy that bounds requests; False when that is no use."""
        smaller = max(self.bytes // 4, min(self.bytes, _SMALLEST), self._least)
        shrunk = smaller < self.bytes
        self.bytes = smaller
        return shrunk


async def cancel_upload(session: Session, call: Call) -> None:
    """Tell the registry that an upload session will not be used. A courtesy: failures do not matter, and nobody waits
    long for them."""
    with suppress(RegistryError, TimeoutError):
        async with asyncio.timeout(session.transport.limits.connect_seconds), session.open(call):
            pass


def location_of(response: httpx.Response, default: str, where: str) -> str:
    """Where an answer says that the upload goes on; `default` when it says nothing. Raises RegistryError for what is no
    URL, or must not be gone to."""
    location: str = response.headers.get("location", "")
    return locate(str(response.url), location, where) if location else default


def _ends(response: httpx.Response) -> int:
    """How many bytes the `Range` of an answer to an upload says that the registry has; -1 when it says nothing. `0-0`
    stands for none: registries give it for an upload that has just begun."""
    matched = _RANGE.fullmatch(response.headers.get("range", "").strip())
    if matched is None:
        return -1
    return int(matched[1]) + 1 if int(matched[1]) else 0
