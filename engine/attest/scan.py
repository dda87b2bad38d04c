"""What one layer says of packages, and what it hides of the layers below. Pure but for the tree it looks into.

A scan is plain data that is kept by the layer's diff ID: the layers of an image are scanned once, wherever they come
again, and `combine` makes of their scans what the image's file system holds, by the overlay's rules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, BinaryIO
from urllib.parse import quote

from engine.attest.databases import (
    PACKAGES,
    Package,
    distribution,
    kind_of,
    leads_aside,
    leads_to_fixed,
    limit_of,
    packages,
    take,
    unread,
)
from engine.record import Record
from storage.digest import canonical_json, parse_json
from storage.interfaces.parts import LayerTree, Seen

Json = dict[str, Any]
VERSION = 3
_ENTRIES = 5_000_000
_BYTES = 256 << 20
"""Of all databases of a layer: one file may have a hundred thousand names."""
_NAMED = 64 << 20
"""Bytes of paths that a scan of a layer holds at most: those of an image would be its whole list of files."""
_WEIGHT = 45 << 20
"""Bytes of an SBOM at most, about: signed, it stays below what engine/attest/verify.py takes."""
_PROBLEMS = 100
_TOLD = 300
"""Characters of a problem: there are paths in it."""
_NAMES = re.compile(
    rb"site-packages|dist-packages|node_modules|package\.json|METADATA|PKG-INFO|.*\.(?:dist|egg)-info", re.DOTALL
)
_SHALLOW = 2
_MORE = ("", "and more of this kind")
Opener = Callable[[bytes], BinaryIO | None]
"""Opens the regular file at a path for reading; None for anything else. Raises OSError."""


class Database(Record):
    """A file that tells of packages (`kind` as of a Package), or of the distribution (`os`, with `distro`)."""

    path: str
    kind: str
    packages: tuple[Package, ...] = ()
    distro: Mapping[str, str] = {}


class Scan(Record):
    """Of one layer. `hides`: paths at which whatever lies below, and below them, cannot be seen; `clears`: directories
    of which the layers below add nothing; paths as text, undecodable bytes escaped. `problems`: why it may not be
    all, each with the path of the database that it is about, "" for the whole layer."""

    databases: tuple[Database, ...] = ()
    hides: tuple[str, ...] = ()
    clears: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """As it is stored."""
        found = [
            {
                "path": one.path, "kind": one.kind, "distro": dict(one.distro),
                "packages": [[item.name, item.version, item.arch, item.license] for item in one.packages],
            }
            for one in self.databases
        ]  # fmt: skip
        return canonical_json(
            {
                "version": VERSION, "databases": found, "hides": list(self.hides), "clears": list(self.clears),
                "problems": [list(one) for one in self.problems],
            }
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Scan | None:
        """The inverse of `encode`; None for a scan of another version, or for anything else."""
        try:
            fields = parse_json(data)
            if fields["version"] != VERSION:
                return None
            found = tuple(
                Database(
                    one["path"], one["kind"], tuple(Package(one["kind"], *item) for item in one["packages"]),
                    one["distro"],
                )
                for one in fields["databases"]
            )  # fmt: skip
            problems = tuple((path, why) for path, why in fields["problems"])
            return cls(found, tuple(fields["hides"]), tuple(fields["clears"]), problems)
        except (ValueError, KeyError, TypeError):
            return None


def scan_layer(tree: LayerTree, open_: Opener) -> Scan:
    """Look through `tree`, whose files `open_` opens. Raises OSError."""
    walk = _Walk(tree, open_)
    walk.run()
    return Scan(tuple(walk.databases), tuple(walk.hides), tuple(walk.clears), tuple(walk.problems))


class _Walk:
    def __init__(self, tree: LayerTree, open_: Opener) -> None:
        self._tree = tree
        self._open = open_
        self._packages = 0
        self._bytes = 0
        self._named = 0
        self.databases: list[Database] = []
        self.hides: list[str] = []
        self.clears: list[str] = []
        self.problems: dict[tuple[str, str], None] = {}

    def run(self) -> None:
        left, seen = [b""], 0
        while left:
            directory = left.pop()
            cleared = bool(directory) and self._tree.look(directory).ends
            for name in sorted(self._tree.names(directory)):
                path = directory + b"/" + name if directory else name
                seen += 1
                if seen > _ENTRIES:
                    self._lacks("", f"a layer has more than {_ENTRIES} files")
                    return
                if self._named > _NAMED:
                    self._lacks("", f"a layer has more than {_NAMED} bytes of names that matter for package databases")
                    return
                if self._visit(path, cleared=cleared):
                    left.append(path)

    def _visit(self, path: bytes, *, cleared: bool) -> bool:
        """Is it a directory to look into?"""
        found = self._tree.look(path)
        if found.kind == "directory":
            if found.ends and not cleared:
                self._keep(self.clears, path)
            return True
        if found.kind == "whiteout":
            self._keep(self.hides, path)
        else:
            self._file(path, found)
        return False

    def _file(self, path: bytes, seen: Seen) -> None:
        kind = kind_of(path)
        # reason: what takes the place of a directory hides the databases in it; to keep every file's name for that
        # would make a scan as large as the layer's list of files, and such directories have these names
        name = path.rpartition(b"/")[2]
        if kind or path.count(b"/") < _SHALLOW or leads_to_fixed(path) or _NAMES.fullmatch(name):
            self._keep(self.hides, path)
        if seen.kind == "symlink":
            if leads_to_fixed(path) and leads_aside(path, seen.target):
                self._lacks(_text(path), f"{_text(path)} is a link, which is not followed")
        elif kind and self._bytes > _BYTES:
            self._lacks("", f"a layer has more than {_BYTES} bytes of package databases")
        elif kind:
            self._database(path, kind)
        elif (found := unread(path)) is not None:
            self._unread(path, _text(found[0]), found[1])

    def _unread(self, path: bytes, database: str, what: str) -> None:
        problem = database, f"{database}: {what} is not read"
        if problem in self.problems:
            return
        file = self._open(path)
        if file is not None:
            with file:
                if file.read(1):
                    self._lacks(*problem)

    def _database(self, path: bytes, kind: str) -> None:
        limit, where = limit_of(kind), _text(path)
        file = self._open(path)
        if file is None:
            self._lacks(where, f"{where} is no file")
            return
        with file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            self._bytes += min(size, limit)
            if size > limit:
                self._lacks(where, f"{where} is larger than {limit} bytes")
            elif kind == "os":
                self.databases.append(Database(where, kind, (), distribution(file.read(limit))))
            else:
                self._packages_of(file, kind, where)

    def _packages_of(self, file: BinaryIO, kind: str, where: str) -> None:
        found: list[Package] = []
        try:
            if kind == "rpm":
                # reason: few images have one, and most builds look into none
                from engine.attest.rpm import rpm_packages

                bad = take(kind, rpm_packages(file), found)
            else:
                found, bad = packages(kind, file.read(limit_of(kind)))
        except ValueError as error:
            self._lacks(where, f"{where} is {error}")
        else:
            if bad:
                self._lacks(where, f"{where}: {bad} entries cannot be read")
        self._packages += len(found)
        if self._packages > PACKAGES:
            self._lacks("", f"a layer tells of more than {PACKAGES} packages")
        elif found:
            self.databases.append(Database(where, kind, tuple(found)))

    def _keep(self, paths: list[str], path: bytes) -> None:
        paths.append(_text(path))
        self._named += len(path)

    def _lacks(self, path: str, why: str) -> None:
        """Why the scan may not be all, as the database at `path` is concerned."""
        self.problems[(path, why[:_TOLD]) if len(self.problems) < _PROBLEMS else _MORE] = None


class Contents(Record):
    """What an image's file system holds: `packages`, each with the path of its database; `distro` as in a Database."""

    packages: tuple[tuple[Package, str], ...]
    distro: Mapping[str, str]
    problems: tuple[str, ...]


