"""Tars without times later than one moment: what `rewrite-timestamp` makes of layers that came from elsewhere.

Only headers change; names, owners, attributes, sparse maps and contents stay the bytes that they were. A tar without
later times comes out as it went in. Sources: POSIX pax, "pax Header Block"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Iterator

from storage.interfaces.blobs import ByteSource
from storage.tar.fields import nanoseconds, number, pax_record, pax_records
from storage.tar.raw import RawTar
from storage.tar.reader import BLOCK

_EXTENDED, _WITH_DATA = frozenset(b"xXg"), frozenset(b"xXgLKVD")
_TIMES = frozenset({b"mtime", b"atime", b"ctime"})
_GNU = b"ustar  \0"
_GNU_TIMES = (345, 357)  # atime and ctime, where ustar has its prefix


class Clamped:
    """ByteSource over a tar, with no time in it later than `latest` seconds since the epoch. Its `read` raises
    VerificationError for what is no tar, and what the source raises; it reads the source to its end."""

    def __init__(self, tar: ByteSource, latest: int) -> None:
        self._pieces = _clamped(RawTar(tar), latest)
        self._left = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """See ByteSource."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = memoryview(piece)
        out = self._left if size < 0 else self._left[:size]
        self._left = self._left[len(out) :]
        return bytes(out)


def _clamped(tar: RawTar, latest: int) -> Iterator[bytes | memoryview]:
    for _, header in tar:
        yield tar.padding
        yield clamp_header(header, latest)
        yield from tar.data()
    yield from tar.rest()


def clamp_header(header: bytes, latest: int) -> bytes:
    """The headers of one member, the last of which may be followed by a sparse map. Raises VerificationError."""
    out: list[bytes] = []
    at = 0
    while True:
        block = _clamp_block(header[at : at + BLOCK], latest)
        at += BLOCK
        kind = block[156]
        if kind not in _WITH_DATA:
            return b"".join([*out, block, header[at:]])
        size = number(block[124:136])
        data, padding = header[at : at + size], header[at + size : at + size + -size % BLOCK]
        at += size + -size % BLOCK
        if kind in _EXTENDED and (clamped := _clamp_records(data, latest)) is not None:
            data, padding = clamped, bytes(-len(clamped) % BLOCK)
            block = _put(block, 124, b"%011o\0" % len(data))
        out += [block, data, padding]


def _clamp_block(block: bytes, latest: int) -> bytes:
    fields = [136, *(_GNU_TIMES if block[257:265] == _GNU else ())]
    for at in fields:
        field = block[at : at + 12]
        if field.strip(b"\0 ") and number(field) > latest:
            block = _put(block, at, b"%011o\0" % latest if latest < 8**11 else b"\x80" + latest.to_bytes(11, "big"))
    return block


def _put(block: bytes, at: int, field: bytes) -> bytes:
    """`block` with `field` in it, and the checksum that belongs to it."""
    changed = bytearray(block)
    changed[at : at + len(field)] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def _clamp_records(data: bytes, latest: int) -> bytes | None:
    """The records of a PAX header; None when they may stay as they are."""
    records, late = pax_records(data), False
    out: list[bytes] = []
    for key, value in records:
        if key in _TIMES and value and nanoseconds(value) > latest * 10**9:
            late, value = True, b"%d" % latest  # noqa: PLW2901
        out.append(pax_record(key, value))
    return b"".join(out) if late else None
