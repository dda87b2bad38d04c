"""Package databases, read within bounds: whoever made the image wrote them. Pure.

Sources: dpkg's status (deb-status, deb822) and distroless' status.d, apk-tools' installed database (apk-installed),
Python's core metadata (`*.dist-info/METADATA`, and older `*.egg-info`), npm's package.json, os-release(5). RPM's:
engine/attest/rpm.py.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any

from engine.record import Record
from storage.digest import parse_json

Json = dict[str, Any]
LARGE, SMALL, PAGED = 64 << 20, 1 << 20, 256 << 20
"""Bytes of a database of many packages at most, of a file about one, and of a database that is not read whole."""
PACKAGES = 100_000
"""Packages of one layer at most."""
_FIXED = {
    b"var/lib/dpkg/status": "deb", b"lib/apk/db/installed": "apk", b"usr/lib/apk/db/installed": "apk",
    b"etc/os-release": "os", b"usr/lib/os-release": "os",
}  # fmt: skip
_STATUS_D = b"var/lib/dpkg/status.d/"
_UNREAD = {
    b"var/lib/pacman/local/": "pacman's database", b"var/db/pkg/": "Portage's database",
    b"var/db/xbps/": "xbps' database", b"var/lib/pkgtools/packages/": "Slackware's database",
    b"var/lib/eopkg/package/": "eopkg's database", b"usr/lib/opkg/info/": "opkg's database",
    b"var/lib/opkg/info/": "opkg's database", b"nix/var/nix/db/": "Nix' database",
    b"var/guix/db/": "Guix' database", b"var/lib/rpmmanifest/": "a list of RPM packages without their database",
    b"var/lib/dpkg/updates/": "a journal of changes to dpkg's database",
}  # fmt: skip
"""Databases that are not read, as what they are for people: files, and directories with a slash at their end."""
for _place in (b"var/lib/rpm/", b"usr/lib/sysimage/rpm/", b"usr/share/rpm/"):
    _FIXED[_place + b"rpmdb.sqlite"] = "rpm"
    _UNREAD[_place + b"Packages"] = "RPM's database as Berkeley DB"
    _UNREAD[_place + b"Packages.db"] = "RPM's database as NDB"
    for _suffix in (b"-wal", b"-journal"):
        _UNREAD[_place + b"rpmdb.sqlite" + _suffix] = "a journal of changes to RPM's database"
_LEADING = frozenset(
    b"/".join(parts[:count])
    for parts in (known.split(b"/") for known in (*_FIXED, *_UNREAD, _STATUS_D))
    for count in range(1, len(parts) + 1)
)
_UNREAD_STARTS = tuple(_UNREAD)
_NPM = re.compile(rb"(?:.*/)?node_modules/(?:@[^/]+/)?[^/@]+/package\.json", re.DOTALL)
_PIP = re.compile(rb"(?:.*/)?[^/]+\.(?:dist-info/METADATA|egg-info(?:/PKG-INFO)?)", re.DOTALL)
_VALUE = 1000
"""Bytes of a value that are looked at: more than any that is taken has."""
_TEXT = re.compile(r"\S{1,214}")
_WORDS = re.compile(r".{1,200}")
Entry = tuple[str, str, str, str]
"""Name, version, architecture and license, as they are written; no name: no package."""


class Package(Record):
    """`kind`: deb, apk, rpm, pypi or npm (the types of package URLs); `version`: of deb and rpm with its epoch, if it
    has one; `arch` and `license` "" where nobody says."""

    kind: str
    name: str
    version: str
    arch: str = ""
    license: str = ""


def kind_of(path: bytes) -> str:
    """What the file at `path` tells of packages: deb, apk, rpm, pypi, npm, os; "" for all other files."""
    if path in _FIXED:
        return _FIXED[path]
    if path.startswith(_STATUS_D):
        name = path[len(_STATUS_D) :]
        return "deb" if b"/" not in name and not name.endswith(b".md5sums") else ""
    if _PIP.fullmatch(path):
        return "pypi"
    return "npm" if path.endswith(b"/package.json") and _NPM.fullmatch(path) else ""


def leads_to_fixed(path: bytes) -> bool:
    """Is `path` one of a database, or a directory on the way to one?"""
    return path in _LEADING


def leads_aside(path: bytes, target: bytes) -> bool:
    """Does a link at `path` to `target` put a database where none is looked for, if there is one behind it?"""
    place = posixpath.normpath(posixpath.join(b"/" + posixpath.dirname(path), target)).strip(b"/")
    for known in (*_FIXED, _STATUS_D + b"base"):
        if known == path or known.startswith(path + b"/"):
            kind = kind_of(known)
            if kind != "os" and kind_of((place + known[len(path) :]).lstrip(b"/")) != kind:
                return True
    return False


def unread(path: bytes) -> tuple[bytes, str] | None:
    """The database that the file at `path` belongs to, and what it is, if it is of no form that is read here. The path
    of one that is a directory ends with a slash."""
    if path.startswith(_UNREAD_STARTS):  # reason: it is asked of every file
        for place, what in _UNREAD.items():
            if path == place or (place.endswith(b"/") and path.startswith(place)):
                return place, what
    return None


def limit_of(kind: str) -> int:
    """Bytes of such a file at most."""
    return {"deb": LARGE, "apk": LARGE, "rpm": PAGED}.get(kind, SMALL)


def packages(kind: str, data: bytes) -> tuple[list[Package], int]:
    """The packages that a database of text tells of, and how many entries could not be read."""
    reader = {"deb": _dpkg, "apk": _apk, "pypi": _pip, "npm": _npm}[kind]
    found: list[Package] = []
    return found, take(kind, reader(data), found)


def take(kind: str, entries: Iterable[Entry], found: list[Package]) -> int:
    """Add the packages of `entries` to `found`; returns how many entries are of none."""
    bad = 0
    for name, version, arch, license_ in entries:
        if len(found) >= PACKAGES or not _is(_TEXT, name) or not _is(_TEXT, version):
            bad += 1
        else:
            more = (arch if _is(_TEXT, arch) else "", license_ if _is(_WORDS, license_) else "")
            found.append(Package(kind, name, version, *more))
    return bad


def _is(form: re.Pattern[str], text: str) -> bool:
    return text.isprintable() and form.fullmatch(text) is not None


def distribution(data: bytes) -> dict[str, str]:
    """`ID` and `VERSION_ID` of os-release(5)."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        value = value.strip().strip("\"'")
        if equals and key in ("ID", "VERSION_ID") and _is(_TEXT, value):
            found[key] = value
    return found


