"""What one layer says of packages, and what it hides of the layers below. Pure but for the tree it looks into.

A scan is plain data that is kept by the layer's diff ID: the layers of an image are scanned once, wherever they come
again, and `combine` makes of their scans what the image's file system holds, by the overlay's rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.attest.databases import PACKAGES, Package, distribution, kind_of, leads_to_fixed, limit_of, packages
from engine.record import Record
from storage.digest import canonical_json, parse_json
from storage.interfaces.parts import LayerTree

Json = dict[str, Any]
VERSION = 2
_ENTRIES = 5_000_000
_BYTES = 256 << 20
"""Of all databases of a layer: one file may have a hundred thousand names."""
_PROBLEMS = 100
_NAMES = re.compile(rb"site-packages|dist-packages|node_modules|package\.json|METADATA|.*\.dist-info", re.DOTALL)
_SHALLOW = 2


class Database(Record):
    """A file that tells of packages (`kind` as of a Package), or of the distribution (`os`, with `distro`)."""

    path: str
    kind: str
    packages: tuple[Package, ...] = ()
    distro: Mapping[str, str] = {}


class Scan(Record):
    """Of one layer. `hides`: paths at which whatever lies below, and below them, cannot be seen; `clears`: directories
    of which the layers below add nothing; paths as text, undecodable bytes escaped. `problems`: why it may not be
    all."""

    databases: tuple[Database, ...] = ()
    hides: tuple[str, ...] = ()
    clears: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

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
                "problems": list(self.problems),
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
            return cls(found, tuple(fields["hides"]), tuple(fields["clears"]), tuple(fields["problems"]))
        except (ValueError, KeyError, TypeError):
            return None


def scan_layer(tree: LayerTree, read: Callable[[bytes, int], bytes | None]) -> Scan:
    """Look through `tree`; `read` gives up to so many bytes of a regular file, None for anything else. Raises
    OSError."""
    walk = _Walk(tree, read)
    walk.run()
    return Scan(tuple(walk.databases), tuple(walk.hides), tuple(walk.clears), tuple(walk.problems))


class _Walk:
    def __init__(self, tree: LayerTree, read: Callable[[bytes, int], bytes | None]) -> None:
        self._tree = tree
        self._read = read
        self._packages = 0
        self._bytes = 0
        self.databases: list[Database] = []
        self.hides: list[str] = []
        self.clears: list[str] = []
        self.problems: dict[str, None] = {}

    def run(self) -> None:
        left, seen = [b""], 0
        while left:
            directory = left.pop()
            cleared = bool(directory) and self._tree.look(directory).ends
            for name in sorted(self._tree.names(directory)):
                path = directory + b"/" + name if directory else name
                seen += 1
                if seen > _ENTRIES:
                    self._lacks(f"a layer has more than {_ENTRIES} files")
                    return
                if self._visit(path, cleared=cleared):
                    left.append(path)

    def _visit(self, path: bytes, *, cleared: bool) -> bool:
        """Is it a directory to look into?"""
        found = self._tree.look(path)
        if found.kind == "directory":
            if found.ends and not cleared:
                self.clears.append(_text(path))
            return True
        if found.kind == "whiteout":
            self.hides.append(_text(path))
        else:
            self._file(path, linked=found.kind == "symlink")
        return False

    def _file(self, path: bytes, *, linked: bool) -> None:
        kind = kind_of(path)
        # reason: what takes the place of a directory hides the databases in it; to keep every file's name for that
        # would make a scan as large as the layer's list of files, and such directories have these names
        name = path.rpartition(b"/")[2]
        if kind or path.count(b"/") < _SHALLOW or leads_to_fixed(path) or _NAMES.fullmatch(name):
            self.hides.append(_text(path))
        if linked:
            if kind in ("deb", "apk"):
                self._lacks(f"{_text(path)} is a link, which is not followed")
        elif kind and self._bytes > _BYTES:
            self._lacks(f"a layer has more than {_BYTES} bytes of package databases")
        elif kind:
            self._database(path, kind)

    def _database(self, path: bytes, kind: str) -> None:
        limit = limit_of(kind)
        data = self._read(path, limit + 1)
        self._bytes += len(data or b"")
        if data is None or len(data) > limit:
            self._lacks(f"{_text(path)} is no file, or too large")
        elif kind == "os":
            self.databases.append(Database(_text(path), kind, (), distribution(data)))
        else:
            found, bad = packages(kind, data)
            self._packages += len(found)
            if bad:
                self._lacks(f"{_text(path)}: {bad} entries cannot be read")
            if self._packages > PACKAGES:
                self._lacks(f"a layer tells of more than {PACKAGES} packages")
            elif found:
                self.databases.append(Database(_text(path), kind, tuple(found)))

    def _lacks(self, what: str) -> None:
        """Why the scan may not be all."""
        self.problems[what if len(self.problems) < _PROBLEMS else "and more of this kind"] = None


class Contents(Record):
    """What an image's file system holds: `packages`, each with the path of its database; `distro` as in a Database."""

    packages: tuple[tuple[Package, str], ...]
    distro: Mapping[str, str]
    problems: tuple[str, ...]


def combine(scans: Sequence[Scan]) -> Contents:
    """The file system of layers with these scans, bottom first."""
    seen: dict[str, Database] = {}
    for scan in scans:
        hidden, cleared = set(scan.hides), set(scan.clears)
        seen = {path: one for path, one in seen.items() if not _is_hidden(path, hidden, cleared)}
        seen |= {one.path: one for one in scan.databases}
    distro = next((seen[path].distro for path in ("etc/os-release", "usr/lib/os-release") if path in seen), {})
    found = [(package, one.path) for one in seen.values() for package in one.packages]
    problems = dict.fromkeys(problem for scan in scans for problem in scan.problems)
    if len(found) > PACKAGES:
        problems[f"the image tells of {len(found)} packages, and the first {PACKAGES} are named"] = None
    return Contents(tuple(sorted(found, key=_order)[:PACKAGES]), distro, tuple(problems))


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
