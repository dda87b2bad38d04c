"""The files of a layer that is here, for looking at: read where they lie, nothing is mounted, nothing is written."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Protocol

from storage.blobs import DirectoryBlobs
from storage.bundle.form import Member
from storage.bundle.reading import Bundle, read_bundle
from storage.decompression import decompress
from storage.digest import Digest, Hasher
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.blobs import ByteSource
from storage.layers.erofs.header import SUFFIX, Image
from storage.tar.filelist import FileFact, load
from storage.tar.reader import CHARACTER, DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Entry, TarReader
from storage.temporary import usual_directory

Json = dict[str, Any]

LIMIT = 200_000
"""Files of one layer that are listed: nobody reads more, and a hostile layer may have any number."""
LARGEST = 512 << 20
"""Bytes of a layer in a bundle that is unpacked to be listed: into memory, a large one into a temporary file."""
_IN_MEMORY = 16 << 20
_SNAPSHOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}")
_KINDS = {REGULAR: "file", HARD_LINK: "link", SYMLINK: "symlink", DIRECTORY: "dir", CHARACTER: "device"}
_MODES = {stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFDIR: "dir"}


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One file. `path` from the layer's root, odd bytes escaped; `kind` file, link, symlink, dir, device, other, or
    deleted (the layer takes away what layers below have there); `mode` the 12 permission bits; `size` in bytes;
    `target` of a link."""

    path: str
    kind: str
    mode: int
    owner: str
    size: int
    target: str = ""


class LayerFiles(Protocol):
    """Where the files of layers are, as far as they are here. Layers as events have them (Layer.to_json)."""

    def where(self, layer: Json) -> str:
        """What is here that has the files, for people; "" for nothing."""
        ...

    def files(self, layer: Json) -> Iterator[LayerFile]:
        """Its files, in the order that they are stored in; none when `where` says "". Raises DiskError,
        VerificationError."""
        ...


@dataclass(frozen=True, slots=True)
class RootFiles:
    """Implements LayerFiles over the root at `root`."""

    root: Path

    def where(self, layer: Json) -> str:
        """See LayerFiles."""
        return self._find(layer)[0]

    def files(self, layer: Json) -> Iterator[LayerFile]:
        """See LayerFiles."""
        form, path = self._find(layer)
        try:
            if form.endswith("directory"):
                yield from _walk(path)
            elif form.endswith("image"):
                with Image.open(path).open_tar() as tar:
                    yield from _members(tar)
            elif form:
                with path.open("rb") as file:
                    yield from _members(decompress(file, str(layer.get("mediaType", ""))))
        except OSError as error:
            raise DiskError.of(error, "reading a layer") from error

    def _find(self, layer: Json) -> tuple[str, Path]:
        """The form that it is here in, and where: names come from the log and are checked before they are paths."""
        snapshot, diff_id, digest = (str(layer.get(key) or "") for key in ("snapshot", "diff_id", "digest"))
        if _SNAPSHOT.fullmatch(snapshot):
            found = _form(self.root / "snapshots", snapshot, "snapshot")
            if found[0]:
                return found
        try:
            found = _form(self.root / "layers", Digest(diff_id).hex, "layer") if diff_id else ("", Path())
            if not found[0] and digest:
                blob = DirectoryBlobs(self.root, owner="reader").path(Digest(digest))
                found = ("blob", blob) if blob.is_file() else found
        except InputError:
            return "", Path()  # an odd name in the log names nothing
        return found


