"""Putting a selection into a root file system: COPY, ADD and WORKDIR.

The root is an image's: nobody here trusts its symlinks. All writes go through RootDir and directory descriptors.
Where the Dockerfile reference is silent this does what BuildKit does:

- Missing parents of the destination, and the destination of a directory, are made 0755, owned by --chown or root.
  The destination directory gets the source directory's time but, as the reference copies contents only, neither its
  mode nor its owner. Directories below it get all three, also where they exist.
- The destination path itself follows symlinks inside the root; names below it never do: a file replaces a symlink,
  a directory over a symlink or a file is an error, a file over a directory too.
- Files of a context belong to root; those of a stage or image keep their owner, and the extended attributes `user.*`
  and `security.capability`, as docker has it since moby#38599. --chown overrides both.
- --chmod sets all twelve permission bits of files and of directories below the destination.
- Hard links among files of one source directory of a stage stay hard links. A context has none, as its cache key
  does not tell them from copies.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from engine.errors import DiskError, InputError
from engine.graph import Copy, InlineFile
from engine.ops.filecopy import copy_bytes, write_all
from engine.ops.rootfs import RootDir
from engine.ops.select import Entry, Match, Selection, changed, printable
from engine.ops.unpack import is_archive, unpack_into
from engine.ops.users import resolve_owner

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_MAX_LINKS = 40


def copy_into(op: Copy, selection: Selection, source: Path | None, root: Path, *, now_ns: int) -> None:
    """Copy `selection` from the tree at `source` (None when there are only inline files) into the root at `root`.

    Where the selection has digests, what is copied is checked against them. `now_ns`: the time of what has no source.
    Blocking. Raises InputError (the destination cannot be; a context file changed; a user that the image does not
    know; a malformed archive) and DiskError. What was copied before an error stays: the caller drops the snapshot.
    """
    try:
        with ExitStack() as stack:
            target = stack.enter_context(RootDir(root))
            origin = stack.enter_context(RootDir(source)) if source is not None else target
            with _Copier(op, target, origin, now_ns) as copier:
                copier.run(selection)
    except OSError as error:
        raise _understood(error, op.dest) from error


def make_directory(path: str, root: Path, now_ns: int) -> bool:
    """Make directory `path` and its parents, 0755 root, in the root at `root`; True when something was made.

    Blocking. Raises InputError when something else is in the way, and DiskError.
    """
    try:
        with RootDir(root) as target:
            made = target.makedirs(path)
            for directory in made:
                _set_time(target, directory, now_ns)
            return bool(made)
    except OSError as error:
        raise _understood(error, path) from error


def parse_mode(chmod: str) -> int | None:
    """The permission bits --chmod names, None for "". Raises InputError."""
    if not chmod:
        return None
    if not re.fullmatch("[0-7]{1,5}", chmod) or int(chmod, 8) > 0o7777:
        raise InputError(f"--chmod={chmod}: not an octal mode", hint="write it as in --chmod=755")
    return int(chmod, 8)


class _Copier:
    def __init__(self, op: Copy, target: RootDir, origin: RootDir, now_ns: int) -> None:
        self._op = op
        self._target = target
        self._origin = origin
        self._now_ns = now_ns
        self._owner = resolve_owner(target, op.chown) if op.chown else None
        self._mode = parse_mode(op.chmod)
        self._made: dict[str, int] = {}
        """Times that directories get in the end, when nothing is made in them any more: real path → ns."""
        self._links: dict[tuple[int, int], tuple[str, str]] = {}
        self._directory = ("", -1)

    def __enter__(self) -> _Copier:
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory[1] >= 0:
            os.close(self._directory[1])

    def run(self, selection: Selection) -> None:
        """Copy everything, then set the times of directories."""
        op = self._op
        wanted = max(len(op.sources), len(selection.matches)) + len(op.files)
        if wanted > 1 and not self._is_directory(op.dest):
            raise InputError(
                f"destination {op.dest!r} must be a directory: several files are copied to it",
                hint=f"end it with a slash: {op.dest}/",
            )
        for match in selection.matches:
            entry = selection.entries[match.start]
            if entry.type == "dir":
                self._copy_tree(selection, match)
            else:
                self._copy_single(entry, posixpath.basename(match.path))
        for file in op.files:
            self._inline(file)
        for path, time in self._made.items():
            with suppress(FileNotFoundError, NotADirectoryError):  # an archive has put something else there since
                _set_time(self._target, path, time)

    # ---------------------------------------------------------------- where to

    def _is_directory(self, path: str) -> bool:
        if path.endswith("/"):
            return True
        try:
            return stat.S_ISDIR(self._target.stat(path).st_mode)
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise

    def _make(self, path: str) -> str:
        """Make directory `path` where missing; its real path."""
        for made in self._target.makedirs(path, 0o755, *(self._owner or (0, 0))):
            self._made[made] = self._now_ns
        return self._target.resolve(path)

    def _locate(self, name: str) -> tuple[str, str]:
        """Real directory and name for a single file called `name`: below the destination if that is a directory."""
        path = self._op.dest
        for _ in range(_MAX_LINKS):
            parent, last = posixpath.split(path)
            if last in {"", ".", ".."} or self._is_directory(path):
                return self._make(path), name
            parent = self._make(parent)
            path = posixpath.join(parent, last)
            try:
                path = posixpath.join(parent, self._target.readlink(path))
            except FileNotFoundError:
                return parent, last
            except OSError as error:
                if error.errno == errno.EINVAL:  # not a link
                    return parent, last
                raise
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def _open(self, path: str) -> int:
        """A descriptor of the real directory `path`, valid until the next call."""
        known, fd = self._directory
        if known != path:
            self._directory = ("", -1)
            if fd >= 0:
                os.close(fd)
            fd = self._target.open(path, _DIR_FLAGS)
            self._directory = (path, fd)
        return fd

    # ---------------------------------------------------------------- what

    def _copy_tree(self, selection: Selection, match: Match) -> None:
        """The contents of a directory. Entries of one directory are adjacent: it is opened once."""
        top = selection.entries[match.start]
        base = self._make(self._op.dest)
        self._links.clear()
        with self._source(top, top.source) as fd:
            self._made[base] = os.fstat(fd).st_mtime_ns
        index = match.start + 1
        while index < match.end:
            entry = selection.entries[index]
            below = posixpath.dirname(match.relative(entry))
            parent = posixpath.dirname(entry.path)
            directory = posixpath.join(base, below) if below else base
            with self._source(entry, posixpath.dirname(entry.source)) as fd:
                while index < match.end and posixpath.dirname(selection.entries[index].path) == parent:
                    entry = selection.entries[index]
                    self._copy(entry, fd, directory, posixpath.basename(entry.path))
                    index += 1

    def _copy_single(self, entry: Entry, name: str) -> None:
        self._links.clear()
        with self._source(entry, posixpath.dirname(entry.source)) as fd:
            if not (self._op.unpack and entry.type == "file" and self._unpacked(entry, fd)):
                self._copy(entry, fd, *self._locate(name))

    @contextmanager
    def _source(self, entry: Entry, path: str) -> Iterator[int]:
        """A directory of the source tree."""
        try:
            fd = self._origin.open(path, _DIR_FLAGS)
        except OSError as error:
            raise _vanished(error, entry) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _unpacked(self, entry: Entry, source: int) -> bool:
        """Unpack the file if it is an archive: say whether it was one. The destination is a directory then."""
        with open(self._open_source(entry, source), "rb") as file:  # noqa: PTH123  a descriptor has no Path
            if not is_archive(file):
                return False
            dest = self._make(self._op.dest)
            digest = unpack_into(file, self._target, dest, owner=self._owner, now_ns=self._now_ns)
        if entry.digest is not None and digest != entry.digest:
            raise changed(entry.path)
        return True

    def _copy(self, entry: Entry, source: int, directory: str, name: str) -> None:
        """Make `entry`, which the open directory `source` holds, as `name` in the real directory `directory`."""
        parent = self._open(directory)
        if entry.type == "dir":
            self._directory_entry(entry, source, parent, directory, name)
            return
        if entry.link is not None and entry.link in self._links:
            self._hard_link(entry.link, parent, name)
            return
        if entry.type == "file":
            self._file(entry, source, parent, name)
        else:
            self._special(entry, source, parent, name)
        if entry.link is not None:
            self._links[entry.link] = (directory, name)

    def _file(self, entry: Entry, source: int, parent: int, name: str) -> None:
        origin = self._open_source(entry, source)
        try:
            info = os.fstat(origin)
            made = _create(parent, name)
            try:
                digest = copy_bytes(origin, made, info, verify=entry.digest is not None)
                if digest != entry.digest:
                    raise changed(entry.path)
                self._own(made, entry)
                os.utime(made, ns=(info.st_mtime_ns, info.st_mtime_ns))
            finally:
                os.close(made)
        finally:
            os.close(origin)

    def _open_source(self, entry: Entry, source: int) -> int:
        try:
            fd = os.open(posixpath.basename(entry.source), _READ_FLAGS, dir_fd=source)
        except OSError as error:
            raise _vanished(error, entry) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise changed(entry.path)
        return fd

    def _directory_entry(self, entry: Entry, source: int, parent: int, directory: str, name: str) -> None:
        time = self._source_time(entry, source)
        path = posixpath.join(directory, name)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise InputError(
                    f"cannot copy directory {printable(entry.path)!r} over {printable(path)!r}: not a directory",
                    hint="remove it in the image first, or copy to the directory that it points to",
                ) from None
        fd = os.open(name, _DIR_FLAGS, dir_fd=parent)
        try:
            self._own(fd, entry)
        finally:
            os.close(fd)
        self._made[path] = time

    def _special(self, entry: Entry, source: int, parent: int, name: str) -> None:
        """A symlink, FIFO or device."""
        time = self._source_time(entry, source)
        _clear(parent, name)
        if entry.type == "symlink":
            os.symlink(entry.target, name, dir_fd=parent)
        else:
            kind = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK}[entry.type]
            os.mknod(name, kind | 0o600, entry.device, dir_fd=parent)
        os.chown(name, *(self._owner or (entry.uid, entry.gid)), dir_fd=parent, follow_symlinks=False)
        if entry.type != "symlink":
            os.chmod(name, entry.mode if self._mode is None else self._mode, dir_fd=parent)
        os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)

    def _source_time(self, entry: Entry, source: int) -> int:
        try:
            return os.stat(posixpath.basename(entry.source), dir_fd=source, follow_symlinks=False).st_mtime_ns
        except OSError as error:
            raise _vanished(error, entry) from error

    def _hard_link(self, link: tuple[int, int], parent: int, name: str) -> None:
        directory, first = self._links[link]
        fd = self._target.open(directory, _DIR_FLAGS)
        try:
            _clear(parent, name)
            os.link(first, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def _own(self, fd: int, entry: Entry) -> None:
        """Owner, mode and attributes of an open file, in the order in which none undoes another."""
        os.fchown(fd, *(self._owner or (entry.uid, entry.gid)))
        os.fchmod(fd, entry.mode if self._mode is None else self._mode)
        for key, value in entry.xattrs:
            os.setxattr(fd, key, value)

    def _inline(self, file: InlineFile) -> None:
        """A heredoc: 0644, below a destination that is a directory under its delimiter's name."""
        directory, name = self._locate(posixpath.basename(file.name))
        fd = _create(self._open(directory), name)
        try:
            write_all(fd, file.data.encode("utf-8", "surrogateescape"))
            self._own(fd, Entry(file.name, "", "file", 0o644))
            os.utime(fd, ns=(self._now_ns, self._now_ns))
        finally:
            os.close(fd)


def _create(parent: int, name: str) -> int:
    """A new empty file, in the place of whatever is there but a directory."""
    try:
        return os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)
    except FileExistsError:
        _clear(parent, name)
        return os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)


def _clear(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EISDIR:
            raise
        raise InputError(
            f"cannot replace directory {printable(name)!r} with a file", hint="remove the directory in the image first"
        ) from None


def _set_time(root: RootDir, path: str, time: int) -> None:
    fd = root.open(path, _DIR_FLAGS)
    try:
        os.utime(fd, ns=(time, time))
    finally:
        os.close(fd)


def _vanished(error: OSError, entry: Entry) -> Exception:
    return changed(entry.path) if error.errno in _GONE else error


def _understood(error: OSError, path: str) -> Exception:
    where = printable(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return InputError(f"{where!r} in the image is not a directory", hint="choose another destination")
    if error.errno == errno.ELOOP:
        return InputError(f"{where!r} in the image: too many symbolic links", hint="choose another destination")
    return DiskError.of(error, f"copying to {path}")
