"""Reading a layer: its uncompressed bytes are made and hashed on a thread of their own, and checked at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from storage.digest import Digest, Hasher
from storage.errors import VerificationError
from storage.interfaces.blobs import ByteSource
from storage.tar.reader import TarReader

T = TypeVar("T")
CHUNK = 1 << 20
_CHUNKS_AHEAD = 4


def read_layer(
    diff_id: Digest,
    media_type: str,
    source: ByteSource,
    consume: Callable[[TarReader], T],
    *,
    limit: int,
    tee: Callable[[bytes], Any] | None = None,
) -> T:
    """What `consume` makes of the layer's tar, once all bytes of `source` were read and are those of `diff_id`.

    `tee` is given every uncompressed byte, in order, before `consume` sees it. Raises VerificationError for wrong
    bytes (before it blames their form) and for more than `limit` of them, and what `source`, `consume` and `tee` raise.
    """
    with ReadAhead(source, media_type, Hasher(diff_id.algorithm), limit) as ahead:
        tar = TarReader(_Tee(ahead, tee) if tee else ahead)
        try:
            result = consume(tar)
            tar.drain()
        except _TooLargeError:
            raise
        except VerificationError as malformed:
            while ahead.read():
                pass
            ahead.check(diff_id, f": {malformed.what}")
            raise
        ahead.check(diff_id)
    return result


class _TooLargeError(VerificationError):
    """The layer goes on beyond the bound: a decompression bomb, or a very large layer."""


class _Tee:
    def __init__(self, source: ByteSource, write: Callable[[bytes], Any]) -> None:
        self._source = source
        self._write = write

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._write(data)
        return data


class ReadAhead:
    """Decompresses and hashes on a thread of its own while this one writes; a bounded number of chunks ahead."""

    def __init__(self, source: ByteSource, media_type: str, hasher: Hasher, limit: int) -> None:
        self._source = source
        self._media_type = media_type
        self._hasher = hasher
        self._limit = limit
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(_CHUNKS_AHEAD)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._chunks.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def read(self, _size: int = -1, /) -> bytes:
        """The next chunk, whatever its size. Raises what broke the source, VerificationError."""
        if self._ended:
            return b""
        chunk = self._chunks.get()
        if isinstance(chunk, BaseException):
            self._ended = True
            raise chunk
        self._ended = not chunk
        return chunk

    def check(self, diff_id: Digest, but: str = "") -> None:
        """Raises VerificationError unless the bytes, read to the end, are those of `diff_id`."""
        found = self._hasher.digest()
        if found != diff_id:
            raise VerificationError(f"the layer's content has diff ID {found}, not {diff_id}{but}")

    def _run(self) -> None:
        from storage.decompression import decompress

        try:
            plain = decompress(self._source, self._media_type)
            while not self._stopped.is_set():
                chunk = plain.read(CHUNK)
                self._hasher.update(chunk)
                if self._hasher.size > self._limit:
                    raise _TooLargeError(
                        f"the layer expands to more than {self._limit} bytes",
                        hint="REFLEDGER_LAYER_LIMIT=BYTES lets in larger ones",
                    )
                self._chunks.put(chunk)
                if not chunk:
                    return
        except BaseException as error:  # noqa: BLE001 - the thread that reads raises it
            self._chunks.put(error)
