"""Layers compressed while they stream: gzip by ISA-L, zstd, and not at all.

Nothing here grows with the data. The libraries release the interpreter lock. It runs on as many threads as there are
cores, and its bytes are the same for any number of them: the input is cut into blocks of one size, each compressed by
itself, with the end of the one before as its dictionary.

The first bytes of a gzip stream are a block of their own. ISA-L hashes the third position of a stream from a register
that nobody has set (`write_first_byte` in igzip_icf_body_h1_gr_bt.asm, levels 1 and 2): it holds the address of the
stream's state, and where one in some thousand processes has put that, another match is found. The code that ends a
block has no such flaw, and takes all of a block that is short enough.
Sources: RFC 1952 (gzip), RFC 8878 (zstd frames), image-spec layer.md (media type suffixes).
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import isal
import zstandard
from isal import isal_zlib

from storage.digest import sha256
from storage.errors import InputError

BLOCK = 1 << 20
"""Bytes that are compressed at once. Who hands over this many at a time spares a copy."""

_MOST_THREADS = 8
STARGZ_CHUNK = 4 << 20
"""Bytes of a file that can be read by themselves in an eStargz; what its other writers take."""
_ZSTD_JOB = 4 << 20  # bytes that one thread compresses by itself; zstd's own choice may change with its version
_ZSTD_WINDOW = 23  # 8 MiB: what every reader must take (RFC 8878, 3.1.1.1.2); levels from 20 on would use up to 128
_GZIP_WINDOW = 31  # zlib's convention: 15 bits of window, +16 for a gzip wrapper

_HASTY = (1, 2)  # ISA-L's levels whose code has the flaw
_FIRST = 4
"""Bytes of the block that begins a stream of these levels: no fewer, as the last three of a block enter no match; no
more than 16, which that code leaves to the other."""

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
    """Name, version, block size and level of a compressor, and for ISA-L what it makes of a sample on this processor:
    what a blob's bytes depend on, beside its content. Raises InputError."""
    used = checked(kind, level).level(level)
    if kind == "uncompressed":
        return "none"
    if kind == "zstd":
        return f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))} jobs of {_ZSTD_JOB >> 20} MiB level {used}"
    cut = f"blocks of {BLOCK >> 20} MiB" if kind == "gzip" else f"chunks of {STARGZ_CHUNK >> 20} MiB"
    return f"isal {isal.__version__} {os.uname().machine} {_sampled(used)} {cut} level {used}"


@cache
def _sampled(level: int) -> str:
    """Names the code that ISA-L has chosen for this processor by what comes out of it."""
    sample = b" ".join(b"%x" % (number * number % 4099) for number in range(8_000))
    return sha256(gzip_member(sample, level)).short


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
    (default: one per core); eStargz is no stream, as it must know what it compresses (storage/parts/estargz.py). Raises
    InputError for others, and for a level that there is not."""
    used = checked(kind, level).level(level)
    assert kind != "estargz", "an eStargz is written by storage/parts/estargz.py"
    if kind == "gzip":
        return _Blocks(_Gzip(cores(threads), used))
    if kind == "zstd":
        return _Blocks(_Zstd(cores(threads), used))
    return _Plain()


def gzip_member(data: bytes, level: int) -> bytes:
    """`data` as a gzip member of its own, without name and time; `level` as ISA-L counts them."""
    first, rest = _begun(data, level)
    stream = isal_zlib.compressobj(level, wbits=_GZIP_WINDOW)
    begun = stream.compress(first) + stream.flush(isal_zlib.Z_SYNC_FLUSH) if first else b""
    return begun + stream.compress(rest) + stream.flush()


def _begun(data: bytes, level: int) -> tuple[bytes, bytes]:
    """The beginning of a gzip stream, and the rest: what is not empty becomes a block of its own."""
    at = _FIRST if level in _HASTY and len(data) > _FIRST else 0
    return data[:at], data[at:]


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
        begins = self._writer is None
        writer = self._started(self._threads if len(block) == BLOCK else 1)
        for part in _begun(block, self._level) if begins else (b"", block):
            if part:
                writer.write(part)
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
        self._size = 0

    def compress(self, block: bytes, /) -> bytes:
        assert self._stream is not None
        self._size += len(block)
        return self._stream.compress(block)

    def flush(self) -> bytes:
        assert self._stream is not None
        rest = b""
        if self._size % _ZSTD_JOB == 0:
            # reason: a full job that no thread was free for is ended as the last one; else an empty one follows it
            rest = self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        rest += self._stream.flush()
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