def combine(scans: Sequence[Scan]) -> Contents:
    """The file system of layers with these scans, bottom first."""
    seen: dict[str, Database] = {}
    lacking: dict[tuple[str, str], None] = {}
    for scan in scans:
        hidden, cleared = set(scan.hides), set(scan.clears)
        seen = {path: one for path, one in seen.items() if not _is_hidden(path, hidden, cleared)}
        seen |= {one.path: one for one in scan.databases}
        lacking = {one: None for one in lacking if not _is_hidden(one[0], hidden, cleared)}
        lacking |= dict.fromkeys(scan.problems)
    distro = next((seen[path].distro for path in ("etc/os-release", "usr/lib/os-release") if path in seen), {})
    found = [(package, one.path) for one in seen.values() for package in one.packages]
    problems = list(dict.fromkeys(why for _, why in lacking))
    problems[_PROBLEMS:] = [_MORE[1]] if len(problems) > _PROBLEMS else []
    found.sort(key=_order)
    weights = accumulate(_weight(package, path, distro) for package, path in found)
    named = min(PACKAGES, sum(weight <= _WEIGHT for weight in weights))
    if len(found) > named:
        problems.append(f"the image tells of {len(found)} packages, and the first {named} are named")
    return Contents(tuple(found[:named]), distro, tuple(problems))


def _weight(package: Package, path: str, distro: Mapping[str, str]) -> int:
    """Bytes of a package in an SBOM, at most: its package URL and path stand there four times, the rest once."""
    of_system = 2 if package.kind in ("deb", "apk", "rpm") else 0  # so often the URL names the distribution
    url = sum(len(quote(text, safe="")) for text in (package.name, package.version, package.arch))
    url += of_system * sum(len(quote(text, safe="")) for text in distro.values())
    rest = len(canonical_json([package.name, package.version, package.license]))
    return 350 + 4 * url + 4 * len(canonical_json(path)) + rest


def _is_hidden(path: str, hidden: set[str], cleared: set[str]) -> bool:
    if path in hidden:
        return True
    while path:
        path = path.rpartition("/")[0]
        if path in hidden or path in cleared:
            return True
    return False


def _order(item: tuple[Package, str]) -> tuple[str, str, str, str, str]:
    package, path = item
    return package.kind, package.name, package.version, package.arch, path


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
