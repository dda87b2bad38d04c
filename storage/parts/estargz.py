"""Layers as eStargz: gzip layers to all who know nothing of it, whose files can be read one by one.

Each file's content, in chunks, is a gzip member of its own; the tar ends with a table of contents, the blob with a
footer that says where that begins. The landmark and the table are files of the tar: its diff ID is another one than
that of the tar it is made of. Members are compressed on all cores, and are the same for any number of them. Memory has
room for a few chunks, and the table.
Source: stargz-snapshotter, docs/estargz.md.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from storage.compression import BLOCK, STARGZ_CHUNK, checked, cores, gzip_member
from storage.digest import Digest, Hasher, sha256
from storage.errors import VerificationError
from storage.interfaces.images import ESTARGZ
from storage.parts.table import Places, TableWriter
from storage.parts.toc import FOOTER_MARK, TOC_NAME
from storage.tar.pack import encode
from storage.tar.raw import RawTar
from storage.tar.reader import BLOCK as TAR_BLOCK
from storage.tar.reader import REGULAR, Entry

UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""The annotation that says how large the tar is."""

LANDMARK = b".no.prefetch.landmark"
_OURS = frozenset({LANDMARK, b".prefetch.landmark", TOC_NAME})  # those that came with a layer give way to ours
_MOST_HOLES = 8 << 30  # bytes, of all files of a layer


class Estargz:
    """A tar on its way into an eStargz, written from one thread. `write` and `finish` raise VerificationError for what
    is no tar. `diff_id` and `annotations` are those of the result, once it is finished."""

    def __init__(self, level: int | None = None, threads: int | None = None) -> None:
        self._level = checked("estargz", level).level(level)
        self._threads = cores(threads)
        self._input: queue.Queue[bytes | None] = queue.Queue(2)
        self._done: deque[bytes] = deque()
        self._failure: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None
        self._given_up = False
        self.diff_id = Digest("sha256:" + "0" * 64)
        self.annotations: Mapping[str, str] = {}

    def write(self, data: bytes) -> bytes:
        """Take the next bytes of the tar; returns those of the blob so far. Waits while there is enough to do."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="estargz")
            self._thread.start()
        self._put(data)
        return self._take()

    def finish(self) -> bytes:
        """The rest of the blob."""
        out = [self.write(b"")]  # starts it, if nothing was written
        self._put(None)
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.02)
            out.append(self._take())
        out.append(self._take())
        return b"".join(out)

    def close(self) -> None:
        """Let go of the threads; what was not finished is lost. May be called at any time, also twice."""
        self._given_up = True
        while self._thread is not None and self._thread.is_alive():
            self._put(None)
            self._thread.join(0.02)

    def read(self, size: int = -1, /) -> bytes:  # noqa: ARG002  # whoever reads takes blocks as they come
        """ByteSource over what was written, for the thread that reads it."""
        while not self._ended:
            data = self._input.get()
            if data is None:
                self._ended = True
            elif data:
                return data
        return b""

    def _put(self, data: bytes | None) -> None:
        while self._thread is not None and self._thread.is_alive():
            try:
                self._input.put(data, timeout=0.1)
            except queue.Full:
                continue
            return

    def _take(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        return b"".join(self._done.popleft() for _ in range(len(self._done)))

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="estargz") as pool:
                blob = _Blob(_Members(pool, self._threads, self._level))
                for piece in blob.write(RawTar(self)):
                    if self._given_up:
                        return
                    self._done.append(piece)
            self.diff_id, self.annotations = blob.tar.digest(), blob.annotations
        except BaseException as error:  # noqa: BLE001  # raised where the tar comes from
            self._failure = error


@dataclass(slots=True)
class _Member:
    """What becomes one gzip member: its first `chunk` bytes are a chunk of a file, with `digest` when it is known."""

    data: bytearray = field(default_factory=bytearray)
    chunk: int = 0
    number: int = -1


class _Members:
    """Gzip members being compressed, several at once, in batches that are worth a thread's while."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, level: int) -> None:
        self._pool = pool
        self._most = threads + 1
        self._level = level
        self._batch: list[_Member] = []
        self._batched = 0
        self._running: deque[Future[list[tuple[int, bytes, str]]]] = deque()
        self.places: Places = {}
        """Where in the blob each member begins that has a chunk, and the digest of that, until somebody takes it."""
        self.written = 0
        """Bytes of all members that are out."""

    def add(self, member: _Member) -> Iterator[bytes]:
        """One more; gives what is ready."""
        self._batch.append(member)
        self._batched += len(member.data)
        if self._batched >= BLOCK:
            self._submit()
        while len(self._running) > self._most:
            yield self._next()

    def flush(self) -> Iterator[bytes]:
        """All that is left."""
        self._submit()
        while self._running:
            yield self._next()

    def _submit(self) -> None:
        if self._batch:
            self._running.append(self._pool.submit(_compress, self._batch, self._level))
            self._batch, self._batched = [], 0

    def _next(self) -> bytes:
        out = []
        for number, packed, digest in self._running.popleft().result():
            if number >= 0:
                self.places[number] = self.written, digest
            self.written += len(packed)
            out.append(packed)
        return b"".join(out)


