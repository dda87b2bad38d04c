"""Which files a COPY or ADD takes from a source tree: the content part of its cache key, and the list to copy.

Rules (Dockerfile reference, "COPY", and what BuildKit does where it is silent):

- `..`, a leading `/` and symlinks never lead out of the tree; they are resolved inside it.
- A source that *is* a symlink, by name or by wildcard, is followed, under the link's own name. Symlinks below a copied
  directory stay symlinks.
- Wildcards match component by component, see links as they are, and may match nothing: then nothing is copied.
  A source without wildcards must exist.
- `.dockerignore` hides a path as if it were not there; directories above an exception (`!`) are there.
- Sockets are left out: a layer cannot hold them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.errors import DiskError, InputError
from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.glob import compile_glob, has_wildcard
from engine.graph import Copy
from engine.ops.rootfs import RootDir
from engine.ops.rules import Below, below, with_parents
from engine.ops.selection import CHUNK, Entry, EntryType, Match, Selection, changed, printable
from engine.ops.visible import GONE, Judge, VisibleTree, join
from engine.ops.xattrs import KEPT, read_xattrs
from storage.digest import Digest

_TYPES: dict[int, EntryType] = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}  # fmt: skip
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never waits on what became a FIFO


def select(
    op: Copy, source: Path, excludes: Sequence[str] = (), *, hash_files: bool, literal: bool = False
) -> Selection:
    """The files `op.sources` name in the tree at `source`, less those that `excludes` hide. Blocking.

    `hash_files`: read every file for its digest, as the cache key of a context needs; a stage is known by its ref.
    `literal`: the sources are paths, not patterns. With `op.parents` a source is the directory that its parents are
    kept from, and only what matches is in it: whoever copies its contents has kept the parents.
    Raises InputError (a source is not there, or changes meanwhile; a malformed pattern) and DiskError.
    """
    if not op.sources:
        return Selection((), (), 0, 0)
    try:
        with RootDir(source) as root:
            return _Selector(VisibleTree(root, excludes), op, hash_files, literal).run()
    except OSError as error:
        if error.errno in GONE:  # what is not there from the start was told before
            raise changed(str(error.filename or ".")) from error
        raise DiskError.of(error, "reading the files to copy") from error


class _Selector:
    def __init__(self, tree: VisibleTree, op: Copy, hash_files: bool, literal: bool) -> None:
        self._tree = tree
        self._op = op
        self._hash_files = hash_files
        self._literal = literal
        self._exclude = IgnoreMatcher(op.excludes) if op.excludes else None
        self._entries: list[Entry] = []

    def run(self) -> Selection:
        matches: list[Match] = []
        for pattern in self._op.sources:
            if self._op.parents:
                matches.append(self._take_with_parents(pattern))
                continue
            path = posixpath.normpath("/" + pattern).lstrip("/")
            literal = self._literal or not has_wildcard(path)
            for found in [path] if literal else self._expand(path):
                if self._left_out(found, wildcard=not literal):
                    continue
                match = self._take(found)
                if match is None:
                    raise self._missing(found)
                matches.append(match)
        entries = _linked(self._entries)
        files = sum(entry.type != "dir" for entry in entries)
        return Selection(entries, tuple(matches), files, sum(entry.size for entry in entries))

    # ---------------------------------------------------------------- from patterns to paths

    def _expand(self, pattern: str) -> list[str]:
        """Paths that match, sorted; links on the way are followed only before the first wildcard, as BuildKit's walk
        does."""
        parts = pattern.split("/")
        fixed = next(index for index, part in enumerate(parts) if has_wildcard(part))
        base = "/".join(parts[:fixed])
        real = self._tree.real(base)
        if real is None or not stat.S_ISDIR(self._tree.root.stat(real, follow=False).st_mode):
            return []
        found = [(base, real)]
        for number, part in enumerate(parts[fixed:], fixed + 1):
            glob, last = compile_glob(part), number == len(parts)
            found = [
                (join(path, name), join(source, name))
                for path, source in found
                for name, is_dir in self._tree.names(source)
                if glob.fullmatch(name) and (self._tree.there(join(source, name), is_dir=is_dir) if last else is_dir)
            ]
        return sorted(path for path, _ in found)

    def _missing(self, path: str) -> InputError:
        what = "build context" if self._op.from_context else "stage or image"
        real = self._tree.real(path)
        if real is None:
            hint = f"paths are looked up from the root of the {what}"
            if self._is_link(path):
                hint = f"it is a symbolic link to something that is not in the {what}"
        elif self._tree.excluded(real) or self._tree.excluded(path):
            hint = f"it is there, but .dockerignore hides it: add a line !{printable(path)}"
        else:
            hint = "it is a socket, and those cannot be copied"
        return InputError(f'"/{printable(path)}": not found', hint=hint)

    def _is_link(self, path: str) -> bool:
        try:
            return stat.S_ISLNK(self._tree.root.stat(path, follow=False).st_mode)
        except OSError:
            return False

    # ---------------------------------------------------------------- from paths to entries

    def _take(self, path: str) -> Match | None:
        source = self._tree.real(path)
        if source is None or (source != path and self._tree.excluded(path)):
            return None
        start = len(self._entries)
        parent, name = posixpath.split(source)
        with self._tree.directory(parent) as fd:
            regular = stat.S_ISREG(self._tree.root.stat(source, follow=False).st_mode)
            entry = self._entry(path, source, name or ".", fd, regular=regular)
        if entry is None or (entry.type != "dir" and self._tree.excluded(source)):
            return None
        if entry.type == "dir" and not self._tree.visible(source):
            return None
        self._entries.append(entry)
        if entry.type == "dir":
            self._walk(path, source, below(self._op.excludes))
        return Match(path, start, len(self._entries))

    def _take_with_parents(self, written: str) -> Match:
        """The directory that parents are kept from, with what matches below it and the directories that lead there."""
        above, pattern, rules = with_parents(written, self._op.excludes)
        literal, path = not has_wildcard(pattern), posixpath.normpath(posixpath.join(above, pattern))
        source = self._tree.real(above)
        top, full = (posixpath.normpath("/" + name) for name in (above, posixpath.join(above, pattern)))
        if literal and posixpath.commonpath((top, full)) != top:  # whatever is there, it is none of what is below
            raise InputError(
                f'"/{printable(path)}": not found', hint=f'it does not lie below "/{printable(above)}"'
            )
        if source is None or (literal and self._tree.real(path) is None):
            raise self._missing(path)
        start = len(self._entries)
        parent, name = posixpath.split(source)
        with self._tree.directory(parent) as fd:
            entry = self._entry(above, source, name or ".", fd, regular=False)
        if entry is None or entry.type != "dir":
            raise self._missing(above)
        self._entries.append(entry)
        self._walk(above, source, rules)
        if literal and rules.exclude is None and len(self._entries) == start + 1 and pattern != ".":
            raise self._missing(path)
        return Match(above, start, len(self._entries))

    def _left_out(self, path: str, *, wildcard: bool) -> bool:
        """Does --exclude leave out `path`, which a source names? It speaks of what is in a directory, so one that is
        named itself is never left out, only what a wildcard led to, and files."""
        rule = self._exclude
        if rule is None or not (rule.excluded(path) or rule.excluded(posixpath.basename(path))):
            return False
        real = self._tree.real(path)
        if real is None or wildcard:
            return real is not None
        return not stat.S_ISDIR(self._tree.root.stat(real, follow=False).st_mode)

    def _kept(self, rules: Below, top: str) -> Judge:
        """Do --exclude and --parents let through what lies below directory `top`?"""

        def judge(path: str, is_dir: bool) -> bool | None:
            relative = path[len(top) :].lstrip("/")
            if not self._tree.there(path, is_dir=is_dir):
                return False
            if rules.takes(relative):
                return True
            return None if is_dir and rules.may_take_in(relative) else False

        return judge

    def _walk(self, path: str, source: str, rules: Below) -> None:
        """Append what is below a directory: the entries of each directory adjacent, sorted, parents first."""
        kept, known = self._kept(rules, source), dict[str, bool]()
        pending = [(path, source)]
        while pending:
            path, source = pending.pop()
            below: list[tuple[str, str]] = []
            with self._tree.scan(source) as (fd, found):
                for item in sorted(found, key=_name):
                    inner = join(source, item.name)
                    is_dir = item.is_dir(follow_symlinks=False)
                    if not (self._tree.holds(inner, kept, known) if is_dir else kept(inner, False)):
                        continue
                    named = inner if path == source else join(path, item.name)
                    regular = item.is_file(follow_symlinks=False)
                    entry = self._entry(named, inner, item.name, fd, regular=regular)
                    if entry is not None:
                        self._entries.append(entry)
                        if entry.type == "dir":
                            below.append((entry.path, inner))
            pending.extend(reversed(below))

    def _entry(self, path: str, source: str, name: str, directory: int, *, regular: bool) -> Entry | None:
        """The entry of `name` in an open directory; None for a socket. Raises InputError when it went away."""
        digest: Digest | None = None
        target = ""
        try:
            if regular and self._hash_files:
                info, digest = _hash(name, directory)
            else:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(name, dir_fd=directory)
        except OSError as error:
            if error.errno in GONE:
                raise changed(path) from None
            raise OSError(error.errno, error.strerror, printable(source)) from None
        kind = _TYPES.get(stat.S_IFMT(info.st_mode))
        if kind is None:
            return None
        mode = stat.S_IMODE(info.st_mode)
        size = info.st_size if kind == "file" else 0
        device = info.st_rdev if kind in {"char", "block"} else 0
        if self._op.from_context:
            return Entry(path, source, kind, mode, size, digest, target, device=device)
        link = (info.st_dev, info.st_ino) if info.st_nlink > 1 and kind != "dir" else None
        xattrs: tuple[tuple[str, bytes], ...] = ()
        if kind in {"file", "dir"}:  # listxattr(2) takes no directory descriptor
            xattrs = tuple(read_xattrs(f"/proc/self/fd/{directory}/{name}", KEPT).items())
        return Entry(path, source, kind, mode, size, digest, target, info.st_uid, info.st_gid, device, xattrs, link)

def _name(item: os.DirEntry[str]) -> str:
    return item.name


def _linked(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """`entries`, with links among them only: other names of a file may not matter, as they need not be here."""
    names: dict[tuple[int, int], set[str]] = {}
    for entry in entries:
        if entry.link is not None:
            names.setdefault(entry.link, set()).add(entry.source)
    return tuple(
        replace(entry, link=None) if entry.link is not None and len(names[entry.link]) == 1 else entry
        for entry in entries
    )


def _hash(name: str, directory: int) -> tuple[os.stat_result, Digest]:
    """Metadata and digest of one open: what is hashed is what was looked at."""
    fd = os.open(name, _FILE_FLAGS, dir_fd=directory)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no longer a regular file")
        data = os.read(fd, min(info.st_size, CHUNK) + 1)
        seen, size = hashlib.sha256(data), len(data)
        if info.st_size >= CHUNK:  # for a smaller file one short read is its end
            while data:
                data = os.read(fd, CHUNK)
                seen.update(data)
                size += len(data)
        if size != info.st_size:
            raise FileNotFoundError(errno.ENOENT, "its size changes")
    finally:
        os.close(fd)
    return info, Digest("sha256:" + seen.hexdigest())
