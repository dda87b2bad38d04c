"""Contexts stay as long as a build record needs them, and are stored once.

What a COPY took lies in the layer that it made, found there by digest; the listing (ContextScanned) says where it was.
Only what a step does not keep as it was goes into a pack: an archive that ADD unpacked, a file that another one of the
same COPY covered, all that a RUN only mounted. A pack is a stored tar whose members are named by the digests of their
contents; what an earlier pack holds is not packed again.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from engine.errors import InputError, VerificationError
from engine.graph import Copy
from engine.ops.origin import Origin
from engine.ops.selection import KINDS, Entry, Selection, changed
from engine.ops.unpack import is_archive
from engine.ops.xattrs import KEPT
from storage.digest import Digest, Hasher, digest_read
from storage.interfaces.blobs import BlobStore

_CHUNK = 1 << 20
_HOPS = 40
"""Links on the way to a directory, as for the kernel."""
_NOBODY = 2**32 - 1
Pack = Iterable[tuple[bytes, int, Iterable[memoryview]]]
"""What is in a pack: name, time (ns since the epoch) and content of each file, which is to be read before the next."""
_ESCAPED = re.compile(r"(?:\\x[0-9a-f]{2})+")


def pack_lost(
    op: Copy | None, selection: Selection, source: Path, blobs: BlobStore, before: Sequence[Digest] = ()
) -> list[Digest]:
    """Store what `op` (None: a mount) does not leave in its layer of the files it takes from the tree at `source`.

    Returns the packs that hold it: those of `before` that do, and a new one for the rest. Blocking. Raises InputError
    when a file changed since it was selected, DiskError, OSError.
    """
    with Origin(source) as origin:
        entries = selection.entries if op is None else _lost(op, selection, origin)
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
                    with _opened(origin, entry) as file:
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


def _lost(op: Copy, selection: Selection, origin: Origin) -> Iterator[Entry]:
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
                with _opened(origin, entry) as file:
                    unpacked = is_archive(file)
                if unpacked:
                    yield entry


def _opened(origin: Origin, entry: Entry) -> BinaryIO:
    return open(origin.open(entry)[0], "rb")  # noqa: PTH123  # a descriptor; the caller closes it


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


def restore(listing: bytes, layers: Sequence[Path], packs: Iterable[Pack], dest: Path) -> None:
    """Make at `dest` what `listing` names, with contents from the trees `layers` and from `packs`, each checked. `dest`
    lies in a place where nobody else makes anything, and what is needed meanwhile beside it.

    Blocking. A selection of the same COPY from `dest` has the same listing again. Nothing outside of `dest` is touched,
    whatever the listing says: it may come from a stranger's bundle. Raises VerificationError when a content is nowhere,
    and for a listing that no build can have made; OSError.
    """
    rows = _rows(listing)
    wanted = {row.content for row in rows if row.type == "file"}
    found = _search(wanted, layers)
    dest.mkdir(parents=True, exist_ok=True)
    taken = dest.with_name(f".{dest.name}.taken")  # in a place of the build's own, which goes as a whole
    taken.mkdir()
    try:
        _take(wanted - found.keys(), packs, taken, found)
        directories = []
        for row in rows:
            above, _, name = row.path.rpartition("/")
            path = _directory(dest, row.path) if row.type == "dir" else _directory(dest, above) / name
            _make(row, path, found)
            if row.type == "dir":
                directories.append((path, row.mode))
        for path, mode in reversed(directories):
            path.chmod(mode)
    finally:
        shutil.rmtree(taken, ignore_errors=True)


def listed(listing: bytes) -> list[tuple[str, str]]:
    """Path and content (a digest) of the files that a stored listing names. Raises VerificationError."""
    return [(row.path, row.content) for row in _rows(listing) if row.type == "file"]


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    type: str
    mode: int
    content: str
    owner: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor. Raises ValueError."""
        if self.type not in {"char", "block"}:
            return 0, 0
        major, _, minor = self.content.partition(":")
        return int(major), int(minor)


def _rows(listing: bytes) -> list[_Row]:
    """Raises VerificationError for a listing that Selection.listing cannot have made."""
    try:
        return [_row(line) for line in listing.decode().split("\n")[:-1]]
    except (ValueError, InputError) as error:
        raise VerificationError(f"a damaged listing of a context: {error}") from error


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
    row = _Row("" if path == "." else _plain(path), kind, int(mode, 8) & 0o7777, content, owner, tuple(xattrs))
    if row.path and not all(part not in {"", ".", ".."} for part in row.path.split("/")):
        raise ValueError(f"{row.path[:200]!r} leads out of the context")
    if kind == "file":
        Digest(content)  # what is kept is looked for by this name
    elif kind not in KINDS:
        raise ValueError(f"{kind[:20]!r} is no kind of file")
    if "\0" in _plain(line) or not all(0 <= number < _NOBODY for number in (*owner, *row.device)):
        raise ValueError("a name with a zero byte in it, or a number that is too large")
    if not all(key.startswith(KEPT) for key, _ in xattrs):
        raise ValueError("an attribute that contexts do not keep")
    return row


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
                        digest = str(digest_read(file.read, "sha256"))
                    if digest in wanted:
                        found.setdefault(digest, path)
    return found


def _take(missing: set[str], packs: Iterable[Pack], into: Path, found: dict[str, Path]) -> None:
    for pack in packs if missing else ():
        for name, mtime, content in pack:
            digest = f"sha256:{name.decode(errors='replace')}"
            if digest not in missing:
                continue
            path, hasher = into / digest, Hasher()
            with path.open("wb") as out:
                for piece in content:
                    hasher.update(piece)
                    out.write(piece)
            os.utime(path, ns=(mtime, mtime))
            if hasher.digest() == digest:
                found[digest] = path


def _directory(dest: Path, path: str) -> Path:
    """The directory `path` of the tree at `dest`, made if it is not there. Links lead where a COPY out of that tree
    follows them: a listing may name what lies behind one, and nothing outside of `dest`. Raises VerificationError when
    it is none."""
    at: list[str] = []
    todo, hops = path.split("/")[::-1], 0
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del at[-1:]
            continue
        here = dest.joinpath(*at, part)
        with suppress(FileExistsError):
            here.mkdir()
        mode = here.lstat().st_mode
        if stat.S_ISLNK(mode) and hops < _HOPS:
            hops += 1
            target = str(here.readlink())
            at = [] if target.startswith("/") else at
            todo += target.split("/")[::-1]
        elif stat.S_ISDIR(mode):
            at.append(part)
        else:
            raise VerificationError(f"a damaged listing of a context: {path!r} is no directory")
    return dest.joinpath(*at)


def _make(row: _Row, path: Path, found: Mapping[str, Path]) -> None:
    if row.type == "dir":
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
        os.mknod(path, kind | row.mode, os.makedev(*row.device))
        os.chown(path, *row.owner)
