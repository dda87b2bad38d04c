"""Tars written by hand, in the dialects that layers come in, with what Python's tarfile cannot say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Dialect = Literal["pax", "gnu"]
Sparse = Literal["old", "0.0", "0.1", "1.0"]
FILE, HARD, LINK, CHAR, DISK, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
END = bytes(1024)


@dataclass(frozen=True)
class Member:
    """`mtime` in ns. `segments`: (offset, length) of the pieces of a sparse file of `size` bytes, whose bytes `data`
    are, one piece after the other; all but the last one's length in whole blocks, as GNU tar has it."""

    name: bytes
    kind: bytes = FILE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_700_000_000 * 10**9
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    segments: tuple[tuple[int, int], ...] | None = None
    size: int = 0


def write(members: Iterable[Member], dialect: Dialect = "pax", sparse: Sparse = "1.0") -> bytes:
    """A whole tar."""
    return b"".join(piece for member in members for piece in encode(member, dialect, sparse)) + END


def encode(member: Member, dialect: Dialect = "pax", sparse: Sparse = "1.0") -> Iterator[bytes]:
    """One member with what stands before it, its data and padding. The GNU dialect has whole seconds and no xattrs,
    and its sparse files are of the old form."""
    if dialect == "gnu":
        yield from _gnu(member)
        return
    records = [(b"SCHILY.xattr." + name, value) for name, value in member.xattrs.items()]
    data, name, pieces = member.data, member.name, _ended(member)
    if pieces is not None:
        flat = [number for piece in pieces for number in piece]
        if sparse == "1.0":
            lines = b"".join(b"%d\n" % number for number in (len(pieces), *flat))
            data = lines + bytes(-len(lines) % 512) + data
            records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name),
                        (b"GNU.sparse.realsize", b"%d" % member.size)]  # fmt: skip
            name = b"GNUSparseFile.1/x"
        else:
            records += [(b"GNU.sparse.size", b"%d" % member.size), (b"GNU.sparse.numblocks", b"%d" % len(pieces))]
            if sparse == "0.1":
                records.append((b"GNU.sparse.map", b",".join(b"%d" % number for number in flat)))
            else:
                keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
                records += [(key, b"%d" % number) for piece in pieces for key, number in zip(keys, piece, strict=True)]
    if len(name) > 100 or not name.isascii():
        records.append((b"path", name))
    if len(member.link) > 100 or not member.link.isascii():
        records.append((b"linkpath", member.link))
    if member.mtime < 0 or member.mtime % 10**9 or member.mtime >= 8**11 * 10**9:
        sign, (seconds, rest) = "-" if member.mtime < 0 else "", divmod(abs(member.mtime), 10**9)
        records.append((b"mtime", f"{sign}{seconds}.{rest:09}".encode()))
    for key, number, limit in ((b"uid", member.uid, 8**7), (b"gid", member.gid, 8**7), (b"size", len(data), 8**11)):
        if number >= limit:
            records.append((key, b"%d" % number))
    if records:
        body = b"".join(pax_record(key, value) for key, value in records)
        yield header(b"PaxHeaders/x", b"x", len(body))
        yield body + bytes(-len(body) % 512)
    seconds = max(member.mtime // 10**9, 0)
    yield header(
        name, member.kind, len(data), mode=member.mode, uid=member.uid % 8**7, gid=member.gid % 8**7,
        mtime=seconds % 8**11, link=member.link, device=member.device,
    )  # fmt: skip
    yield data + bytes(-len(data) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`, the length counting itself."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def header(
    name: bytes, kind: bytes, size: int, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = 0,
    link: bytes = b"", device: tuple[int, int] = (0, 0), magic: bytes = b"ustar\00000", tail: bytes = b"",
) -> bytes:  # fmt: skip
    """One block, with its checksum. `tail`: what stands from byte 345 on; names are cut at 100 bytes."""
    block = b"".join(
        (
            name[:100].ljust(100, b"\0"), _number(mode, 8), _number(uid, 8), _number(gid, 8), _number(size, 12),
            _number(mtime, 12), b" " * 8, kind, link[:100].ljust(100, b"\0"), magic, bytes(64), _number(device[0], 8),
            _number(device[1], 8), tail.ljust(167, b"\0"),
        )
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _gnu(member: Member) -> Iterator[bytes]:
    for text, kind in ((member.name, b"L"), (member.link, b"K")):
        if len(text) > 100:
            yield header(b"././@LongLink", kind, len(text) + 1, magic=b"ustar  \0")
            yield (text + b"\0").ljust(-(-(len(text) + 1) // 512) * 512, b"\0")
    pieces = _ended(member)
    kind, tail, more = member.kind, b"", []
    if pieces is not None:
        kind = b"S"
        coded = [_number(offset, 12) + _number(length, 12) for offset, length in pieces]
        first, rest = coded[:4], coded[4:]
        more = [rest[at : at + 21] for at in range(0, len(rest), 21)]
        tail = bytes(41) + b"".join(first).ljust(96, b"\0") + (b"\1" if more else b"\0") + _number(member.size, 12)
    yield header(
        member.name, kind, len(member.data), mode=member.mode, uid=member.uid, gid=member.gid,
        mtime=member.mtime // 10**9, link=member.link, device=member.device, magic=b"ustar  \0", tail=tail,
    )  # fmt: skip
    for number, extension in enumerate(more):
        going_on = b"\1" if number + 1 < len(more) else b"\0"
        yield (b"".join(extension).ljust(504, b"\0") + going_on).ljust(512, b"\0")
    yield member.data + bytes(-len(member.data) % 512)


def _ended(member: Member) -> list[tuple[int, int]] | None:
    """The pieces, and an empty one at the end of the file when that ends in a hole: GNU tar wants it."""
    if member.segments is None:
        return None
    assert sum(length for _, length in member.segments) == len(member.data)
    end = sum(member.segments[-1]) if member.segments else 0
    return [*member.segments, (member.size, 0)] if end < member.size or not end else list(member.segments)


def _number(value: int, width: int) -> bytes:
    """Octal, or base 256 when that does not fit."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0xFF if value < 0 else 0x80]) + value.to_bytes(width - 1, "big", signed=True)
