"""What a simulated process mounts: EROFS images, overlays, and memory. Mounts are gone with the process."""

from __future__ import annotations

import errno
import os as real_os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.errors import DiskError
from storage.layers.erofs.header import Image
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.erofs.tree import LayerTree, Node
from storage.tar.reader import TarReader
from storage.tar.rules import OPAQUE_XATTR
from tests.simulation.inodes import Inode, directory
from tests.simulation.paths import DiskPath
from tests.simulation.processes import Mounted, Process, locate

_REDIRECTING = b"trusted.overlay."


class SimulatedMounts(ErofsMounts):
    """The images that a process has mounted, on a kernel that mounts the file itself."""

    def __init__(self, tmp: Path, owner: str) -> None:
        super().__init__(tmp, owner)
        self._way.append(lambda image, target: mount(str(image), str(target), "erofs"))


def mount(source: str, target: str, kind: str | None) -> None:
    """mount(2) of an EROFS image that lies on the disk, or of memory. Raises OSError."""
    process, point = _point(target)
    process.fault("mount", point.where, "EIO")
    if kind == "erofs":
        point.top = _of_image(DiskPath(source))
    elif kind == "tmpfs":
        point.read_only = False
    else:
        raise OSError(errno.ENODEV, f"no simulated file system is called {kind}", target)
    process.mounts[process.find(point.where)] = point


def mount_overlay(
    target: Path, lowers: Sequence[Path], upper: Path | None = None, work: Path | None = None
) -> None:
    """See storage.overlay.mount_overlay."""
    if locate(target) is None:
        from storage.overlay import mount_overlay as real

        real(target, lowers, upper, work)
        return
    process, point = _point(str(target))
    try:
        process.fault("mount", point.where, "EIO")
        covered = [process.find(_names(lower)) for lower in dict.fromkeys(reversed(lowers))]
        above = process.find(_names(upper)) if upper is not None else None
        point.top = _merged(covered, above, {})
    except OSError as error:
        raise DiskError.of(error, f"mounting an overlay of {len(lowers)} layers") from error
    if above is not None:
        changes = _Changes(process, point.top)
        point.read_only = False
        point.leave = lambda: changes.gather(above, changes.before, point.top)
    process.mounts[process.find(point.where)] = point


def _names(path: Path) -> tuple[bytes, ...]:
    found = locate(path)
    if found is None:
        raise OSError(errno.ENOENT, "not on this disk", str(path))
    return found[1]


def _point(target: str) -> tuple[Process, Mounted]:
    found = locate(target)
    assert found is not None, "the caller looked"
    process, where = found
    process.find(where)
    return process, Mounted(directory(0o700), where)


# ---------------------------------------------------------------- images


def _of_image(path: DiskPath) -> Inode:
    """The tree of the layer that the image holds."""
    image = Image.open(path)
    tree = LayerTree()
    with image.open_tar() as source:
        for entry in TarReader(source):
            tree.add(entry)
    tree.finish()
    at, size = image.tar
    tar = path.read_bytes()[at : at + size]
    return _inode(tree.root, tar, {})


def _inode(node: Node, tar: bytes, made: dict[int, Inode]) -> Inode:
    if id(node) in made:
        made[id(node)].links += 1
        return made[id(node)]
    inode = made[id(node)] = Inode(
        node.mode, node.mtime, node.uid, node.gid, xattrs={name: bytes(value) for name, value in node.xattrs}
    )
    if stat.S_ISDIR(node.mode):
        inode.entries = {name: _inode(entry, tar, made) for name, entry in node.entries.items()}
    elif stat.S_ISREG(node.mode):
        assert isinstance(node.data, int), "sparse layers are for the real stores' tests"
        inode.data = bytearray(tar[node.data : node.data + node.size])
    elif stat.S_ISLNK(node.mode):
        assert isinstance(node.data, bytes)
        inode.data = bytearray(node.data)
    elif isinstance(node.data, int):
        inode.rdev = node.data
    return inode


# ---------------------------------------------------------------- overlays


def _is_whiteout(inode: Inode) -> bool:
    return stat.S_ISCHR(inode.mode) and inode.rdev == 0


def _is_opaque(inode: Inode) -> bool:
    return inode.xattrs.get(OPAQUE_XATTR) == b"y"


