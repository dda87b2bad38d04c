"""Layers uncompressed, whatever they are compressed with: damage is told, and memory is bounded.

Sources: RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

import zstandard
from isal import isal_zlib

from storage.errors import VerificationError
from storage.interfaces.blobs import ByteSource

CHUNK = 256 * 1024
"""Bytes read from a source at a time."""
_GZIP_WINDOW = 31  # zlib's convention: 15 bits of window, +16 for a gzip wrapper
_LARGEST_WINDOW = 1 << 27  # what the zstd command line accepts without --long=31
_GzipError = cast("type[Exception]", isal_zlib.error)  # its stub declares an instance


def decompress(source: ByteSource, media_type: str) -> ByteSource:
    """The uncompressed bytes of `source`. Its `read` raises VerificationError for corrupt or truncated data.

    `media_type` says how it is compressed, but registries serve layers whose media type is wrong: the first bytes
    win when they tell of gzip or zstd, or of neither.
    """
    start = b""
    while len(start) < 4 and (data := source.read(CHUNK)):
        start += data
    rest = _Pushed(start, source)
    if start[:3] == b"\x1f\x8b\x08":
        return _Gunzip(rest)
    if start[:4] == b"\x28\xb5\x2f\xfd" or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return _Unzstd(rest)
    if not start and media_type.endswith(("gzip", "zstd")):
        raise VerificationError("the layer is empty, without even the header of its compression")
    return rest


class _Pushed:
    """`start`, then the rest of a source."""

    def __init__(self, start: bytes, source: ByteSource) -> None:
        self._start = start
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        if not self._start:
            return self._source.read(size if size > 0 else CHUNK)
        size = size if size > 0 else len(self._start)
        data, self._start = self._start[:size], self._start[size:]
        return data


class _Gunzip:
    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._input = b""
        self._member = isal_zlib.decompressobj(_GZIP_WINDOW)

    def read(self, size: int = -1, /) -> bytes:
        size = size if size > 0 else CHUNK
        while True:
            if self._member.eof and not self._next_member():
                return b""
            data = self._input or self._source.read(CHUNK)
            try:
                out: bytes = self._member.decompress(data, size)
            except _GzipError as error:
                raise VerificationError(f"corrupt gzip data: {error}") from error
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if out:
                return out
            if not data and not self._member.eof:
                raise VerificationError("truncated gzip data")

    def _next_member(self) -> bool:
        """gzip(1) accepts members one behind the other, and zeros to pad the end."""
        while not (data := self._input.lstrip(b"\0")):
            data = self._input = self._source.read(CHUNK)
            if not data:
                return False
        self._input = data
        self._member = isal_zlib.decompressobj(_GZIP_WINDOW)
        return True


class _Unzstd:
    def __init__(self, source: ByteSource) -> None:
        self._frames = _FrameWatch(source)
        self._reader = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(
            self._frames, read_size=CHUNK, read_across_frames=True, closefd=False  # type: ignore[arg-type]
        )  # fmt: skip

    def read(self, size: int = -1, /) -> bytes:
        try:
            out = self._reader.read(size if size > 0 else CHUNK)
        except zstandard.ZstdError as error:
            raise VerificationError(f"corrupt zstd data: {error}") from error
        if not out and self._frames.inside:
            raise VerificationError("truncated zstd data")
        return out


class ZstdFrames:
    """ByteSource over zstd frames that each stand alone: what came before a damaged one was given out before the error
    is raised. `read` gives at most one piece; a piece of input holds no more than what it may expand to in memory."""

    _PIECE = 2048  # bytes; blocks of 128 KiB can come from 4 bytes

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._out = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """See ByteSource. Raises VerificationError."""
        while not self._out:
            if not self._input:
                self._input = self._source.read(self._PIECE)
            if not self._input:
                if self._frame is not None:
                    raise VerificationError("truncated zstd data")
                return b""
            self._out = memoryview(self._advance())
        piece = self._out if size < 0 else self._out[:size]
        self._out = self._out[len(piece) :]
        return bytes(piece)

    def _advance(self) -> bytes:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        try:
            out = self._frame.decompress(self._input)
        except zstandard.ZstdError as error:
            raise VerificationError(f"corrupt zstd data: {error}") from error
        self._input = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return out


class _FrameWatch:
    """Passes a source through and follows its frames, as the library ends a truncated one without a word."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.inside = False
        self._parser = self._parse()
        self._wanted, self._keep = next(self._parser)
        self._kept = b""

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        position = 0
        while position < len(data):
            step = min(self._wanted, len(data) - position)
            if self._keep:
                self._kept += data[position : position + step]
            self._wanted -= step
            position += step
            self.inside = True
            if not self._wanted:
                kept, self._kept = self._kept, b""
                self._advance(kept)
        return data

    def _advance(self, kept: bytes) -> None:
        self._wanted, self._keep = self._parser.send(kept)
        while not self._wanted:
            self._wanted, self._keep = self._parser.send(b"")

    def _parse(self) -> Generator[tuple[int, bool], bytes, None]:
        """Yields how many bytes it wants and whether to see them (RFC 8878, sections 3.1.1 and 3.1.2)."""
        while True:
            self.inside = False
            magic = int.from_bytes((yield 4, True), "little")
            if magic >> 4 == 0x184D2A5:
                yield int.from_bytes((yield 4, True), "little"), False
                continue
            flags = (yield 1, True)[0]
            single = flags >> 5 & 1
            yield (0 if single else 1) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6], False
            last = 0
            while not last:
                block = int.from_bytes((yield 3, True), "little")
                last = block & 1
                yield (1 if block >> 1 & 3 == 1 else block >> 3), False
            if flags & 4:
                yield 4, False
