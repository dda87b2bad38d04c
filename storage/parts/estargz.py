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
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.compression import BLOCK, STARGZ_CHUNK, checked, cores, gzip_member
from storage.digest import Digest, Hasher, canonical_json, sha256
from storage.errors import VerificationError
from storage.interfaces.images import ESTARGZ
from storage.parts.toc import FOOTER_MARK, TOC_NAME
from storage.tar.pack import encode
from storage.tar.raw import RawTar
from storage.tar.reader import BLOCK as TAR_BLOCK
from storage.tar.reader import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry

UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""The annotation that says how large the tar is."""

LANDMARK = b".no.prefetch.landmark"
_OURS = frozenset({LANDMARK, b".prefetch.landmark", TOC_NAME})  # those that came with a layer give way to ours
_MOST_HOLES = 8 << 30
_LARGEST_TABLE = 256 << 20
_TYPES = {
    REGULAR: "reg", DIRECTORY: "dir", SYMLINK: "symlink", HARD_LINK: "hardlink", CHARACTER: "char",
    BLOCK_DEVICE: "block", FIFO: "fifo",
}  # fmt: skip
Json = dict[str, Any]


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
class _Told:
    """An entry of the table: `chunk` is the number of its member; `hashing`: its file is not yet known to the end."""

    told: Json
    chunk: int | None = None
    hashing: bool = False


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
        self.places: dict[int, tuple[int, str]] = {}
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
        self._chunks = 0
        self._pending: deque[_Told] = deque()
        self._table = bytearray(b'{"entries":[')

    def write(self, tar: RawTar) -> Iterator[bytes]:
        """Consume `tar`."""
        mark = Entry(LANDMARK, REGULAR, mode=0, uid=0, gid=0, size=1, mtime=0, stored=1)
        yield from self._file(mark, encode(mark), [memoryview(b"\x0f")])
        for entry, header in tar:
            if _relative(entry.name) in _OURS:
                for _ in tar.data():
                    pass
            elif entry.segments is not None:
                plain = replace(entry, segments=None, stored=entry.size)
                yield from self._file(plain, encode(plain), _filled(entry, tar.data()))
            else:
                yield from self._file(entry, header, tar.data())
        for _ in tar.rest():
            pass
        yield from self._end()

    def _file(self, entry: Entry, header: bytes, content: Iterable[memoryview]) -> Iterator[bytes]:
        yield from self._add(header)
        told = _Told(_described(entry))
        self._pending.append(told)
        if entry.type != REGULAR:
            return
        if not entry.size:
            told.told["digest"] = str(sha256(b""))
            return
        whole = Hasher() if entry.size > STARGZ_CHUNK else None  # else its one chunk has the same digest
        told.hashing = whole is not None
        at = room = 0
        for piece in content:
            if whole is not None:
                whole.update(piece)
            while piece:
                if not room:
                    room = min(STARGZ_CHUNK, entry.size - at)
                    yield from self._begin_chunk(told, at, room, last=at + room == entry.size)
                part, piece = piece[:room], piece[room:]  # noqa: PLW2901
                yield from self._add(part)
                at, room = at + len(part), room - len(part)
        if whole is not None:
            told.told["digest"] = str(whole.digest())
            told.hashing = False
        yield from self._add(bytes(-entry.size % TAR_BLOCK))

    def _begin_chunk(self, first: _Told, at: int, size: int, *, last: bool) -> Iterator[bytes]:
        told = first
        if at:
            told = _Told({"name": first.told["name"], "type": "chunk", "chunkOffset": at})
            self._pending.append(told)
        if not last:
            told.told["chunkSize"] = size
        told.chunk, self._chunks = self._chunks, self._chunks + 1
        yield from self._cut()
        self._member.number, self._member.chunk = told.chunk, size

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
        self._tell()

    def _tell(self) -> None:
        """Write entries whose places are known into the table."""
        places = self._members.places
        while self._pending:
            entry = self._pending[0]
            if entry.hashing or (entry.chunk is not None and entry.chunk not in places):
                return
            self._pending.popleft()
            if entry.chunk is not None:
                entry.told["offset"], digest = places.pop(entry.chunk)
                entry.told["chunkDigest"] = digest
                if entry.told["type"] == "reg":
                    entry.told.setdefault("digest", digest)
            self._table += (b"" if self._table.endswith(b"[") else b",") + canonical_json(entry.told)
            if len(self._table) > _LARGEST_TABLE:
                raise VerificationError(
                    "the layer has too many files for the table of contents of an eStargz", hint="use gzip or zstd"
                )

    def _end(self) -> Iterator[bytes]:
        yield from self._cut()
        yield from self._members.flush()
        self._tell()
        assert not self._pending, "all members are out"
        self._table += b'],"version":1}'
        table = bytes(self._table)
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
    if entry.size - entry.stored > _MOST_HOLES:
        what = f"a sparse file with holes of {entry.size - entry.stored} bytes is in the layer"
        raise VerificationError(what, hint="an eStargz would have to spell them out: use gzip or zstd")
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


def _described(entry: Entry) -> Json:
    """The entry of the table, without place and digests."""
    told: Json = {
        "name": _text(entry.name), "type": _TYPES[entry.type], "mode": entry.mode, "uid": entry.uid, "gid": entry.gid,
    }  # fmt: skip
    if entry.mtime and (moment := _time(entry.mtime)):
        told["modtime"] = moment
    if entry.size:
        told["size"] = entry.size
    if entry.type in {SYMLINK, HARD_LINK}:
        told["linkName"] = _text(entry.link)
    if entry.type in {CHARACTER, BLOCK_DEVICE}:
        told["devMajor"], told["devMinor"] = entry.device
    if entry.xattrs:
        told["xattrs"] = {_text(name): b64encode(value).decode() for name, value in entry.xattrs.items()}
    return told


def _text(name: bytes) -> str:
    """JSON has only Unicode: what is none is told as Go tells it, and a reader sees that it is not the name."""
    return name.decode("utf-8", "replace")


def _time(mtime: int) -> str:
    """RFC 3339, with the fraction that there is; "" (unknown) in a year that cannot be written."""
    seconds, fraction = divmod(mtime, 10**9)
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return ""
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{moment.isoformat().removesuffix('+00:00')}{digits}Z"
