"""Image names as docker reads them, made complete. Pure.

Sources: distribution/reference (grammar and "familiar name" rules), OCI distribution-spec ("Pulling manifests");
inet_aton(3), as getaddrinfo and curl read hosts (one to four numbers, decimal, octal or hexadecimal), RFC 4291 2.5.5.2.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from storage.digest import Digest
from storage.errors import InputError
from storage.interfaces.images import Reference

DEFAULT_REGISTRY = "docker.io"
LAYOUT = "oci-layout://"
"""How the name of an image in an OCI layout begins; the absolute path follows."""
LAYOUT_REGISTRY = "oci-layout:/"
"""The `registry` of providers that are OCI layouts; `repository` is the absolute path then."""
_LAYOUT_NAME = re.compile(r"(?P<path>/.*?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:.*))?")
_EXAMPLE = "an image name reads [host[:port]/]name[:tag][@sha256:…], as in debian:12"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")
_NUMBERS = (
    (16, re.compile("0x0*([0-9a-f]{1,8})")), (8, re.compile("(0[0-7]*)")), (10, re.compile("([1-9][0-9]{0,9})")),
)  # fmt: skip
"""How the numbers of an address are written in each base."""
_LOOPBACK: dict[IPv4Address | IPv6Address, IPv4Address | IPv6Address] = {
    IPv4Address(0): IPv4Address("127.0.0.1"), IPv6Address(0): IPv6Address("::1"),
}  # fmt: skip
"""Where a connection to the unspecified address goes on Linux."""


def parse_reference(text: str) -> Reference:
    """`text` as docker understands it: `docker.io` and `library/` added where they were left out, tag `latest` when
    neither tag nor digest is written. Raises InputError that quotes the part which is wrong."""
    if "://" in text:
        raise _bad(text, "it is a URL", f"write it without {text.partition('://')[0]}://")
    name, at, digest_text = text.partition("@")
    digest = _digest(text, digest_text) if at else None
    registry, path = _split_registry(name)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, f"{tag[:140]!r} is not a tag", "a tag is up to 128 letters, digits, '_', '.' and '-'")
    if not is_host(registry):
        raise _bad(text, f"{registry!r} is not a host name", _EXAMPLE)
    _check_path(text, path)
    if registry == DEFAULT_REGISTRY and "/" not in path:
        if _BARE_ID.fullmatch(path):
            raise _bad(text, "64 hexadecimal digits are an image id, not a name", "write name@sha256:<id>")
        path = f"library/{path}"
    if len(registry) + 1 + len(path) > 255:
        raise _bad(text, "the name is longer than 255 characters", _EXAMPLE)
    return Reference(registry, path, tag or ("" if digest else "latest"), digest, text)


def parse_layout(text: str) -> Reference:
    """`oci-layout:///absolute/path[:tag][@digest]`. Raises InputError."""
    found = _LAYOUT_NAME.fullmatch(text.removeprefix(LAYOUT))
    if found is None:
        raise _bad(text, "it has no absolute path", f"write {LAYOUT}/path[:tag][@sha256:…]")
    digest = _digest(text, found["digest"]) if found["digest"] else None
    return Reference(LAYOUT_REGISTRY, found["path"], found["tag"] or "", digest, text)


def check_provider(registry: str, repository: str) -> None:
    """Raises InputError when the two could not come from a reference: they may come from somebody else's log."""
    if not (is_host(registry) and is_path(repository)):
        raise InputError(f"not a repository: {f'{registry}/{repository}'[:300]!r}", hint=_EXAMPLE)


def is_host(text: str) -> bool:
    """Is `text` a `host[:port]`, as in an image name?"""
    return _HOST.fullmatch(text) is not None and _port_fits(text)


def is_path(text: str) -> bool:
    """Does `text` fit the grammar of repository names?"""
    return _PATH.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Does `text` fit the grammar of tags?"""
    return _TAG.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Is `host` (`name`, `name:port`, `[v6]:port`, `v6`) this machine? Names other than localhost are not looked up."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host
    if name.count(":") == 1:
        name = name.partition(":")[0]
    address = address_of(name)
    return name.lower() == "localhost" or (address is not None and address.is_loopback)


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The address that is connected to for `host`, without port and brackets, however it is written: `127.1`,
    `0x7f000001`, `::ffff:127.0.0.1` and `0` are 127.0.0.1. None for a name."""
    address: IPv4Address | IPv6Address | None = _six(host) if ":" in host else _four(host.lower())
    return None if address is None else _LOOPBACK.get(address, address)


def _six(host: str) -> IPv4Address | IPv6Address | None:
    try:
        found = IPv6Address(host.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found


def _four(host: str) -> IPv4Address | None:
    parts = host.split(".")
    numbers = [int(found[1], base) for part in parts for base, form in _NUMBERS if (found := form.fullmatch(part))]
    if len(parts) > 4 or len(numbers) < len(parts):
        return None
    last = numbers.pop()  # stands for all bytes that are left
    if any(number > 255 for number in numbers) or last >= 256 ** (4 - len(numbers)):
        return None
    return IPv4Address(last + sum(number << 24 - 8 * at for at, number in enumerate(numbers)))


def _digest(text: str, digest: str) -> Digest:
    try:
        return Digest(digest)
    except InputError as error:
        raise _bad(text, f"{digest[:140]!r} is not a digest", error.hint) from error


def _split_registry(name: str) -> tuple[str, str]:
    """Registry and the rest. The first component is a host when it could not be a component of a docker.io name."""
    first, slash, rest = name.partition("/")
    hostlike = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not hostlike:
        return DEFAULT_REGISTRY, name
    return (DEFAULT_REGISTRY if first == "index.docker.io" else first), rest


def _port_fits(registry: str) -> bool:
    port = re.search(r":([0-9]+)$", registry)
    return port is None or 0 < int(port[1]) < 65536


def _check_path(text: str, path: str) -> None:
    if is_path(path):
        return
    if not path:
        raise _bad(text, "the name is empty", _EXAMPLE)
    if path != path.lower() and _PATH.fullmatch(path.lower()):
        raise _bad(text, "repository names are lower case", f"did you mean {path.lower()!r}?")
    raise _bad(text, f"{path[:260]!r} is not a repository name", _EXAMPLE)


def _bad(text: str, why: str, hint: str) -> InputError:
    return InputError(f"not an image name: {text[:300]!r}: {why}", hint=hint)
