"""The digest by which BuildKit knows what a COPY takes from the local context.

Sources: moby/buildkit cache/contenthash (filehash.go, tarsum.go, checksum.go), solver/llbsolver/ops (dedupePaths),
solver/llbsolver/result.go. A file is hashed behind a header of its metadata (docker's tarsum v1: no name, no time), a
directory is its own header, then name and digest of each thing in it. Files of a context have no owner but root, and
no extended attributes: those are not copied here.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.buildkit.steps import source_paths
from engine.errors import DiskError
from engine.frontend.glob import compile_glob, has_wildcard
from engine.frontend.linear import Matcher
from engine.graph import Copy
from engine.ops.origin import Origin, content
from engine.ops.selection import Entry, Match, Selection
from storage.digest import sha256

_TYPES = {"file": "0", "dir": "5", "symlink": "2"}


class _UnknownError(Exception):
    """BuildKit's digest may be another one, or may not tell apart what we do."""


def content_digest(op: Copy, selection: Selection, directory: Path) -> str | None:
    """The digest of what `op` takes from the context at `directory`, as `selection` found it; None where BuildKit's
    cannot be told. Blocking: reads every file. Raises InputError (a file is not what it was), DiskError."""
    try:
        with Origin(directory) as origin:
            found = _Hasher(origin, selection).sources(op)
    except _UnknownError:
        return None
    except OSError as error:
        raise DiskError.of(error, "reading the files to copy") from error
    return str(sha256(b"\0".join(digest.encode() for digest in found)))


class _Hasher:
    def __init__(self, origin: Origin, selection: Selection) -> None:
        self._origin = origin
        self._selection = selection

    def sources(self, op: Copy) -> list[str]:
        """One digest for each source, in the order of their paths; what lies in another one is not counted again."""
        written = source_paths(op)
        found: list[tuple[str, str]] = []
        above = tuple(f"{path}/" for path in written if not has_wildcard(path))
        for path, matches in zip(written, _by_source(written, self._selection.matches), strict=True):
            if has_wildcard(path):
                found.append((path, self._pattern(path, matches)))
            elif not path.startswith(above):
                found.append((path, self._match(matches[0])))
        plain = dict.fromkeys(item for item in found if not has_wildcard(item[0]))
        patterns = [item for item in found if has_wildcard(item[0])]
        return [digest for _, digest in sorted([*plain, *patterns])]

    def _pattern(self, path: str, matches: Sequence[Match]) -> str:
        """Of what a pattern led to. Where it goes through links, or leads to nothing, versions of BuildKit differ, and
        some take what is not the same for the same."""
        for match in matches:
            entry = self._selection.entries[match.start]
            if entry.path != entry.source or entry.type == "dir":
                raise _UnknownError
        if not matches:
            raise _UnknownError
        digests = [(posixpath.basename(match.path), self._match(match)) for match in sorted(matches, key=_in_order)]
        if len(digests) == 1 and digests[0][0] == posixpath.basename(path):
            return digests[0][1]
        return str(sha256(b"\0".join(os.fsencode(name) + digest.encode() for name, digest in digests)))

    def _match(self, match: Match) -> str:
        """Of one thing and all that is in it, the innermost first."""
        top, *below = self._selection.entries[match.start : match.end]
        if top.type != "dir":
            return self._file(top)
        inside: dict[str, list[tuple[bytes, str]]] = {}
        for entry in reversed(below):
            path = match.relative(entry)
            digest = _directory(entry, inside.pop(path, [])) if entry.type == "dir" else self._file(entry)
            inside.setdefault(posixpath.dirname(path), []).append((os.fsencode(posixpath.basename(path)), digest))
        return _directory(top, inside.pop("", []))

    def _file(self, entry: Entry) -> str:
        if entry.type not in _TYPES:
            raise _UnknownError
        hashed = hashlib.sha256(_header(entry))
        if entry.type == "file":
            fd, info = self._origin.open(entry)
            try:
                for data in content(fd, info.st_size, entry):
                    hashed.update(data)
            finally:
                os.close(fd)
        return f"sha256:{hashed.hexdigest()}"


def _directory(entry: Entry, inside: list[tuple[bytes, str]]) -> str:
    header = sha256(b"" if entry.source == "" else _header(entry))  # the root of a context has none
    parts = [f"\0{header}".encode(), *(b"\0" + name + digest.encode() for name, digest in sorted(inside))]
    return str(sha256(b"".join(parts)))


def _by_source(written: Sequence[str], matches: Sequence[Match]) -> Iterator[list[Match]]:
    """The matches of each source. Those of a pattern come sorted, so where they stop rising, or stop matching, the next
    source's begin: had one of these matched, it would have been among them."""
    left = list(matches)
    for path in written:
        if not has_wildcard(path):
            yield [left.pop(0)]
            continue
        parts = [compile_glob(part) for part in path.lstrip("/").split("/")]
        own: list[Match] = []
        while left and (not own or own[-1].path < left[0].path) and _matches(parts, left[0].path):
            own.append(left.pop(0))
        yield own


def _matches(parts: Sequence[Matcher], path: str) -> bool:
    names = path.split("/")
    return len(names) == len(parts) and all(part.fullmatch(name) for part, name in zip(parts, names, strict=True))


def _in_order(match: Match) -> bytes:
    """As BuildKit's tree keeps paths: what is in a directory comes before what begins with its name."""
    return os.fsencode(match.path).replace(b"/", b"\0")


def _header(entry: Entry) -> bytes:
    mode = 0o777 if entry.type == "symlink" else entry.mode
    size = entry.size if entry.type == "file" else 0
    values = {
        "name": "", "mode": mode, "uid": 0, "gid": 0, "size": size, "typeflag": _TYPES[entry.type],
        "linkname": entry.target, "uname": "", "gname": "", "devmajor": 0, "devminor": 0,
    }  # fmt: skip
    return b"".join(name.encode() + os.fsencode(str(value)) for name, value in values.items())