@dataclass(frozen=True, slots=True)
class BundledFiles:
    """Implements LayerFiles over a bundle: the tars of layers that it holds, and its lists of what steps changed."""

    bundle: Bundle

    def where(self, layer: Json) -> str:
        """See LayerFiles."""
        member = self._member(layer)
        if member is not None and member.size <= LARGEST:
            return "tar in the bundle"
        return "list of files in the bundle" if self._listing(layer) is not None else ""

    def files(self, layer: Json) -> Iterator[LayerFile]:
        """See LayerFiles."""
        member = self._member(layer)
        if member is None or member.size > LARGEST:
            yield from map(_of_fact, load(self._listing(layer) or b""))
            return
        with SpooledTemporaryFile(_IN_MEMORY, dir=str(usual_directory())) as file:
            found = read_bundle(self.bundle.path, lambda item: _Into(file) if item == member else None)
            file.seek(0, os.SEEK_END)
            if file.tell() != member.size:  # what came before the damage was checked
                raise found.damage or VerificationError("the bundle is not the one that was opened")
            file.seek(0)
            yield from _members(file)

    def _member(self, layer: Json) -> Member | None:
        said = self.bundle.index.layers.get(_name(layer), {}).get("bundled")
        wanted = said.get("digest") if isinstance(said, dict) else None
        members = self.bundle.index.blobs
        return next((item for item in members if item.role == "layer" and str(item.digest) == wanted), None)

    def _listing(self, layer: Json) -> bytes | None:
        listed = self.bundle.index.files.get(_name(layer))
        try:
            return self.bundle.small.get(Digest(listed)) if listed else None
        except InputError:
            return None


def _name(layer: Json) -> str:
    return str(layer.get("snapshot") or layer.get("diff_id") or "")


class _Into:
    """Implements BlobWriter: what is in a bundle was checked by its reader when it is committed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hasher = Hasher()

    def write(self, data: bytes) -> None:
        """See BlobWriter."""
        self._hasher.update(data)
        self._file.write(data)

    def commit(self, expected: Digest | None = None) -> tuple[Digest, int]:
        """See BlobWriter."""
        digest = self._hasher.digest()
        if expected not in (None, digest):
            self.abort()
            raise VerificationError(f"a layer in the bundle is not what it is called: {expected}")
        self._hasher, size = Hasher(), self._hasher.size
        self._file = BytesIO()  # what `abort` may drop from now on
        return digest, size

    def abort(self) -> None:
        """See BlobWriter."""
        self._file.seek(0)
        self._file.truncate()


def _form(store: Path, name: str, what: str) -> tuple[str, Path]:
    tree, image = store / name / "fs", store / f"{name}{SUFFIX}"
    if tree.is_dir() and not (tree.is_symlink() or tree.parent.is_symlink()):  # whatever that links to is not of it
        return f"{what} directory", tree
    if image.is_file():
        return f"{what} image", image
    return "", Path()


def _walk(top: Path) -> Iterator[LayerFile]:
    def fail(error: OSError) -> None:
        raise error

    for directory, below, names in os.walk(top, onerror=fail):
        below.sort()
        for name in sorted(below + names):
            path = Path(directory, name)
            status = path.lstat()
            kind = _MODES.get(stat.S_IFMT(status.st_mode), "other")
            if stat.S_ISCHR(status.st_mode):
                kind = "device" if status.st_rdev else "deleted"  # as overlayfs keeps it
            target = os.fsencode(path.readlink()) if kind == "symlink" else b""
            size = status.st_size if kind == "file" else 0
            owner = f"{status.st_uid}:{status.st_gid}"
            yield LayerFile(
                _text(os.fsencode(path.relative_to(top))), kind, stat.S_IMODE(status.st_mode), owner, size,
                _text(target),
            )  # fmt: skip


def _members(tar: ByteSource) -> Iterator[LayerFile]:
    for entry in TarReader(tar):
        path, kind = _deleted(_text(entry.name), _kind(entry))
        yield LayerFile(path, kind, entry.mode & 0o7777, f"{entry.uid}:{entry.gid}", entry.size, _text(entry.link))


def _kind(entry: Entry) -> str:
    return _KINDS.get(entry.type, "other")


def _of_fact(fact: FileFact) -> LayerFile:
    path, kind = _deleted(fact.path, fact.kind)
    return LayerFile(path, kind, fact.mode, fact.owner, fact.size, fact.content if "link" in kind else "")


def _deleted(path: str, kind: str) -> tuple[str, str]:
    """The path and kind of a whiteout (OCI image spec, layer.md) are of what it takes away."""
    path = path.removeprefix("./").strip("/")
    parent, slash, base = path.rpartition("/")
    if base == ".wh..wh..opq":
        return f"{parent}{slash}*", "deleted"
    return (f"{parent}{slash}{base[4:]}", "deleted") if base.startswith(".wh.") else (path, kind)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
