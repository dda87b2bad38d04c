"""COPY and ADD compared with `buildah bud`, file by file, over one table of instructions."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.graph import Copy
from engine.ops.select import select
from tests.differential.oracles import Buildah, buildah
from tests.engine.ops.layers import copy_into

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

OLD = 1_500_000_000
BASE, STAGE = "localhost/base", "localhost/stage"

# Groups are built in one go, to keep this quick; the destinations of a group are its own.
SAME = {
    "files": [
        "COPY one.txt /new.txt",
        "COPY one.txt /dir/",
        "COPY one.txt /missing/dir/",
        "COPY one.txt /missing/name",
        "COPY one.txt /existing",
        "COPY one.txt two.txt /many/",
        "COPY one.txt two.txt /existing/sub",
        "COPY one.txt /existing/file",
        "COPY /one.txt /abs/",
        "COPY ./tree/../one.txt /dots/",
        "COPY ../one.txt /outside",
        "COPY tree/../../two.txt /outside2",
        "COPY one.txt /one.txt/",
    ],
    "directories": [
        "COPY tree /tree",
        "COPY tree /tree-slash/",
        "COPY tree/ /existing/",
        "COPY tree/. /existing/sub",
        "COPY overlap /existing",
        "COPY empty-dir /made",
        "COPY tree /dangling",
    ],
    "wildcards": [
        "COPY *.txt /globbed/",
        "COPY tr?e/[a-b]* /classes/",
        "COPY t*/sub /descended/",
        "COPY nomatch* one.txt /some/",
        "COPY s?b* /sibling/",
    ],
    "links": [
        "COPY link.txt /followed",
        "COPY link.txt /named/",
        "COPY linkdir /followed-dir",
        "COPY linkdir/a.txt /through/",
        "COPY link* /globbed/",
        "COPY one.txt /image-link/",
        "COPY one.txt /image-link/below/x",
        "COPY links /kept-links",
    ],
    "owners and modes": [
        "COPY --chown=12:34 tree /owned",
        "COPY --chown=12:34 one.txt /parents/deep/",
        "COPY --chown=app:staff one.txt /names/",
        "COPY --chown=7 one.txt /number/",
        "COPY --chmod=0600 one.txt /moded/",
        "COPY --chmod=4755 one.txt /setuid",
        "COPY --chmod=0640 tree /moded-tree",
        "COPY exec.sh /bits/",
    ],
    "stages": [
        f"COPY --from={STAGE} /data /data",
        f"COPY --from={STAGE} /data/owned.txt /x/",
        f"COPY --from={STAGE} data/ln data/owned.txt data/sub/hard /single/",
        f"COPY --from={STAGE} --chown=5:6 /data /given",
    ],
    "archives": [
        "ADD plain.tar /unpacked",
        "ADD archive.tar.gz /gzip/",
        "ADD archive.tar.bz2 /bzip2/",
        "ADD archive.tar.xz /existing/",
        "ADD not-an-archive.tar.gz /kept/",
        "ADD --chmod=777 archive.tar.gz /unmoded/",
        "ADD one.txt tree /added/",
    ],
}
REFUSED = ["COPY missing /x", "COPY tree /existing/file", "COPY one.txt /existing/file/", "COPY links/dangling /x"]


@dataclass(frozen=True)
class Deviation:
    """Where we differ from buildah. `ours`: path → text, link target, mode, owner or links; or the text of an error."""

    line: str
    reason: str
    ours: dict[str, str] | str


DEVIATIONS = [
    Deviation(
        "COPY setuid.bin /bits/",
        "reference: 'File permissions are preserved'; buildah drops setuid",
        {"bits/setuid.bin": "-rwsr-xr-x"},
    ),
    Deviation(
        "ADD --chown=9:9 plain.tar /unpacked/",
        "reference: --chown 'sets ownership of copied files'; BuildKit has it for archives too, buildah does not",
        {"unpacked/top/file": "9:9"},
    ),
    Deviation(
        "COPY hard /hard",
        "a context's cache key does not tell hard links from copies, so the result must not; xattrs likewise",
        {"hard/a": "1 link", "hard/b": "1 link"},
    ),
    Deviation(
        "COPY over-link /existing",
        "BuildKit: a directory does not replace a symlink (reference: an error over what is no directory)",
        "not a directory",
    ),
    Deviation(
        "COPY over-file /existing",
        "reference: 'if you're trying to copy a directory onto an existing file, an error is raised'",
        "not a directory",
    ),
    Deviation(
        "COPY over-dir /existing",
        "reference: 'If the source is a file and a directory with the same name exists […], an error is raised'",
        "cannot replace directory 'sub' with a file",
    ),
    Deviation(
        "COPY one.txt /file-link",
        "BuildKit resolves the destination, its last component too; buildah replaces the link",
        {"file-link": "-> existing/file", "existing/file": "one.txt"},
    ),
    Deviation(
        "COPY one.txt /dangling",
        "as above; buildah makes a directory of the link's missing target",
        {"dangling": "-> /nodir/x", "nodir/x": "one.txt"},
    ),
    Deviation(
        "COPY one.txt two.txt /nodir",
        "reference: 'If you specify multiple source files, […] the destination must be a directory'",
        "must be a directory",
    ),
    Deviation("COPY o*.txt t*.txt /nodir", "as above, by wildcard", "must be a directory"),
    Deviation(
        "COPY nomatch* /nodir/",
        "BuildKit (AllowEmptyWildcard): wildcards may match nothing, and nothing is copied; buildah wants one match",
        {},
    ),
]


def _tree(root: Path, *, stage: bool = False) -> None:
    def file(name: str, text: str = "", mode: int = 0o644) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or name)
        path.chmod(mode)

    root.mkdir(parents=True)
    if stage:
        file("data/owned.txt")
        file("data/sub/inner.txt")
        os.chown(root / "data/owned.txt", 100, 200)
        os.chown(root / "data/sub", 100, 200)
        (root / "data").chmod(0o700)
        (root / "data/ln").symlink_to("owned.txt")
        os.link(root / "data/owned.txt", root / "data/sub/hard")
        os.setxattr(root / "data/sub/inner.txt", "user.note", b"kept")
        return
    file("one.txt")
    file("two.txt")
    file("exec.sh", mode=0o755)
    file("setuid.bin", mode=0o4755)
    file("tree/a.txt")
    file("tree/b.txt", mode=0o400)
    file("tree/sub/deep/c.txt")
    (root / "tree/sub").chmod(0o710)
    (root / "tree").chmod(0o750)
    file("sibling/file")
    file("overlap/sub/new", mode=0o600)
    (root / "overlap/sub").chmod(0o701)
    (root / "links").mkdir()
    (root / "links/dangling").symlink_to("/nowhere")
    (root / "links/dir").symlink_to("../tree")
    file("over-link/link/new")
    file("over-file/file/new")
    file("over-dir/sub")
    file("hard/a")
    os.link(root / "hard/a", root / "hard/b")
    os.setxattr(root / "hard/a", "user.note", b"dropped")
    (root / "tree/rel").symlink_to("a.txt")
    (root / "empty-dir").mkdir()
    (root / "link.txt").symlink_to("one.txt")
    (root / "linkdir").symlink_to("tree")
    file("not-an-archive.tar.gz", "no archive")
    for name in ("plain.tar", "archive.tar.gz", "archive.tar.bz2", "archive.tar.xz"):
        _archive(root / name)


def _archive(path: Path) -> None:
    compression = path.suffix[1:] if path.suffix != ".tar" else ""
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for member, kind, text in (
            ("top", tarfile.DIRTYPE, ""), ("top/file", tarfile.REGTYPE, "hello"), ("top/ln", tarfile.SYMTYPE, "file"),
            ("top/hard", tarfile.LNKTYPE, "top/file"), ("sub/merged", tarfile.REGTYPE, "from the archive"),
        ):  # fmt: skip
            info = tarfile.TarInfo(member)
            info.type, info.mtime, info.uid, info.gid = kind, OLD, 41, 42
            info.mode = 0o2755 if kind == tarfile.DIRTYPE else 0o640
            if kind == tarfile.REGTYPE:
                info.size = len(text)
            else:
                info.linkname = text
            archive.addfile(info, io.BytesIO(text.encode()))


def _base(root: Path) -> None:
    (root / "existing/sub").mkdir(parents=True)
    (root / "existing/file").write_text("old")
    (root / "existing/sub").chmod(0o711)
    (root / "real").mkdir()
    (root / "image-link").symlink_to("/real")
    (root / "existing/link").symlink_to("/real")
    (root / "file-link").symlink_to("existing/file")
    (root / "dangling").symlink_to("/nodir/x")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:\napp:x:1234:1235::/:\n")
    (root / "etc/group").write_text("root:x:0:\nstaff:x:50:\n")


def _age(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def _facts(root: Path, started: float) -> dict[str, tuple[object, ...]]:
    out: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        kind = stat.filemode(info.st_mode)
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        name = str(path.relative_to(root))
        first = inodes.setdefault(info.st_ino, name) if info.st_nlink > 1 and path.is_file() else ""
        when = "now" if info.st_mtime >= started - 5 else int(info.st_mtime)
        if path.is_dir() and not path.is_symlink():
            when = "-"
        out[name] = (kind, info.st_uid, info.st_gid, content, first, when)
    return out


@dataclass(frozen=True)
class World:
    """`ctx`, `stage` and `base` trees in `work`, the latter two also as images of a buildah with a store of its own."""

    work: Path
    buildah: Buildah

    def bud(self, file: str, *args: str) -> str:
        """What buildah says when it does not build `file`, "" when it does."""
        command = [*self.buildah.command, "bud", "--isolation", "chroot", "-f", file, *args]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, timeout=120, check=False)
        return done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    work = tmp_path_factory.mktemp("differential")
    _tree(work / "ctx")
    _tree(work / "stage", stage=True)
    (work / "base").mkdir()
    _base(work / "base")
    with buildah() as own:
        made = World(work, own)
        for name, image in (("base", BASE), ("stage", STAGE)):
            _age(work / name)
            subprocess.run(["tar", "--xattrs", "-cf", work / f"{name}.tar", "-C", work / name, "."], check=True)
            (work / f"{name}.Dockerfile").write_text(f"FROM scratch\nADD {name}.tar /\n")
            if said := made.bud(f"{name}.Dockerfile", "-t", image, "."):
                pytest.skip(f"buildah does not work here: {said.strip()[-300:]}")
        _age(work / "ctx")
        yield made


def _theirs(world: World, lines: list[str], out: Path) -> str:
    (world.work / "Dockerfile").write_text("\n".join([f"FROM {BASE}", *lines]) + "\n")
    return world.bud("Dockerfile", "--layers=false", "--pull-never", "-o", f"type=local,dest={out}", "ctx")


def _op(line: str) -> Copy:
    word, *rest = shlex.split(line)
    flags = dict(item[2:].split("=", 1) for item in rest if item.startswith("--"))
    *sources, dest = [item for item in rest if not item.startswith("--")]
    return Copy(
        tuple(sources), dest, flags.get("chown", ""), flags.get("chmod", ""),
        unpack=word == "ADD", from_context="from" not in flags,
    )  # fmt: skip


def _ours(world: World, lines: list[str], out: Path) -> None:
    subprocess.run(["cp", "-a", world.work / "base", out], check=True)
    for op in map(_op, lines):
        source = world.work / ("ctx" if op.from_context else "stage")
        copy_into(op, select(op, source, (), hash_files=op.from_context), source, out, now_ns=time.time_ns())


@pytest.mark.parametrize("group", SAME)
def test_the_same_files_as_buildah(world: World, tmp_path: Path, group: str) -> None:
    started = time.time()
    assert _theirs(world, SAME[group], tmp_path / "theirs") == ""
    _ours(world, SAME[group], tmp_path / "ours")
    assert _facts(tmp_path / "ours", started) == _facts(tmp_path / "theirs", started)


@pytest.mark.parametrize("line", REFUSED)
def test_refused_as_buildah_does(world: World, tmp_path: Path, line: str) -> None:
    assert _theirs(world, [line], tmp_path / "theirs") != ""
    with pytest.raises(InputError):
        _ours(world, [line], tmp_path / "ours")


@pytest.mark.parametrize("case", DEVIATIONS, ids=lambda case: case.line)
def test_where_the_reference_or_buildkit_wins(world: World, tmp_path: Path, case: Deviation) -> None:
    out = tmp_path / "ours"
    if isinstance(case.ours, str):
        with pytest.raises(InputError, match=case.ours):
            _ours(world, [case.line], out)
        return
    _ours(world, [case.line], out)
    for name, expected in case.ours.items():
        path = out / name
        info = path.lstat()
        seen = {stat.filemode(info.st_mode), f"{info.st_uid}:{info.st_gid}"}
        if path.is_symlink():
            seen.add(f"-> {path.readlink()}")
        else:
            seen |= {path.read_text(), f"{info.st_nlink} link"}
        assert expected in seen
    if not case.ours:
        assert _facts(out, 0) == _facts(world.work / "base", 0)
