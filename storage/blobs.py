"""Blobs in a directory that is a valid OCI image layout at all times (image-spec image-layout.md)."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from storage.digest import Digest, Hasher, canonical_json, digest_of, digest_read, sha256
from storage.durable import create_held, fsync_directory, make_directories, remove_unheld, write_all
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.blobs import BlobStore, BlobWriter
from storage.media_types import INDEX
from storage.regular import open_regular, read_regular
from storage.scratch import Scratch, clear_away, owner_of

_LAYOUT = {"imageLayoutVersion": "1.0.0"}
_INDEX = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
_WHOLE = 1 << 30  # bytes of a blob that is read into memory: documents, of 16 MiB mostly
Lost = Callable[[str, str], None]


class DirectoryBlobs:
    """Implements BlobStore below `root`; unfinished blobs are `root/tmp/<owner>-<random>`.

    Reading makes no file and no directory. Any number of processes may share `root`.
    """

    def __init__(self, root: Path, *, owner: str, lost: Lost | None = None) -> None:
        """`lost` is told of blobs that were found damaged, and removed: digest and what was wrong; without it none is
        removed. Raises InputError when `owner` is not lower-case alphanumeric."""
        self._root = root
        self._lost = lost
        self._sound: set[Digest] = set()  # stored or read whole by this process
        self._scratch = Scratch(root / "tmp", owner)
        self._laid_out = False

    def size(self, digest: Digest) -> int | None:
        """See BlobStore.size. Raises DiskError."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError.of(error, "looking for a blob") from error

    def open(self, digest: Digest) -> BinaryIO:
        """See BlobStore.open."""
        try:
            return cast("BinaryIO", _Stored(open_regular(self.path(digest))))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DiskError.of(error, "opening a blob") from error

    def put(self, data: bytes) -> Digest:
        """See BlobStore.put. Raises DiskError."""
        digest = sha256(data)
        if not self._holds(digest, data):
            writer = self.writer()
            try:
                writer.write(data)
                writer.commit()
            finally:
                writer.abort()
        return digest

    def get(self, digest: Digest) -> bytes:
        """See BlobStore.get. Raises FileNotFoundError, VerificationError, DiskError."""
        try:
            data = read_regular(self.path(digest), _WHOLE)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno == errno.EFBIG:
                what = f"the stored blob is not {digest} any more, or was no document: {error.strerror}"
                raise VerificationError(what, where=error.filename) from error
            if error.errno not in {errno.EISDIR, errno.EINVAL, errno.EIO}:
                raise DiskError.of(error, "reading a blob") from error
            data = b"something else stands in its place"
        if digest_of(data, digest.algorithm) == digest:
            return data
        if self._lost is not None:
            if self._drop(digest):
                raise FileNotFoundError(errno.ENOENT, "the blob was damaged", str(self.path(digest)))
            return self.get(digest)
        raise VerificationError(
            f"the stored blob is not {digest} any more", where=str(self.path(digest)),
            hint="the disk or somebody changed it: a build that needs it fetches or makes it again",
        )  # fmt: skip

    def sound(self, digest: Digest) -> bool:
        """See BlobStore.sound."""
        size = self.size(digest)
        if size is None or digest in self._sound:
            return size is not None
        try:
            problem = self._problem(digest)
        except FileNotFoundError:
            return False
        if problem:
            return self._lost is not None and not self._drop(digest) and self.sound(digest)
        self._sound.add(digest)
        return True

    def writer(self) -> FileBlobWriter:
        """See BlobStore.writer. Raises DiskError, and InputError where a link in the layout leads to what is none."""
        try:
            self._lay_out()
            return FileBlobWriter(self, *self._unfinished())
        except OSError as error:
            raise DiskError.of(error, "starting a blob") from error

    def sweep(self) -> None:
        """Remove unfinished blobs of writers that died: in a layout that many roots may write to, where nobody knows
        who lives. Raises DiskError."""
        if self._scratch.tmp.is_symlink():
            return  # where a layout of a stranger leads there are others' files
        try:
            for path in list(self._scratch.tmp.iterdir()):
                if owner_of(path.name) is not None and path.is_file():
                    with suppress(FileNotFoundError, BlockingIOError):
                        remove_unheld(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DiskError.of(error, "removing unfinished blobs") from error

    def stored(self, digest: Digest) -> None:
        """A writer put it here: its bytes are right."""
        self._sound.add(digest)

    def path(self, digest: Digest) -> Path:
        """Where the blob lies, when it is here."""
        return self._root / "blobs" / digest.algorithm / digest.hex

    def place(self, algorithm: str) -> Path:
        """Have the directory that blobs of `algorithm` lie in. Layouts share blobs by links, and a stranger's link may
        lead anywhere: it is followed to another directory of blobs, which is called so and is there already, and
        nothing else is written through one. Raises OSError, InputError."""
        directory = self._root / "blobs" / algorithm
        linked = directory.is_symlink() or directory.parent.is_symlink()
        if linked and not (directory.is_dir() and directory.resolve().name == algorithm):
            raise _leads_elsewhere(directory)
        make_directories(directory)
        return directory

    def _holds(self, digest: Digest, data: bytes) -> bool:
        """Is exactly `data` here?"""
        if (size := self.size(digest)) is None:
            return False
        with suppress(OSError):
            if size == len(data) and read_regular(self.path(digest), size) == data:
                if digest not in self._sound:
                    fsync_directory(self.path(digest).parent)  # whoever put it there may have died before this
                    self._sound.add(digest)
                return True
        self._drop(digest)
        return False

    def _problem(self, digest: Digest) -> str:
        """What is wrong with the blob; "" for nothing. Raises FileNotFoundError, DiskError."""
        try:
            with open_regular(self.path(digest)) as file:
                found = digest_read(file.read, digest.algorithm)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in {errno.EIO, errno.EISDIR, errno.EINVAL}:
                return f"it cannot be read: {error.strerror}"
            raise DiskError.of(error, "reading a blob") from error
        return "" if found == digest else "its content was changed"

    def _drop(self, digest: Digest) -> bool:
        """Remove the blob if it is damaged: False when somebody removed it, or put a sound one there, meanwhile."""
        if self._lost is None:
            return False
        path = self.path(digest)
        try:
            with _locked(path.parent, fcntl.LOCK_EX):
                problem = self._problem(digest)
                if problem and path.is_dir():
                    self._scratch.drop(path)
                elif problem:
                    path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DiskError.of(error, "removing a damaged blob") from error
        if not problem:
            return False
        self._lost(str(digest), problem)
        return True

    def _lay_out(self) -> None:
        if self._laid_out:
            return
        if self._scratch.tmp.is_symlink():
            raise _leads_elsewhere(self._scratch.tmp)
        self.place("sha256")
        make_directories(self._scratch.tmp)
        for name, content in (("oci-layout", _LAYOUT), ("index.json", _INDEX)):
            file = self._root / name
            if not file.exists():
                _link_durably(*self._unfinished(), canonical_json(content), file)
        fsync_directory(self._root)  # whoever made what is in there may have died before this
        self._laid_out = True

    def _unfinished(self) -> tuple[Path, int]:
        """A new file of our own in the scratch space, open. Raises OSError."""
        while True:
            path = self._scratch.name()
            if (fd := create_held(path, 0o644)) is not None:
                return path, fd


class _Stored(io.RawIOBase):
    """The bytes of a blob, from an open file: what the disk refuses to give is a DiskError for whoever reads."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._file.readinto(buffer)
        except OSError as error:
            raise DiskError.of(error, "reading a blob") from error

    def seek(self, position: int, how: int = os.SEEK_SET) -> int:
        return self._file.seek(position, how)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


class WithMore:
    """Implements BlobStore over `blobs`; what is not there is read from `more`, where nothing is written."""

    def __init__(self, blobs: BlobStore, more: BlobStore) -> None:
        self._blobs = blobs
        self._more = more

    def size(self, digest: Digest) -> int | None:
        """See BlobStore.size."""
        size = self._blobs.size(digest)
        return self._more.size(digest) if size is None else size

    def open(self, digest: Digest) -> BinaryIO:
        """See BlobStore.open."""
        return self._holder(digest).open(digest)

    def put(self, data: bytes) -> Digest:
        """See BlobStore.put."""
        return self._blobs.put(data)

    def get(self, digest: Digest) -> bytes:
        """See BlobStore.get."""
        return self._holder(digest).get(digest)

    def sound(self, digest: Digest) -> bool:
        """See BlobStore.sound."""
        return self._blobs.sound(digest) or self._more.sound(digest)

    def writer(self) -> BlobWriter:
        """See BlobStore.writer."""
        return self._blobs.writer()

    def _holder(self, digest: Digest) -> BlobStore:
        return self._blobs if self._blobs.size(digest) is not None else self._more


class FileBlobWriter:
    """Implements BlobWriter: a temporary file that is renamed once it is durable."""

    def __init__(self, store: DirectoryBlobs, path: Path, fd: int) -> None:
        self._store = store
        self._path = path
        self._fd = fd
        self._hasher = Hasher()

    def write(self, data: bytes) -> None:
        """See BlobWriter.write. Raises DiskError; then only `abort` is left."""
        try:
            write_all(self._fd, data)
        except OSError as error:
            self.abort()
            raise DiskError.of(error, "writing a blob") from error
        self._hasher.update(data)

    def commit(self, expected: Digest | None = None) -> tuple[Digest, int]:
        """See BlobWriter.commit. Raises VerificationError, DiskError."""
        try:
            digest = self._check(expected)
            target = self._store.path(digest)
            os.fsync(self._fd)
            if digest.algorithm != "sha256":  # whose directory is there
                self._store.place(digest.algorithm)
            with _locked(target.parent, fcntl.LOCK_SH) as directory:
                self._path.rename(target)
                os.fsync(directory)
            self._store.stored(digest)
        except OSError as error:
            raise DiskError.of(error, "storing a blob") from error
        finally:
            self.abort()
        return digest, self._hasher.size

    def abort(self) -> None:
        """See BlobWriter.abort."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            clear_away(self._path)

    def _check(self, expected: Digest | None) -> Digest:
        digest = self._hasher.digest()
        if expected is not None and expected.algorithm != digest.algorithm:
            os.lseek(self._fd, 0, os.SEEK_SET)
            digest = digest_read(partial(os.read, self._fd), expected.algorithm)
        if expected is not None and digest != expected:
            raise VerificationError(f"the bytes have digest {digest}, not {expected}")
        return digest


def _leads_elsewhere(directory: Path) -> InputError:
    hint = "remove it; a link to another layout's blobs is followed when that is there"
    return InputError("a link in the place of a directory of the layout", where=str(directory), hint=hint)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    """Directory `path` of blobs, open: locked as shared by who puts a blob there, alone by who removes a damaged one,
    as what he removes must not be the sound one that was put in its place meanwhile. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield fd
    finally:
        os.close(fd)


def _link_durably(path: Path, fd: int, data: bytes, target: Path) -> None:
    """Have `data` at `target`, by way of the new file `path`, open as `fd`, unless something is there."""
    try:
        write_all(fd, data)
        os.fsync(fd)
        with suppress(FileExistsError):  # another process was quicker; a link never replaces its file
            os.link(path, target)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
