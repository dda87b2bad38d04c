"""What a layer changes, as a list that can be kept, sent and compared without the layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storage.digest import Hasher, canonical_json, parse_json
from storage.errors import VerificationError
from storage.interfaces.blobs import ByteSource
from storage.tar.reader import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
)

_KINDS = {
    REGULAR: "file", HARD_LINK: "link", SYMLINK: "symlink", CHARACTER: "char", BLOCK_DEVICE: "block",
    DIRECTORY: "dir", FIFO: "fifo",
}  # fmt: skip
_MOST = (1 << 63) - 1
"""What a list can say of a size or a time; a tar can say more, of files that no disk can have."""


@dataclass(frozen=True, slots=True)
class FileFact:
    """One entry of a layer's tar. `path` as in the tar, odd bytes escaped; `mode` the 12 permission bits; `mtime` ns
    since the epoch, within 64 bits; `content`: digest of a file, target of a link, numbers of a device; `xattrs`
    hexadecimal."""

    path: str
    kind: str
    mode: int
    owner: str
    size: int
    mtime: int
    content: str
    xattrs: tuple[tuple[str, str], ...] = ()

    def difference(self, other: FileFact, *, times: bool) -> tuple[str, ...]:
        """In what they differ: some of kind, content, mode, owner, xattrs and time."""
        names = ("kind", "content", "mode", "owner", "xattrs")
        found = [name for name in names if getattr(self, name) != getattr(other, name)]
        return tuple(found) or (("time",) if times and self.mtime != other.mtime else ())


@dataclass(frozen=True, slots=True)
class FileChange:
    """`how` the file at `path` differs: `only before`, `only now`, or what FileFact.difference says."""

    path: str
    how: tuple[str, ...]


def list_tar(source: ByteSource) -> Iterator[FileFact]:
    """The entries of an uncompressed tar. Raises VerificationError, and what `source` raises."""
    reader = TarReader(source)
    for entry in reader:
        content = _content(entry)
        if entry.type == REGULAR:
            hasher = Hasher()
            for piece in reader.data():
                hasher.update(piece)
            content = str(hasher.digest())
        xattrs = tuple(sorted((_shown(key), value.hex()) for key, value in entry.xattrs.items()))
        yield FileFact(
            _shown(entry.name), _KINDS[entry.type], entry.mode, f"{entry.uid}:{entry.gid}",
            min(entry.size, _MOST), max(-_MOST, min(entry.mtime, _MOST)), content, xattrs,
        )  # fmt: skip


def _content(entry: Entry) -> str:
    if entry.type in {CHARACTER, BLOCK_DEVICE}:
        return f"{entry.device[0]}:{entry.device[1]}"
    return _shown(entry.link)


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def dump(facts: Iterable[FileFact]) -> bytes:
    """One JSON array a line."""
    rows = ([f.path, f.kind, f.mode, f.owner, f.size, f.mtime, f.content, list(f.xattrs)] for f in facts)
    return b"".join(canonical_json(row) + b"\n" for row in rows)


def load(data: bytes) -> list[FileFact]:
    """The inverse of `dump`. Raises VerificationError."""
    try:
        return [_fact(*parse_json(line)) for line in data.splitlines()]
    except (ValueError, TypeError) as error:
        raise VerificationError(f"a damaged list of files: {error}") from error


def _fact(path: str, kind: str, mode: int, owner: str, size: int, mtime: int, content: str, xattrs: Any) -> FileFact:
    numbers = (mode, size, mtime)
    if any(type(number) is not int for number in numbers) or any(type(t) is not str for t in (path, kind, content)):
        raise TypeError("a field has the wrong type")
    return FileFact(path, kind, mode, str(owner), size, mtime, content, tuple((str(k), str(v)) for k, v in xattrs))


def compare(before: Iterable[FileFact], now: Iterable[FileFact], *, times: bool) -> list[FileChange]:
    """Files that differ, in the order of their paths. `times`: a file whose time alone differs counts too."""
    old: Mapping[str, FileFact] = {fact.path: fact for fact in before}
    new: Mapping[str, FileFact] = {fact.path: fact for fact in now}
    changes = []
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            changes.append(FileChange(path, ("only before",)))
        elif path not in old:
            changes.append(FileChange(path, ("only now",)))
        elif how := old[path].difference(new[path], times=times):
            changes.append(FileChange(path, how))
    return changes
