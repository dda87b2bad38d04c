"""The layer of a COPY, ADD or WORKDIR: planned over the base, then written once.

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
- Directories of the base that lie above what is copied are in the layer too, as the base has them, time included.
- With --link the base is taken for empty.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from engine.errors import DiskError, InputError
from engine.graph import Copy, InlineFile
from engine.ops.chmod import parse_chmod
from engine.ops.compose import write
from engine.ops.layer import Directory, Inode, Tree, need
from engine.ops.origin import Origin
from engine.ops.rootfs import RootDir
from engine.ops.selection import Entry, Match, Selection, printable
from engine.ops.unpack import Archive, is_archive, plan_archive
from engine.ops.users import directory_owner, resolve_owner
from storage.interfaces.layers import LayerWriter, Look


def copy_layer(
    op: Copy,
    selection: Selection,
    source: Path | None,
    base: Path | None,
    begin: Callable[[], LayerWriter],
    *,
    now_ns: int,
    users: Path | None = None,
) -> int:
    """Write the layer that copies `selection` from the tree at `source` (None when there are only inline files) over
    the root at `base` (None for an empty one); returns the bytes of its files.

    `begin` gives the writer, once it is known what to write. Where the selection has digests, what is copied is
    checked against them. `now_ns`: the time of what has no source; `users`: the root whose users --chown may name,
    `base` by default. Blocking. Raises InputError (the destination cannot be; a context file changed; a user that the
    image does not know; a malformed archive) and DiskError; nothing of the layer stays then.
    """
    with ExitStack() as stack:
        try:
            root = stack.enter_context(RootDir(base)) if base else None
            tree = stack.enter_context(Tree(root))
            origin = stack.enter_context(Origin(source)) if source else None
            owner = None
            if op.chown:
                known = stack.enter_context(RootDir(users)) if users else root
                owner = resolve_owner(known, op.chown)
            planner = _Planner(op, tree, origin, owner, now_ns)
            planner.run(selection)
            return write(tree, planner.archives, origin, begin)
        except OSError as error:
            raise _understood(error, op.dest) from error


def directory_layer(
    path: str, base: Path | None, begin: Callable[[], LayerWriter], *, user: str = "", now_ns: int
) -> int:
    """Write the layer in which directory `path` and its parents are made, 0755 of `user` (root by default), where the
    root at `base` lacks them; returns 0, the bytes of its files. Blocking. Raises InputError when something else is in
    the way, and DiskError."""
    with ExitStack() as stack:
        try:
            root = stack.enter_context(RootDir(base)) if base else None
            tree = stack.enter_context(Tree(root))
            tree.make(path, Look(0o755, *directory_owner(root, user), now_ns))
            return write(tree, (), None, begin)
        except OSError as error:
            raise _understood(error, path) from error


class _Planner:
    def __init__(
        self, op: Copy, tree: Tree, origin: Origin | None, owner: tuple[int, int] | None, now_ns: int
    ) -> None:
        self._op = op
        self._tree = tree
        self._origin = origin
        self._owner = owner
        self._now_ns = now_ns
        self._chmod = parse_chmod(op.chmod)
        self._links: dict[tuple[int, int], Inode] = {}
        self.archives: list[Archive] = []

    def run(self, selection: Selection) -> None:
        """Plan everything."""
        op = self._op
        wanted = max(len(op.sources), len(selection.matches)) + len(op.files)
        if wanted > 1 and not self._is_directory():
            raise InputError(
                f"destination {op.dest!r} must be a directory: several files are copied to it",
                hint=f"end it with a slash: {op.dest}/",
            )
        for match in selection.matches:
            entry = selection.entries[match.start]
            self._links.clear()
            if entry.type == "dir":
                self._copy_tree(selection, match)
            else:
                self._copy_single(entry, posixpath.basename(match.path))
        for file in op.files:
            self._inline(file)

    # ---------------------------------------------------------------- where to

    def _is_directory(self) -> bool:
        return self._op.dest.endswith("/") or self._tree.is_directory(self._op.dest)

    def _make(self) -> Directory:
        """The destination, when it is a directory."""
        return self._tree.make(self._op.dest, self._made())

    def _made(self) -> Look:
        return Look(0o755, *(self._owner or (0, 0)), self._now_ns)

    def _locate(self, name: str) -> tuple[Directory, str]:
        """Directory and name for a single file called `name`: below the destination if that is a directory."""
        if self._op.dest.endswith("/"):
            return self._make(), name
        try:
            at, last, found = self._tree.locate(self._op.dest, make=self._made())
        except NotADirectoryError as error:  # of the directories above, that is
            raise NotADirectoryError(error.errno, error.strerror, posixpath.dirname(self._op.dest)) from None
        return (found, name) if isinstance(found, Directory) else (at, last)

    # ---------------------------------------------------------------- what

    def _copy_tree(self, selection: Selection, match: Match) -> None:
        """The contents of a directory."""
        top = self._make()
        top.time = self._time(selection.entries[match.start])
        need(top)
        made = {"": top}
        for entry in selection.entries[match.start + 1 : match.end]:
            path = match.relative(entry)
            above, _, name = path.rpartition("/")
            if entry.type == "dir":
                made[path] = self._directory(entry, made[above], name)
            else:
                self._put(made[above], name, entry)

    def _copy_single(self, entry: Entry, name: str) -> None:
        if not (self._op.unpack and entry.type == "file" and self._unpacked(entry)):
            self._put(*self._locate(name), entry)

    def _unpacked(self, entry: Entry) -> bool:
        """Plan what is in the file if it is an archive: say whether it was one. The destination is a directory then."""
        assert self._origin is not None
        with open(self._origin.open(entry)[0], "rb") as file:  # noqa: PTH123  a descriptor has no Path
            if not is_archive(file):
                return False
            archive = plan_archive(file, self._tree, self._make(), owner=self._owner, now_ns=self._now_ns)
        archive.entry = entry
        archive.check()
        self.archives.append(archive)
        return True

    def _put(self, at: Directory, name: str, entry: Entry) -> None:
        """Plan `entry`, which is no directory, as `name` in `at`."""
        inode = self._links.get(entry.link) if entry.link is not None else None
        if inode is None:
            inode = self._inode(entry)
            if entry.link is not None:
                self._links[entry.link] = inode
        self._name(at, name, inode)

    def _name(self, at: Directory, name: str, inode: Inode) -> None:
        if isinstance(self._tree.find(at, name), Directory):
            raise InputError(
                f"cannot replace directory {printable(name)!r} with a file",
                hint="remove the directory in the image first",
            )
        self._tree.put(at, name, inode)

    def _inode(self, entry: Entry) -> Inode:
        assert entry.type != "dir"
        if entry.type == "file":
            return Inode("file", self._look(entry, 0), entry)  # its time is taken when it is opened
        if entry.type == "char" and entry.device == 0:
            raise InputError(
                f"cannot copy device {printable(entry.path)!r}: in a layer, number 0:0 says that a file is removed",
                hint="leave it out",
            )
        return Inode(entry.type, self._look(entry, self._time(entry)), None, entry.target, entry.device)

    def _directory(self, entry: Entry, at: Directory, name: str) -> Directory:
        look = self._look(entry, self._time(entry))
        found = self._tree.find(at, name)
        if found is None:
            return self._tree.new_directory(at, name, look)
        if not isinstance(found, Directory):
            where = posixpath.join(at.path, name)
            raise InputError(
                f"cannot copy directory {printable(entry.path)!r} over {printable(where)!r}: not a directory",
                hint="remove it in the image first, or copy to the directory that it points to",
            )
        found.look, found.time = look, None
        need(found)
        return found

    def _look(self, entry: Entry, time: int) -> Look:
        uid, gid = self._owner or (entry.uid, entry.gid)
        xattrs = {os.fsencode(key): value for key, value in entry.xattrs} if entry.xattrs else {}
        mode = entry.mode if self._chmod is None else self._chmod.apply(entry.mode, is_dir=entry.type == "dir")
        return Look(mode, uid, gid, time, xattrs)

    def _time(self, entry: Entry) -> int:
        assert self._origin is not None  # there are entries
        return self._origin.time(entry)

    def _inline(self, file: InlineFile) -> None:
        """A heredoc: 0644, below a destination that is a directory under its delimiter's name."""
        data = file.data.encode("utf-8", "surrogateescape")
        look = self._look(Entry(file.name, "", "file", 0o644), self._now_ns)
        self._name(*self._locate(posixpath.basename(file.name)), Inode("file", look, data))


def _understood(error: OSError, path: str) -> Exception:
    where = printable(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return InputError(f"{where!r} in the image is not a directory", hint="choose another destination")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{where[:80]!r}… cannot be a file's name: it is too long", hint="choose a shorter one")
    if error.errno == errno.ELOOP:
        return InputError(f"{where!r} in the image: too many symbolic links", hint="choose another destination")
    return DiskError.of(error, f"copying to {path}")
