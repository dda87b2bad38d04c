"""The one form of a host, however it is written: an address as the resolver reads it, other letters as ASCII. Pure.

Sources: inet_aton(3), as getaddrinfo and curl read hosts (one to four numbers, decimal, octal or hexadecimal);
RFC 4291 2.5.5.2 (addresses of IPv4 in IPv6), RFC 5952 (the text of IPv6), RFC 6874 (zones), RFC 3490 (ToASCII).
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address

_NUMBERS = (
    (16, re.compile("0x0*([0-9a-f]{1,8})")), (8, re.compile("(0[0-7]*)")), (10, re.compile("([1-9][0-9]{0,9})")),
)  # fmt: skip
"""How the numbers of an address are written in each base."""
_AUTHORITY = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[0-9]+))?")
_LOOPBACK = {IPv4Address("0.0.0.0"): IPv4Address("127.0.0.1"), IPv6Address("::"): IPv6Address("::1")}  # noqa: S104
"""Where a connection to the unspecified address goes on Linux."""


def host_form(host: str) -> str:
    """The one form of `host`, a name or an address, which of IPv6 is in brackets. Raises ValueError for a host that
    not all readers of URLs take for the same."""
    host = host.lower().rstrip(".")
    if not host.isascii():
        host = _ascii(host)
    if ":" not in host:
        four = _four(host)
        return host if four is None else str(_LOOPBACK.get(four, four))
    text, _, zone = host.partition("%")
    six = IPv6Address(text)
    if six.ipv4_mapped is not None:
        return str(_LOOPBACK.get(six.ipv4_mapped, six.ipv4_mapped))
    # reason: only a link's own addresses are others in another zone
    zone = re.sub("^25(?=.)", "", zone) if six.is_link_local else ""
    return f"[{_LOOPBACK.get(six, six)}{'%' if zone else ''}{zone}]"


def authority_form(authority: str) -> str:
    """The one form of `host[:port]` as a pattern or an image's name has it; what cannot be read is left as it is."""
    authority = authority.lower()
    found = _AUTHORITY.fullmatch(authority)
    try:
        if found is None:  # an address of IPv6 without brackets
            return host_form(str(IPv6Address(authority)))
        host = host_form(found["plain"] if found["bracketed"] is None else found["bracketed"])
    except ValueError:
        return authority
    return host if found["port"] is None else f"{host}:{int(found['port'])}"


def without_zone(authority: str) -> str:
    """A link's own address without the link."""
    return re.sub(r"%[^\]]*\]", "]", authority)


def _ascii(host: str) -> str:
    """Raises ValueError for letters that IDNA 2003 and 2008, or Unicode's versions, map to different ones."""
    made = host.encode("idna")
    # reason: of what no mapping changes any more there is one reading; `ß` is `ss` to some, and itself to others
    if made.decode("idna") != host or unicodedata.normalize("NFKC", host).casefold() != host:
        raise ValueError("a host of letters that are read in several ways")
    return made.decode()


def _four(host: str) -> IPv4Address | None:
    parts = host.split(".")
    if len(parts) > 4:
        return None
    numbers = [int(found[1], base) for part in parts for base, form in _NUMBERS if (found := form.fullmatch(part))]
    if len(numbers) < len(parts):
        return None
    last = numbers.pop()  # stands for all bytes that are left
    if any(number > 255 for number in numbers) or last >= 256 ** (4 - len(numbers)):
        return None
    return IPv4Address(last + sum(number << 24 - 8 * at for at, number in enumerate(numbers)))