def _compress(batch: list[_Member], level: int) -> list[tuple[int, bytes, str]]:
    out = []
    for member in batch:
        data = bytes(member.data)
        digest = str(sha256(data[: member.chunk])) if member.number >= 0 else ""
        out.append((member.number, gzip_member(data, level), digest))
    return out


class _Blob:
    """The blob, piece by piece; `tar` hashes what it expands to."""

    def __init__(self, members: _Members) -> None:
        self.tar = Hasher()
        self.annotations: dict[str, str] = {}
        self._members = members
        self._member = _Member()
        self._table = TableWriter()
        self._holes = 0

    def write(self, tar: RawTar) -> Iterator[bytes]:
        """Consume `tar`."""
        mark = Entry(LANDMARK, REGULAR, mode=0, uid=0, gid=0, size=1, mtime=0, stored=1)
        yield from self._file(mark, encode(mark), [memoryview(b"\x0f")])
        for entry, header in tar:
            if _relative(entry.name) in _OURS:
                for _ in tar.data():
                    pass
            elif entry.segments is not None:
                self._holes += entry.size - entry.stored
                if self._holes > _MOST_HOLES:
                    what = f"sparse files with holes of {self._holes} bytes and more are in the layer"
                    raise VerificationError(what, hint="an eStargz would have to spell them out: use gzip or zstd")
                plain = replace(entry, segments=None, stored=entry.size)
                yield from self._file(plain, encode(plain), _filled(entry, tar.data()))
            else:
                yield from self._file(entry, header, tar.data())
        for _ in tar.rest():
            pass
        yield from self._end()

    def _file(self, entry: Entry, header: bytes, content: Iterable[memoryview]) -> Iterator[bytes]:
        yield from self._add(header)
        whole = Hasher() if entry.size > STARGZ_CHUNK else None  # else its one chunk has the same digest
        told = self._table.add(entry, hashing=whole is not None)
        if entry.type != REGULAR:
            return
        at = room = 0
        for piece in content:
            if whole is not None:
                whole.update(piece)
            while piece:
                if not room:
                    room = min(STARGZ_CHUNK, entry.size - at)
                    number = self._table.chunk(told, at, room, last=at + room == entry.size)
                    yield from self._cut()
                    self._member.number, self._member.chunk = number, room
                part, piece = piece[:room], piece[room:]  # noqa: PLW2901
                yield from self._add(part)
                at, room = at + len(part), room - len(part)
        if whole is not None:
            told.hashed(whole.digest())
        yield from self._add(bytes(-entry.size % TAR_BLOCK))

    def _add(self, data: bytes | memoryview) -> Iterator[bytes]:
        """More of the tar. What follows a chunk is in its member, but not without end."""
        self.tar.update(data)
        self._member.data += data
        if len(self._member.data) - self._member.chunk >= BLOCK:
            yield from self._cut()

    def _cut(self) -> Iterator[bytes]:
        """End the member."""
        member, self._member = self._member, _Member()
        if member.data:
            yield from self._members.add(member)
        self._table.tell(self._members.places)

    def _end(self) -> Iterator[bytes]:
        yield from self._cut()
        yield from self._members.flush()
        table = self._table.finish(self._members.places)
        start = self._members.written
        entry = Entry(TOC_NAME, REGULAR, mode=0o444, uid=0, gid=0, size=len(table), mtime=0, stored=len(table))
        end = encode(entry) + table + bytes(-len(table) % TAR_BLOCK + 2 * TAR_BLOCK)
        self.tar.update(end)
        self._member.data += end
        yield from self._members.add(self._member)
        yield from self._members.flush()
        yield _footer(start)
        self.annotations = {ESTARGZ: str(sha256(table)), UNCOMPRESSED_SIZE: str(self.tar.size)}


def _footer(start: int) -> bytes:
    """An empty gzip member that says where the table of contents begins."""
    extra = FOOTER_MARK + b"%016xSTARGZ" % start
    return b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra + b"\x01\0\0\xff\xff" + bytes(8)


def _relative(name: bytes) -> bytes:
    return b"/".join(part for part in name.split(b"/") if part not in {b"", b"."})


def _filled(entry: Entry, stored: Iterator[memoryview]) -> Iterator[memoryview]:
    """The content of a sparse file, with zeros where it has holes: a table of contents knows of no holes."""
    assert entry.segments is not None
    at, piece = 0, memoryview(b"")
    for start, length in [*entry.segments, (entry.size, 0)]:
        while at < start:
            zeros = memoryview(bytes(min(start - at, BLOCK)))
            at += len(zeros)
            yield zeros
        while at < start + length:
            piece = piece or next(stored)
            part = piece[: start + length - at]
            piece = piece[len(part) :]
            at += len(part)
            yield part
