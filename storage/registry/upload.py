"""A blob on its way out: one PUT where the registry takes it, PATCHes of bounded size where it does not.

Source: OCI distribution-spec ("Pushing blobs": POST then PUT; in chunks).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from storage.errors import RefledgerError, RegistryError, VerificationError
from storage.interfaces import ByteStream, Descriptor, Provider
from storage.registry.attempts import Topic
from storage.registry.auth import Scopes
from storage.registry.failures import Unavailable, codes, refused
from storage.registry.session import Call, Session

if TYPE_CHECKING:
    import httpx

# reason: servers that want another way of uploading, or a proxy that bounds bodies, say it in one of these ways
_NOT_IN_ONE_PIECE = frozenset({404, 405, 411, 413, 415, 416, 501})
_BAD_BYTES = frozenset({"DIGEST_INVALID", "SIZE_INVALID"})


def push_scope(repository: str) -> str:
    """The token scope that writing to `repository` needs."""
    return f"repository:{repository}:pull,push"


class Upload:
    """One blob to one repository."""

    def __init__(
        self, session: Session, target: Provider, blob: Descriptor, chunks: Callable[[], ByteStream], where: str
    ) -> None:
        self._session = session
        self._target = target
        self._blob = blob
        self._chunks = chunks
        self._where = where
        self._scopes: Scopes = (push_scope(target.repository),)

    async def run(self) -> None:
        """Upload, from the start again while a failure may pass. Raises RegistryError, VerificationError, and what
        the source of the bytes raises (that one is not repeated: the source has its own patience)."""
        in_pieces = await self._session.transport.persist(self._in_one_piece)
        if in_pieces:
            await self._session.transport.persist(self._in_pieces)

    async def _in_one_piece(self) -> bool:
        """POST, PUT. True when the registry wants it in pieces."""
        location = await self._begin()
        body = _Body(self._chunks, self._blob.size, self._where)
        call = self._call("PUT", self._with_digest(location), {"Content-Length": str(self._blob.size)}, body.whole)
        try:
            async with body, self._session.open(call) as response:
                if response.status_code not in _NOT_IN_ONE_PIECE:
                    await self._confirm(call, response)
                    return False
        except RefledgerError as error:
            await self._give_up(location, error)
            raise
        await self._cancel(location)
        return True

    async def _in_pieces(self) -> None:
        """POST, PATCH as often as needed, PUT."""
        location = await self._begin()
        body = _Body(self._chunks, self._blob.size, self._where)
        bound = self._session.transport.limits.patch_bytes
        try:
            async with body:
                for begin in range(0, self._blob.size, bound):
                    location = await self._patch(location, body, begin, min(bound, self._blob.size - begin))
                await body.finish()
            call = self._call("PUT", self._with_digest(location), {"Content-Length": "0"})
            async with self._session.open(call) as response:
                await self._confirm(call, response)
        except RefledgerError as error:
            await self._give_up(location, error)
            raise

    async def _give_up(self, location: str, error: RefledgerError) -> None:
        """Cancel the upload, unless nobody answers there."""
        if not isinstance(error, Unavailable) or error.status:
            await self._cancel(location)

    async def _cancel(self, location: str) -> None:
        await cancel_upload(self._session, self._call("DELETE", location))

    async def _patch(self, location: str, body: _Body, begin: int, count: int) -> str:
        """Send `count` bytes from offset `begin`; the location for what follows."""
        headers = {
            "Content-Length": str(count), "Content-Range": f"{begin}-{begin + count - 1}",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        call = self._call("PATCH", location, headers, lambda: body.take(begin, count))
        async with self._session.open(call) as response:
            if response.status_code not in {202, 204}:
                raise await self._session.failure(call, response)
            return _location(response, self._where)

    async def _begin(self) -> str:
        path = f"/v2/{self._target.repository}/blobs/uploads/"
        call = self._call("POST", path, {"Content-Length": "0"}, repeat=True)
        async with self._session.open(call) as response:
            if response.status_code != 202:
                raise await self._session.failure(call, response)
            return _location(response, self._where)

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
        # reason: what carries the bytes tells of the upload; how it was begun only matters when that failed
        topic = Topic("upload", self._blob.digest, self._target, failures_only=method == "POST")
        return Call(method, registry, target, self._where, "the upload", self._scopes, sent, body, repeat,
                    topic if method != "DELETE" else None, aside=True)  # fmt: skip


async def cancel_upload(session: Session, call: Call) -> None:
    """Tell the registry that an upload session will not be used. A courtesy: failures do not matter."""
    with suppress(RegistryError):
        async with session.open(call):
            pass


def _location(response: httpx.Response, where: str) -> str:
    location: str = response.headers.get("location", "")
    if not location:
        raise RegistryError("the registry opened an upload without a location", kind="transport", where=where)
    return str(response.url.join(location))


class _Body:
    """The blob's bytes for requests, counted. As a context it closes the source, and raises the source's own failure
    in place of whatever that failure did to the request."""

    def __init__(self, chunks: Callable[[], ByteStream], size: int, where: str) -> None:
        self._chunks = chunks
        self._size = size
        self._where = where
        self._streams: list[ByteStream] = []
        self._position = 0
        self._rest = b""
        self._failure: BaseException | None = None

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for stream in self._streams:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        if self._failure is not None and error is not self._failure and not isinstance(error, GeneratorExit):
            raise self._failure

    async def whole(self) -> AsyncIterator[bytes]:
        """All bytes, from the start each time. The last piece is held back until the source has ended and so verified
        them: a request that lacks it makes no blob."""
        self._streams.append(aiter(self._chunks()))
        self._rest, self._position = b"", 0
        held = b""
        async with aclosing(self.take(0, self._size)) as pieces:
            async for piece in pieces:
                if held:
                    yield held
                held = piece
        await self.finish()
        if held:
            yield held

    async def take(self, begin: int, count: int) -> AsyncGenerator[bytes, None]:
        """`count` bytes from offset `begin`, which must be where the last call ended."""
        if begin != self._position:
            # reason: a rejected token makes the session ask for a body twice, and a stream cannot go back
            raise Unavailable("a part of the upload had to be sent again", where=self._where)
        while count:
            piece = self._rest or await self._next()
            if not piece:
                raise self._wrong_length(f"ends after {self._position}")
            now, self._rest = piece[:count], piece[count:]
            count -= len(now)
            self._position += len(now)
            yield now

    async def finish(self) -> None:
        """Let the source end. Raises what it raises, VerificationError when it has more."""
        if self._rest or await self._next():
            raise self._wrong_length("goes on after the")

    async def _next(self) -> bytes:
        """The next piece that is not empty; b"" at the end."""
        if not self._streams:
            self._streams.append(aiter(self._chunks()))
        try:
            async for piece in self._streams[-1]:
                if piece:
                    return piece
        except Unavailable as error:
            # reason: the source has run out of tries; as Unavailable it would use up those of the target too
            self._failure = RegistryError(
                error.what, kind=error.kind, status=error.status, where=error.where, hint=error.hint
            )
            raise self._failure from error
        except Exception as error:
            self._failure = error
            raise
        return b""

    def _wrong_length(self, how: str) -> VerificationError:
        what = f"the source of the blob {how} bytes where {self._size} are promised"
        self._failure = VerificationError(what, where=self._where, hint="the source is damaged")
        return self._failure