def _stanzas(data: bytes, wanted: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Of paragraphs of `Key: value` lines the `wanted` keys, where there are any; what continues a line is passed
    over. Only of keys of one letter the case matters: so dpkg, mail and apk read them."""
    keys = {(key if len(key) == 1 else key.lower()).encode(): key for key in wanted}
    fields: dict[str, str] = {}
    for line in io.BytesIO(data):  # reason: the list of all lines takes up to thirty times as much
        if line.isspace():
            if fields:
                yield fields
            fields = {}
            continue
        key, _, value = line.partition(b":")
        key = key if len(key) == 1 else key[:100].rstrip().lower()
        if key in keys:
            fields.setdefault(keys[key], value.strip()[:_VALUE].decode("utf-8", "replace"))
    if fields:
        yield fields


def _dpkg(data: bytes) -> Iterator[Entry]:
    for one in _stanzas(data, ("Package", "Version", "Architecture", "Status")):
        state = one.get("Status", "install ok installed").split()
        if state[-1:] not in (["not-installed"], ["config-files"]):  # in all other states there are files of it
            yield one.get("Package", ""), one.get("Version", ""), one.get("Architecture", ""), ""


def _apk(data: bytes) -> Iterator[Entry]:
    for one in _stanzas(data, ("P", "V", "A", "L")):
        yield one.get("P", ""), one.get("V", ""), one.get("A", ""), one.get("L", "")


def _pip(data: bytes) -> Iterator[Entry]:
    head = next(_stanzas(data, ("Name", "Version", "License-Expression")), {})
    yield head.get("Name", ""), head.get("Version", ""), "", head.get("License-Expression", "")


def _npm(data: bytes) -> Iterator[Entry]:
    try:
        fields = parse_json(data)
    except ValueError:
        yield "", "", "", ""
        return
    if isinstance(fields, dict) and ("name" in fields or "version" in fields):
        texts = [value if isinstance(value := fields.get(key), str) else "" for key in ("name", "version", "license")]
        yield texts[0], texts[1], "", texts[2]
