"""What a case is, and the context that all cases have."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OLD = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """One build. `text` gets `FROM @base` in front when it has no FROM; `@base`, `@rich` and `@triggers` are images.

    `lacks`: oracle → what it does not know. `files` are put into the context too (`None` takes one away).
    """

    text: str
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def dockerfile(self) -> str:
        """The whole text."""
        text = self.text if "FROM" in self.text else f"FROM @base\n{self.text}"
        return text if text.endswith("\n") else text + "\n"


def no_buildah(why: str, text: str, **more: object) -> Case:
    """A case that only BuildKit knows."""
    return Case(text, lacks={"buildah": why}, **more)  # type: ignore[arg-type]


def lay_context(context: Path, files: Mapping[str, str | bytes | None]) -> None:
    """Make the context that every case has, with `files`. All times in it are OLD."""
    for name in ("one.txt", "two.txt", "[odd] name.txt", "tree/a.txt", "tree/sub/deep/c.txt", "tree/.hidden",
                 "sibling/file", "over/file"):  # fmt: skip
        _write(context / name, name)
    for name, mode in (("exec.sh", 0o755), ("tree/b.txt", 0o400), ("setuid", 0o4755), ("world", 0o666)):
        _write(context / name, name, mode)
    _write(context / "owned", "owned")
    os.chown(context / "owned", 77, 78)
    (context / "tree/sub").chmod(0o710)
    (context / "tree").chmod(0o750)
    (context / "empty").mkdir()
    for name, target in (("link", "one.txt"), ("linkdir", "tree"), ("tree/link", "../one.txt"), ("tree/gone", "x")):
        (context / name).symlink_to(target)
    os.link(context / "tree/a.txt", context / "tree/hard")
    for name, how in (("plain.tar", "w"), ("gz.tgz", "w:gz"), ("bz.tar.bz2", "w:bz2"), ("xz.tar.xz", "w:xz")):
        (context / name).write_bytes(archive(how))
    for name, data in files.items():
        if data is None:
            (context / name).unlink()
        else:
            _write(context / name, data)
    for path in sorted(context.rglob("*")):
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def archive(mode: str) -> bytes:
    """A tar with a directory, files with owners and modes, a link of each kind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, kind, permissions, rest in (
            ("top", tarfile.DIRTYPE, 0o751, ""),
            ("top/file", tarfile.REGTYPE, 0o640, "content"),
            ("top/set", tarfile.REGTYPE, 0o4755, "set"),
            ("top/hard", tarfile.LNKTYPE, 0o640, "top/file"),
            ("top/soft", tarfile.SYMTYPE, 0o777, "file"),
            ("top/fifo", tarfile.FIFOTYPE, 0o600, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, permissions, 5, 6, 1_400_000_000
            if kind == tarfile.REGTYPE:
                info.size = len(rest)
                tar.addfile(info, io.BytesIO(rest.encode()))
            else:
                info.linkname = rest
                tar.addfile(info)
    return out.getvalue()


def archive_with_xattrs(**values: str) -> bytes:
    """A tar with one file, `f`, that has these extended attributes (`_` is written for `.`)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("f")
        info.size = 1
        info.pax_headers = {f"SCHILY.xattr.{name.replace('_', '.')}": value for name, value in values.items()}
        tar.addfile(info, io.BytesIO(b"f"))
    return out.getvalue()


def archive_of_a_root() -> bytes:
    """A tar with an entry for `.`, as `tar -c .` writes it, and one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, mode in ((".", tarfile.DIRTYPE, 0o2700), ("./f", tarfile.REGTYPE, 0o640)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, 5, 6, OLD
            tar.addfile(info)
    return out.getvalue()


def _write(path: Path, data: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)
