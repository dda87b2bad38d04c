"""Numbers and records as tar headers spell them. All raise VerificationError for what is spelled otherwise.

Sources: POSIX pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format"; RFC 1950.
"""

from __future__ import annotations

import re
from functools import lru_cache
from zlib import adler32

from storage.errors import VerificationError

_TIME = re.compile(rb"(-?)(\d{1,20})(?:\.(\d*))?")


def check_sum(block: bytes) -> None:
    """Check a header block of 512 bytes against the checksum in it."""
    told = number(block[148:156])
    # the sum of 256 bytes is exact in Adler-32's low half, which counts from 1 and modulo 65521
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - (adler32(block[148:156]) & 0xFFFF)
    if told != total - 1 + 256:
        _check_signed(block, told)


def _check_signed(block: bytes, told: int) -> None:
    """The checksum's other spelling, from old systems: the sum of signed bytes."""
    rest = block[:148] + block[156:]
    if told != sum(rest) + 256 - 256 * sum(byte > 127 for byte in rest):
        raise VerificationError("not a tar: a header's checksum is wrong")


def number(data: bytes) -> int:
    """Octal, or base 256 when the first bit is set (two's complement, GNU)."""
    text = data.rstrip(b"\0 ")
    if text and not text.strip(b"01234567"):  # int() alone would take "0o7", "1_0" and " +1"
        return int(text, 8)
    if data[0] & 0x80:
        value = int.from_bytes(bytes([data[0] & 0x7F]) + data[1:], "big")
        return value - (1 << 8 * len(data) - 1) if data[0] & 0x40 else value
    text = data.partition(b"\0")[0].strip()
    if not text.strip(b"01234567"):
        return int(text or b"0", 8)
    raise VerificationError(f"not a tar: {data!r} where a number belongs")


repeated = lru_cache(4096)(number)  # modes, owners and times are few in a tar, sizes and checksums many


def integer(text: bytes) -> int:
    """The decimal number of a PAX record, at most 20 characters."""
    if not text.removeprefix(b"-").isdigit() or len(text) > 20:
        raise VerificationError(f"not a number in a PAX header: {text[:40]!r}")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """The time of a PAX record, seconds with any number of decimals, as ns since the epoch, cut towards zero."""
    seconds, _, fraction = text.partition(b".")
    if len(fraction) == 9 and fraction.isdigit() and seconds.isdigit() and len(seconds) <= 20:
        return int(seconds + fraction)
    found = _TIME.fullmatch(text)
    if not found:
        raise VerificationError(f"not a time in a PAX header: {text[:40]!r}")
    fraction = (found[3] or b"").ljust(9, b"0")[:9]
    return int(found[2] + fraction) * (-1 if found[1] else 1)


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """`<length> <key>=<value>\\n`, where the length counts all of it. An empty value takes a record back."""
    records = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        told = data[at:space]
        stop = at + int(told) if space > at and told.isdigit() else 0
        equals = data.find(b"=", space, stop - 1) if stop else -1
        if not space + 1 < equals < stop <= len(data) or data[stop - 1] != 0x0A:
            raise VerificationError("a broken PAX header")
        records.append((data[space + 1 : equals], data[equals + 1 : stop - 1]))
        at = stop
    return records


def pax_record(key: bytes, value: bytes) -> bytes:
    """A record as `pax_records` reads it. The length in front counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
