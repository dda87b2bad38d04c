"""The one form of a host, however it is written: an address as it is connected to, other letters as ASCII. Pure.

Sources: RFC 5952 (the text of IPv6), RFC 6874 (zones), RFC 3490 (ToASCII).
"""

from __future__ import annotations

import re
import unicodedata

from storage.reference import address_of

_AUTHORITY = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[0-9]+))?")


def host_form(host: str) -> str:
    """The one form of `host`, a name or an address, which of IPv6 is in brackets. Raises ValueError for a host that
    not all readers of URLs take for the same."""
    host = host.lower().rstrip(".")
    if not host.isascii():
        host = _ascii(host)
    address = address_of(host)
    if address is None and ":" in host:
        raise ValueError("a host with a colon that is no address")
    if address is None or address.version == 4:
        return str(address or host)
    # reason: only a link's own addresses are others in another zone
    zone = re.sub("^25(?=.)", "", host.partition("%")[2]) if address.is_link_local else ""
    return f"[{address}{'%' if zone else ''}{zone}]"


def authority_form(authority: str) -> str:
    """The one form of `host[:port]` as a pattern or an image's name has it; what cannot be read is left as it is."""
    authority = authority.lower()
    found = _AUTHORITY.fullmatch(authority)
    try:
        if found is None:
            return host_form(authority)  # of IPv6 without brackets
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
