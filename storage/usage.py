"""What lies in a root and how large it is, asked of the disk; and the removal of one item.

Every byte of a root belongs to one item, named `<kind>/<name>`, or to its directories: the sum is what
`du --apparent-size` says of it. Only `layer`, `snapshot`, `blob`, `partial` and `cachemount` can be removed here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from storage.digest import Digest
from storage.durable import fsync_directory
from storage.errors import DiskError, InputError
from storage.layers.erofs.header import SUFFIX
from storage.regular import read_regular
from storage.scratch import Scratch, remove_tree

REMOVABLE = ("layer", "snapshot", "blob", "partial", "cachemount")
_DATABASES = {"log.db": "log", "views.db": "views", "tree.db": "views"}
_PLAIN = ("locks", "tmp", "run")
_DOCUMENT = 1 << 30
"""Bytes of a document that is looked into at most."""
_LONGEST = 3000
"""Bytes of a path that the kernel takes for certain (PATH_MAX is 4096): longer ones are opened in pieces."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}")
_MOUNT = re.compile(r"[0-9a-f]{64}/[0-9]+")
_MENTION = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HEX = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Measured:
    """`items`: `<kind>/<name>` → bytes of its files and links, each inode once; `directories`: bytes that the
    directories themselves have, the root's included."""

    items: Mapping[str, int]
    directories: int

    @property
    def files(self) -> int:
        """Bytes without directories: `du -s --apparent-size -B1` of coreutils 9.2 and later."""
        return sum(self.items.values())

    @property
    def total(self) -> int:
        """Bytes with directories: `du -s --apparent-size -B1` of coreutils before 9.2."""
        return self.files + self.directories


def measure(root: Path) -> Measured:
    """Look at everything below `root`; changes nothing. What vanishes meanwhile does not count. Raises DiskError."""
    items: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    directories = 0
    try:
        for name, status in _walk(os.fsencode(root)):
            if stat.S_ISDIR(status.st_mode):
                directories += status.st_size
                key = _key(name.split("/", 4))
                if key and key.partition("/")[0] in REMOVABLE:
                    items.setdefault(key, 0)  # an empty one is there too
                continue
            if status.st_nlink > 1:
                inode = (status.st_dev, status.st_ino)
                if inode in seen:
                    continue
                seen.add(inode)
            key = _key(name.split("/", 4)) or f"other/{name.partition('/')[0]}"
            items[key] = items.get(key, 0) + status.st_size
    except OSError as error:
        raise DiskError.of(error, "measuring the root") from error
    return Measured(dict(sorted(items.items())), directories)


def _walk(root: bytes) -> Iterator[tuple[str, os.stat_result]]:
    """Everything from `root` ("") down, by its path below it. Trees may be deeper than paths may be long."""
    yield "", os.lstat(root)
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        try:
            fd = _open(root, below)
        except FileNotFoundError:
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    path = below + b"/" + os.fsencode(entry.name) if below else os.fsencode(entry.name)
                    yield os.fsdecode(path), status
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(path)
        finally:
            os.close(fd)


def _open(root: bytes, below: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(root, flags & ~os.O_NOFOLLOW)
    rest = below
    while rest:
        if len(rest) > _LONGEST:
            at = rest.rindex(b"/", 0, _LONGEST)
            piece, rest = rest[:at], rest[at + 1 :]
        else:
            piece, rest = rest, b""
        try:
            inner = os.open(piece, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _key(parts: list[str]) -> str:
    """The item that a path below the root belongs to; "" when it is none with a name."""
    top, inner = parts[0], parts[1] if len(parts) > 1 else ""
    for name, kind in _DATABASES.items():
        if top == name or top.startswith((f"{name}-", f"{name}.")):
            return f"{kind}/"
    if top in _PLAIN:
        return f"{top}/{inner}" if top == "tmp" and inner else f"{top}/"
    if not inner:
        return ""
    match top, parts[2:]:
        case "layers", _ if digest := _digest(inner.removesuffix(SUFFIX)):
            found = f"layer/{digest}"
        case "snapshots", _ if _NAME.fullmatch(inner.removesuffix(SUFFIX)):
            found = f"snapshot/{inner.removesuffix(SUFFIX)}"
        case "blobs", [name, *_] if _digest(name).startswith(f"{inner}:"):
            found = f"blob/{inner}:{name}"
        case "partial", _ if digest := _digest(inner.partition("-")[2]):
            found = f"partial/{digest}"
        case "cache", [instance, *_] if _MOUNT.fullmatch(f"{inner}/{instance}"):
            found = f"cachemount/{inner}/{instance}"
        case _:
            found = ""
    return found


def _digest(name: str) -> str:
    """The digest whose hexadecimal digits are `name`: their number says which algorithm made them."""
    if not _HEX.fullmatch(name):
        return ""
    return f"sha256:{name}" if len(name) == 64 else f"sha512:{name}"


def mentioned(root: Path, documents: Iterable[str], wanted: AbstractSet[str]) -> set[str]:
    """Those of the digests `wanted` that stand in one of the stored blobs `documents` (digests). Raises DiskError."""
    found: set[str] = set()
    for document in documents:
        if found >= wanted:
            break
        digest = Digest(document)
        try:
            data = read_regular(root / "blobs" / digest.algorithm / digest.hex, _DOCUMENT)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DiskError.of(error, "reading a build's record") from error
        found.update(wanted & {name.decode() for name in _MENTION.findall(data)})
    return found


class DiskItems:
    """Removes items of `root`. Unfinished removals are scratch of `owner`: if it dies, the next build ends them."""

    def __init__(self, root: Path, owner: str) -> None:
        """Raises InputError when `owner` is not lower-case alphanumeric."""
        self._root = root
        self._scratch = Scratch(root / "tmp", owner)

    def here(self, key: str) -> bool:
        """Is any of the item on this disk?"""
        return any(os.path.lexists(path) for path in self._paths(key))

    def take(self, key: str) -> list[Path]:
        """Move the item out of sight, whole: nobody finds half of it. Returns what `discard` has to remove.
        Raises DiskError."""
        taken = []
        try:
            for path in self._paths(key):
                new = self._scratch.name()
                self._scratch.tmp.mkdir(parents=True, exist_ok=True)
                try:
                    path.rename(new)
                except FileNotFoundError:
                    continue
                taken.append(new)
                fsync_directory(path.parent)
                if key.startswith("cachemount/"):
                    _drop_if_empty(path.parent)
        except OSError as error:
            raise DiskError.of(error, f"removing {key}") from error
        return taken

    def discard(self, taken: list[Path]) -> None:
        """Free what was taken. Raises DiskError."""
        try:
            for path in taken:
                remove_tree(path)
        except OSError as error:
            raise DiskError.of(error, "removing what was collected") from error

    def _paths(self, key: str) -> tuple[Path, ...]:
        kind, _, name = key.partition("/")
        match kind:
            case "layer":
                hexadecimal = Digest(name).hex
                return self._root / "layers" / hexadecimal, self._root / "layers" / (hexadecimal + SUFFIX)
            case "snapshot" if _NAME.fullmatch(name):
                return self._root / "snapshots" / name, self._root / "snapshots" / (name + SUFFIX)
            case "blob":
                return (self._root / "blobs" / Digest(name).algorithm / Digest(name).hex,)
            case "partial":
                return (self._root / "partial" / f"{Digest(name).algorithm}-{Digest(name).hex}",)
            case "cachemount" if _MOUNT.fullmatch(name):
                return (self._root / "cache" / name,)
        raise InputError(f"not an item that can be removed: {key[:100]!r}")


def _drop_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # reason: other instances lie there, or one has just come
