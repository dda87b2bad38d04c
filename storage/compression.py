"""Compressed layers, streaming both ways: gzip by ISA-L, zstd, and none.

Nothing here grows with the data, nor with what hostile data expands to. The libraries release the interpreter lock.
Compression runs on as many threads as there are cores, and its bytes are the same for any number of them: the input
is cut into blocks of one size, each compressed by itself, with the end of the one before as its dictionary.
Sources: RFC 1952 (gzip), RFC 8878 (zstd frames), image-spec layer.md (media type suffixes).
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast

import isal
import zstandard
from isal import isal_zlib

from storage.errors import InputError, VerificationError
from storage.interfaces import ByteSource

CHUNK = 256 * 1024
"""Bytes of compressed data taken from a source at once."""

BLOCK = 1 << 20
"""Bytes that are compressed at once. Who hands over this many at a time spares a copy."""

_GzipError = cast("type[Exception]", isal_zlib.error)  # its stub declares an instance
_MOST_THREADS = 8
STARGZ_CHUNK = 4 << 20
"""Bytes of a file that can be read by themselves in an eStargz; what its other writers take."""
_ZSTD_JOB = 4 << 20  # bytes that one thread compresses by itself; zstd's own choice may change with its version
_ZSTD_WINDOW = 23  # 8 MiB: what every reader must take (RFC 8878, 3.1.1.1.2); levels from 20 on would use up to 128
_GZIP_WINDOW = 31  # zlib's convention: 15 bits of window, +16 for a gzip wrapper
_LARGEST_WINDOW = 1 << 27  # what the zstd command line accepts without --long=31

_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to compress: the levels that may be asked for, the one that is meant when none is, and the highest that
    makes a difference here (ISA-L has four: its 0 compresses too, and its 3 is the best it can do)."""

    media_type: str
    levels: range = range(1)
    default: int = 0
    highest: int = 0

    def level(self, asked: int | None) -> int:
        """What the library is told."""
        return self.default if asked is None else min(asked, self.highest)


KINDS: Mapping[str, Kind] = {
    "gzip": Kind(f"{_LAYER}+gzip", range(10), 2, 3),
    "estargz": Kind(f"{_LAYER}+gzip", range(10), 2, 3),
    "zstd": Kind(f"{_LAYER}+zstd", range(1, 23), 3, 22),
    "uncompressed": Kind(_LAYER),
}
"""What layers can be written as."""


def checked(kind: str, level: int | None = None) -> Kind:
    """The kind of that name. Raises InputError, which says what there is, also for a level that it has not."""
    found = KINDS.get(kind)
    if found is None or (level is not None and (level not in found.levels or not found.highest)):
        what = f"unknown compression {kind[:40]!r}" if found is None else f"{kind} has no level {level}"
        raise InputError(what, hint="gzip and estargz take levels 0-9 (3-9 are the same), zstd 1-22, uncompressed none")
    return found


def version(kind: str, level: int | None = None) -> str:
    """Name, version, block size and level of a compressor: what a blob's bytes depend on, beside its content. Raises
    InputError."""
    used = checked(kind, level).level(level)
    isa_l = f"isal {isal.__version__} {os.uname().machine}"
    return {
        "gzip": f"{isa_l} blocks of {BLOCK >> 20} MiB level {used}",
        "estargz": f"{isa_l} chunks of {STARGZ_CHUNK >> 20} MiB level {used}",
        "zstd": f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))} jobs of {_ZSTD_JOB >> 20} MiB level {used}",
        "uncompressed": "none",
    }[kind]


class Compressor(Protocol):
    """A stream being compressed, used by one thread. The result depends on the bytes, not on how they were cut into
    calls, nor on the number of threads."""

    def compress(self, data: bytes, /) -> bytes:
        """Compressed bytes so far (often none). Waits while the threads have enough to do."""
        ...

    def flush(self) -> bytes:
        """The rest. Nothing can be compressed afterwards, and no thread is left."""
        ...

    def close(self) -> None:
        """Let go of the threads; what was not flushed is lost. May be called at any time, also twice."""
        ...


def cores(threads: int | None = None) -> int:
    """How many threads compress: `threads`, or one per core."""
    return threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)


