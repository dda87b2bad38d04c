"""Contexts stay as long as a build record needs them, and are stored once.

What a COPY took lies in the layer that it made, found there by digest; the listing (ContextScanned) says where it was.
Only what a step does not keep as it was goes into a pack: an archive that ADD unpacked, a file that another one of the
same COPY covered, all that a RUN only mounted. A pack is a stored tar whose members are named by the digests of their
contents; what an earlier pack holds is not packed again.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from engine.errors import InputError, VerificationError
from engine.graph import Copy
from engine.ops.rootfs import RootDir
from engine.ops.select import Entry, Selection, changed
from engine.ops.unpack import is_archive
from storage.digest import Digest, Hasher
from storage.interfaces import BlobStore

_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ESCAPED = re.compile(r"(?:\\x[0-9a-f]{2})+")


def pack_lost(
    op: Copy | None, selection: Selection, source: Path, blobs: BlobStore, before: Sequence[Digest] = ()
) -> list[Digest]:
    """Store what `op` (None: a mount) does not leave in its layer of the files it takes from the tree at `source`.

    Returns the packs that hold it: those of `before` that do, and a new one for the rest. Blocking. Raises InputError
    when a file changed since it was selected, DiskError, OSError.
    """
    with RootDir(source) as root:
        entries = selection.entries if op is None else _lost(op, selection, root)
        lost = {entry.digest: entry for entry in entries if entry.digest}
        packs = _covering(lost, before, blobs)
        if not lost:
            return packs
        writer = blobs.writer()
        try:
            out = cast("IO[bytes]", _Out(writer.write))
            with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for digest, entry in sorted(lost.items()):
                    info = tarfile.TarInfo(digest.hex)
                    info.size = entry.size
                    with _opened(root, entry) as file:
                        info.mtime = int(os.fstat(file.fileno()).st_mtime)
                        tar.addfile(info, cast("IO[bytes]", _Checked(file, digest, entry.path)))
            return [*packs, writer.commit()[0]]
        finally:
            writer.abort()


def _covering(wanted: dict[Digest, Entry], packs: Sequence[Digest], blobs: BlobStore) -> list[Digest]:
    """Those of `packs` that hold something `wanted`, which is taken out of it."""
    used = []
    for pack in packs:
        if not wanted:
            break
        try:
            with blobs.open(pack) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                held = [digest for member in tar if (digest := Digest(f"sha256:{member.name}")) in wanted]
        except (FileNotFoundError, tarfile.TarError, InputError):
            continue  # it went, or is no pack: what it held is packed again
        if held and blobs.sound(pack):
            used.append(pack)
            for digest in held:
                wanted.pop(digest, None)
    return used


def _lost(op: Copy, selection: Selection, root: RootDir) -> Iterator[Entry]:
    last: dict[str, Entry] = {}
    for match in selection.matches:
        for entry in selection.entries[match.start : match.end]:
            if entry.type != "file":
                continue
            # what lands on one path; with several single files the destination is a directory
            name = match.relative(entry) or entry.path.rpartition("/")[2]
            if op.parents:
                name = entry.path
            if name in last and last[name].digest != entry.digest:
                yield last[name]
            last[name] = entry
            if op.unpack and entry.path == match.path:
                with _opened(root, entry) as file:
                    unpacked = is_archive(file)
                if unpacked:
                    yield entry


def _opened(root: RootDir, entry: Entry) -> BinaryIO:
    try:
        return open(root.open(entry.source, _READ), "rb")  # noqa: PTH123  # a descriptor; the caller closes it
    except OSError as error:
        raise changed(entry.path) from error


@dataclass(slots=True)
class _Out:
    """What tarfile writes a stream to."""

    put: Callable[[bytes], object]

    def write(self, data: bytes) -> int:
        self.put(data)
        return len(data)


class _Checked:
    """A file whose bytes must be those of `digest` when it has been read."""

    def __init__(self, file: BinaryIO, digest: Digest, path: str) -> None:
        self._file = file
        self._digest = digest
        self._path = path
        self._hasher = Hasher(digest.algorithm)
        self._left = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._hasher.update(data)
        self._left -= len(data)
        if not data or (self._left <= 0 and self._hasher.digest() != self._digest):
            raise changed(self._path)
        return data


# ---------------------------------------------------------------- restoring


def restore(listing: bytes, layers: Sequence[Path], packs: Sequence[BinaryIO], dest: Path) -> None:
    """Make at `dest` what `listing` names, with contents from the trees `layers` and from `packs`, each checked.

    Blocking. A selection of the same COPY from `dest` has the same listing again. Raises VerificationError when a
    content is nowhere, OSError.
    """
    rows = [_row(line) for line in listing.decode().splitlines()]
    wanted = {row.content for row in rows if row.type == "file"}
    found = _search(wanted, layers)
    dest.mkdir(parents=True, exist_ok=True)
    taken = dest / ".restored"
    _take(wanted - found.keys(), packs, taken, found)
    try:
        for row in rows:
            _make(row, dest / row.path, found)
        for row in reversed(rows):
            if row.type == "dir":
                (dest / row.path).chmod(row.mode)
    finally:
        for path in taken.iterdir() if taken.is_dir() else ():
            path.unlink()
        if taken.is_dir():
            taken.rmdir()


def listed(listing: bytes) -> list[tuple[str, str]]:
    """Path and content (a digest) of the files that a stored listing names. Raises VerificationError."""
    try:
        rows = [_row(line) for line in listing.decode().splitlines()]
        return [(row.path, str(Digest(row.content))) for row in rows if row.type == "file"]
    except (ValueError, InputError) as error:
        raise VerificationError(f"a damaged listing of a context: {error}") from error


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    type: str
    mode: int
    content: str
    owner: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]


def _row(line: str) -> _Row:
    path, kind, mode, content, *more = line.split("\t")
    owner, xattrs = (0, 0), []
    for item in more:
        key, equals, value = item.rpartition("=")
        if equals:
            xattrs.append((_plain(key), bytes.fromhex(value)))
        else:
            uid, _, gid = item.partition(":")
            owner = int(uid), int(gid)
    return _Row("" if path == "." else _plain(path), kind, int(mode, 8), content, owner, tuple(xattrs))


def _plain(text: str) -> str:
    """The inverse of `printable`."""
    return _ESCAPED.sub(lambda found: os.fsdecode(bytes.fromhex(found[0].replace("\\x", ""))), text)


def _search(wanted: set[str], layers: Sequence[Path]) -> dict[str, Path]:
    """Digest → a file with that content, for as many of `wanted` as there are in `layers`."""
    found: dict[str, Path] = {}
    for layer in layers:
        for directory, _, names in os.walk(layer):
            for name in names:
                if found.keys() >= wanted:
                    return found
                path = Path(directory) / name
                if stat.S_ISREG(path.lstat().st_mode):
                    with path.open("rb") as file:
                        digest = _digest(file)
                    if digest in wanted:
                        found.setdefault(digest, path)
    return found


def _take(missing: set[str], packs: Sequence[BinaryIO], into: Path, found: dict[str, Path]) -> None:
    into.mkdir()
    for pack in packs if missing else ():
        with tarfile.open(fileobj=pack, mode="r:") as tar:
            for member in tar:
                digest = f"sha256:{member.name}"
                content = tar.extractfile(member) if digest in missing else None
                if content is None:
                    continue
                path = into / member.name
                with path.open("wb") as out:
                    while data := content.read(_CHUNK):
                        out.write(data)
                os.utime(path, (member.mtime, member.mtime))
                with path.open("rb") as file:
                    if _digest(file) == digest:
                        found[digest] = path


def _digest(file: BinaryIO) -> str:
    hasher = Hasher()
    while data := file.read(_CHUNK):
        hasher.update(data)
    return str(hasher.digest())


def _make(row: _Row, path: Path, found: Mapping[str, Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if row.type == "dir":
        path.mkdir(exist_ok=True)
        os.chown(path, *row.owner)
        return
    path.unlink(missing_ok=True)
    if row.type == "file":
        if row.content not in found:
            raise VerificationError(f"the content of {row.path!r} is not kept any more: {row.content}")
        with found[row.content].open("rb") as file, path.open("wb") as out:
            while data := file.read(_CHUNK):
                out.write(data)
            time = os.fstat(file.fileno()).st_mtime_ns
        os.chown(path, *row.owner)
        path.chmod(row.mode)
        for key, value in row.xattrs:
            os.setxattr(path, key, value)
        os.utime(path, ns=(time, time))
    elif row.type == "symlink":
        path.symlink_to(_plain(row.content))
        os.chown(path, *row.owner, follow_symlinks=False)
    else:
        kind = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK}[row.type]
        major, _, minor = row.content.partition(":")
        os.mknod(path, kind | row.mode, os.makedev(int(major or 0), int(minor or 0)))
        os.chown(path, *row.owner)
