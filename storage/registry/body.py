"""A blob's bytes on their way into requests: counted, and never the last of them before the source has verified all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from storage.errors import VerificationError
from storage.interfaces.registry import ByteStream
from storage.registry.failures import Unavailable

_PIECE = 1 << 18
"""Bytes that are written at once. Reason: a write has as long as the stall limit, on slow lines too."""


class Body:
    """As a context it closes the source, and raises the source's own failure in place of whatever that failure did to
    the request. `size` in bytes; `where` for errors."""

    def __init__(self, chunks: Callable[[], ByteStream], size: int, where: str) -> None:
        self._chunks = chunks
        self._size = size
        self._where = where
        self._stream: ByteStream | None = None
        self._rest = b""
        self.position = 0
        """Offset of the next byte; those before it were given to requests."""
        self.failure: BaseException | None = None
        """Of the source."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._close()
        if self.failure is not None and error is not self.failure and not isinstance(error, GeneratorExit):
            raise self.failure

    async def whole(self) -> AsyncIterator[bytes]:
        """All bytes, from the start each time. The last piece is held back until the source has ended and so verified
        them: a request that lacks it makes no blob."""
        await self._rewind()
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
        """`count` bytes from offset `begin`; the source is opened anew unless the last ones ended there."""
        if begin != self.position:
            await self._rewind()
            while self.position < begin:
                await self._advance(begin - self.position)
        end = begin + count
        while self.position < end:
            yield await self._advance(end - self.position)

    async def finish(self) -> None:
        """Let the source end. Raises what it raises, VerificationError when it has more."""
        if self._rest or await self._next():
            raise self._wrong_length("goes on after the")

    async def _advance(self, most: int) -> bytes:
        """The next bytes, at most `most` of them."""
        piece = self._rest or await self._next()
        if not piece:
            raise self._wrong_length(f"ends after {self.position}")
        most = min(most, _PIECE)
        now, self._rest = piece[:most], piece[most:]
        self.position += len(now)
        return now

    async def _next(self) -> bytes:
        """The next piece that is not empty; b"" at the end."""
        try:
            if self._stream is None:
                self._stream = aiter(self._chunks())
            async for piece in self._stream:
                if piece:
                    return piece
        except Unavailable as error:
            # reason: the source has run out of tries; as Unavailable it would use up those of the target too
            self.failure = error.final()
            raise self.failure from error
        except Exception as error:
            self.failure = error
            raise
        return b""

    async def _rewind(self) -> None:
        await self._close()
        self._rest, self.position = b"", 0

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()

    def _wrong_length(self, how: str) -> VerificationError:
        self.failure = wrong_length(how, self._size, self._where)
        return self.failure


def wrong_length(how: str, size: int, where: str) -> VerificationError:
    """The error for a source that does not give the `size` bytes it should; `how` it fails, as in "ends after 5"."""
    what = f"the source of the blob {how} bytes where {size} are promised"
    return VerificationError(what, where=where, hint="the source is damaged")