def compressor(kind: str, threads: int | None = None, level: int | None = None) -> Compressor:
    """A new stream of `gzip` (one member, no name, time 0), `zstd` (one frame) or `uncompressed`, on so many `threads`
    (default: one per core); eStargz is no stream, as it must know what it compresses (storage/estargz.py). Raises
    InputError for others, and for a level that there is not."""
    used = checked(kind, level).level(level)
    assert kind != "estargz", "an eStargz is written by storage/estargz.py"
    if kind == "gzip":
        return _Blocks(_Gzip(cores(threads), used))
    if kind == "zstd":
        return _Blocks(_Zstd(cores(threads), used))
    return _Plain()


def gzip_member(data: bytes, level: int) -> bytes:
    """`data` as a gzip member of its own, without name and time; `level` as ISA-L counts them."""
    member: bytes = isal_zlib.compress(data, level, _GZIP_WINDOW)
    return member


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


class _Blocks:
    """Cuts the input into equal blocks, the last one shorter and never empty: the output depends on the cuts."""

    def __init__(self, stream: Compressor) -> None:
        self._stream = stream
        self._pending = bytearray()

    def compress(self, data: bytes, /) -> bytes:
        if len(data) == BLOCK and not self._pending:
            return self._stream.compress(data)
        self._pending += data
        whole = len(self._pending) // BLOCK * BLOCK
        out = [self._stream.compress(bytes(self._pending[at : at + BLOCK])) for at in range(0, whole, BLOCK)]
        del self._pending[:whole]
        return b"".join(out)

    def flush(self) -> bytes:
        rest = self._stream.compress(bytes(self._pending)) if self._pending else b""
        return rest + self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class _Gzip:
    """A gzip member on the threads of isal's writer, which come with the first block and go with the end."""

    def __init__(self, threads: int, level: int) -> None:
        self._threads = threads
        self._level = level
        self._out = _Collected()
        self._writer: io.RawIOBase | None = None

    def compress(self, block: bytes, /) -> bytes:
        self._started(self._threads if len(block) == BLOCK else 1).write(block)
        return self._out.take()

    def flush(self) -> bytes:
        self._started(1).close()
        return self._out.take()

    def close(self) -> None:
        if self._writer is not None and not self._writer.closed:
            self._out.unwanted = True
            with suppress(BrokenPipeError):  # the writer's stop() may wait for ever, its close() drops what is left
                self._writer.close()

    def _started(self, threads: int) -> io.RawIOBase:
        if self._writer is None:
            from isal import igzip_threaded  # reason: who only reads does without what it brings along

            start = cast("Callable[..., io.BufferedWriter]", igzip_threaded.open)
            opened = start(self._out, "wb", self._level, threads=threads, block_size=BLOCK)
            self._writer = opened.detach()  # its buffer would cut the blocks again
        return self._writer


class _Collected:
    """A file that keeps what a thread writes until another one takes it."""

    def __init__(self) -> None:
        self.unwanted = False
        self._parts: deque[bytes] = deque()

    def write(self, data: bytes) -> int:
        if self.unwanted:
            raise BrokenPipeError
        self._parts.append(data)
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        return b"".join(self._parts.popleft() for _ in range(len(self._parts)))


class _Zstd:
    """A zstd frame. Even one thread is a pool: without one, zstd would not cut the input into jobs."""

    def __init__(self, threads: int, level: int) -> None:
        usual = zstandard.ZstdCompressionParameters.from_level(level)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, threads=threads, job_size=_ZSTD_JOB, write_checksum=1,
            window_log=min(usual.window_log, _ZSTD_WINDOW),
            # what is larger than the window finds nothing more, and each thread has tables of its own
            chain_log=min(usual.chain_log, _ZSTD_WINDOW + 1), hash_log=min(usual.hash_log, _ZSTD_WINDOW),
        )  # fmt: skip
        self._stream: zstandard.ZstdCompressionObj | None
        self._stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def compress(self, block: bytes, /) -> bytes:
        assert self._stream is not None
        return self._stream.compress(block)

    def flush(self) -> bytes:
        assert self._stream is not None
        rest = self._stream.flush()
        self._stream = None
        return rest

    def close(self) -> None:
        self._stream = None  # the library joins its threads when nobody holds on to it


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""

    def close(self) -> None:
        pass
