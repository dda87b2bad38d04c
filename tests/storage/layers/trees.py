"""Comparing directory trees, and tars made by hand, for tests of layers and snapshots."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

from storage.digest import Digest, sha256

TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = TAR + "+gzip"


def facts(root: Path, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Everything that a tree is, by path: type and mode, owner, content, time in ns, link, attributes, and the
    first name of the same inode. The time of the root is left out: making anything in it changes it."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, bytes] = {}
    top = os.fsencode(root)
    for directory, below, _ in os.walk(top):
        below.sort()
        for name in [b".", *sorted(os.listdir(directory))]:  # noqa: PTH208 - bytes
            path = directory if name == b"." else directory + b"/" + name
            status = os.lstat(path)
            key = path[len(top) :] or b"/"
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                content = sha256(Path(os.fsdecode(path)).read_bytes())
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)  # noqa: PTH115 - bytes
            elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
                content = status.st_rdev
            first = inodes.setdefault(status.st_ino, key) if kind != stat.S_IFDIR else key
            found[key] = (
                oct(status.st_mode), status.st_uid, status.st_gid, content, first,
                status.st_mtime_ns if times and key != b"/" else 0, xattrs(path),
            )  # fmt: skip
    return found


def names(directory: Path) -> list[str]:
    """What is in `directory`, sorted."""
    return sorted(path.name for path in directory.iterdir())


def xattrs(path: bytes | Path) -> dict[str, bytes]:
    """Extended attributes, without those that overlay keeps for itself."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith("trusted.overlay.") or name == "trusted.overlay.opaque"
    }


def members(tar: bytes) -> list[str]:
    """Names in a tar, in order, as another implementation reads them."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def gnu_tar(directory: Path, *options: str) -> bytes:
    """All of `directory` as GNU tar packs it."""
    command = ["tar", "-C", str(directory), "--numeric-owner", "--sort=name", *options, "-cf", "-", "."]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def gnu_untar(tar: bytes, directory: Path) -> None:
    """Unpack as GNU tar does as root, attributes included."""
    directory.mkdir()
    command = ["tar", "-C", str(directory), "--numeric-owner", "--xattrs", "--xattrs-include=*",
               "--delay-directory-restore", "-xpf", "-"]  # fmt: skip
    subprocess.run(command, check=True, input=tar)


def diff_id(tar: bytes) -> Digest:
    """The diff ID of a layer."""
    return sha256(tar)


Member = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def make_tar(*entries: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of `entries`, each with its data if it has some."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for entry in entries:
            info, data = entry if isinstance(entry, tuple) else (entry, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A regular file, mode 0644."""
    return info(name, tarfile.REGTYPE, **fields), data


def info(name: str, kind: bytes = tarfile.DIRTYPE, **fields: object) -> tarfile.TarInfo:
    """A member without data; directories by default, mode 0755."""
    made = tarfile.TarInfo(name)
    made.type = kind
    made.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    made.mtime = 1_700_000_000
    for key, value in fields.items():
        setattr(made, key, value)
    return made
