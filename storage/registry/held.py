"""An answer that holds a place until it is closed. Import it after `load_httpx`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx


class Held(httpx.AsyncByteStream):
    """`stream`, and `release` called when that is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, release: Callable[[], None]) -> None:
        self._stream = stream
        self._release: Callable[[], None] | None = release

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        """Close the stream, and release, once."""
        try:
            await self._stream.aclose()
        finally:
            release, self._release = self._release, None
            if release is not None:
                release()