def _merged(layers: Sequence[Inode], upper: Inode | None, made: dict[Inode, Inode]) -> Inode:
    """The directory that `layers`, the uppermost first, make below `upper`: new inodes, but for their content."""
    stack = [*([upper] if upper is not None else []), *layers]
    if not stack:
        return directory()
    top = _copy(stack[0], made)
    top.entries = {}
    seen = []
    for layer in stack:
        seen.append(layer)
        if _is_opaque(layer) and layer is not stack[-1]:
            break
    names = dict.fromkeys(name for layer in seen for name in layer.entries)
    for name in names:
        found: list[Inode] = []
        for layer in seen:
            entry = layer.entries.get(name)
            if entry is None:
                continue
            if _is_whiteout(entry) or (found and not entry.is_directory):
                break
            found.append(entry)
            if not entry.is_directory:
                break
        if found:
            top.entries[name] = _merged(found, None, made) if found[0].is_directory else _copy(found[0], made)
    return top


def _copy(inode: Inode, made: dict[Inode, Inode]) -> Inode:
    if not inode.is_directory and inode in made:
        return made[inode]
    copy = made[inode] = Inode(
        inode.mode, inode.mtime, inode.uid, inode.gid, inode.rdev, bytearray(inode.data), links=inode.links,
        xattrs={name: value for name, value in inode.xattrs.items() if not name.startswith(_REDIRECTING)},
    )  # fmt: skip
    return copy


class _Changes:
    """What is changed in an overlay from now on, as the kernel leaves it in the upper."""

    def __init__(self, process: Process, top: Inode) -> None:
        self._files = process.machine.files
        self._made: dict[Inode, Inode] = {}
        self._was: dict[Inode, Inode] = {}
        self.before = self._remember(top)

    def _remember(self, inode: Inode) -> Inode:
        copy = _copy(inode, {})
        self._was[copy] = inode
        copy.entries = {name: self._remember(entry) for name, entry in inode.entries.items()}
        return copy

    def gather(self, upper: Inode, before: Inode, after: Inode) -> None:
        """Write into directory `upper` how `after`, the same directory as `before`, differs."""
        upper.mode, upper.uid, upper.gid, upper.mtime = after.mode, after.uid, after.gid, after.mtime
        upper.xattrs.update(after.xattrs)
        for name in before.entries.keys() - after.entries.keys():
            self._put(upper, name, Inode(stat.S_IFCHR, links=0))
        for name, now in after.entries.items():
            was = before.entries.get(name)
            if was is None or self._was[was] is not now:
                self._add(upper, name, now)
            elif now.is_directory:
                if self._differ(was, now):
                    self.gather(self._put(upper, name, directory()), was, now)
            elif _look(was) != _look(now):
                self._add(upper, name, now)

    def _differ(self, was: Inode, now: Inode) -> bool:
        if _look(was) != _look(now) or was.entries.keys() != now.entries.keys():
            return True
        pairs = ((old, now.entries[name]) for name, old in was.entries.items())
        return any(self._was[old] is not new or self._differ(old, new) for old, new in pairs)

    def _add(self, upper: Inode, name: bytes, now: Inode) -> None:
        if now in self._made:
            self._files.change((upper, name, self._made[now]))
            return
        new = self._made[now] = self._put(upper, name, _copy(now, {}))
        new.links = 1
        if now.is_directory:
            new.xattrs[OPAQUE_XATTR] = b"y"
            for entry, inode in now.entries.items():
                self._add(new, entry, inode)

    def _put(self, upper: Inode, name: bytes, inode: Inode) -> Inode:
        self._files.change((upper, name, inode))
        return inode


def _look(inode: Inode) -> tuple[Any, ...]:
    return inode.mode, inode.uid, inode.gid, inode.rdev, inode.mtime, bytes(inode.data), inode.xattrs


def content(path: Path) -> dict[str, bytes]:
    """Regular files below a directory of a simulated disk (a lower, a view), by path."""
    found = locate(path)
    assert found is not None
    return _files(found[0].find(found[1]))


def merged_content(lowers: Sequence[Path]) -> dict[str, bytes]:
    """Regular files that an overlay of `lowers` (bottom first) shows, by path. Nothing is mounted."""
    places = [locate(lower) for lower in reversed(lowers)]
    return _files(_merged([place[0].find(place[1]) for place in places if place is not None], None, {}))


def _files(top: Inode) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    waiting = [("", top)]
    while waiting:
        name, inode = waiting.pop()
        if inode.is_directory:
            waiting += [(f"{name}/{real_os.fsdecode(key)}", entry) for key, entry in inode.entries.items()]
        elif inode.is_file:
            out[name.removeprefix("/")] = bytes(inode.data)
    return dict(sorted(out.items()))
