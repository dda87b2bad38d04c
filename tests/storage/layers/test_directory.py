"""Layers on disk: equal to what GNU tar makes of them, whole or not there, and never outside their own tree."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.digest import sha256
from storage.errors import DiskError, VerificationError
from storage.interfaces.layers import LayerStore
from storage.layers.directory import LAYER_LIMIT, DirectoryLayers
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.layers.snapshots import OverlaySnapshots
from storage.scratch import remove_tree
from tests.storage.layers.trees import (
    TAR,
    Member,
    diff_id,
    facts,
    file,
    gnu_tar,
    gnu_untar,
    info,
    make_tar,
    names,
)
from tests.writeback import FailingWriteBack, watch_flushes

KINDS = ["directory", "erofs"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ownership and devices need root")


@contextmanager
def opened(kind: str, place: Path, owner: str = "b1", limit: int = LAYER_LIMIT) -> Iterator[LayerStore]:
    """A store of each kind; what it mounted is unmounted in the end."""
    mounts = ErofsMounts(place / "mnt", owner)
    try:
        if kind == "erofs":
            yield ErofsLayers(place / "layers", place / "tmp", owner, mounts, limit=limit)
        else:
            yield DirectoryLayers(place / "layers", place / "tmp", owner, limit=limit)
    finally:
        mounts.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def layers(tmp_path: Path, kind: str) -> Iterator[LayerStore]:
    with opened(kind, tmp_path) as store:
        yield store


def unpack(layers: LayerStore, tar: bytes) -> Path:
    layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
    return layers.lower(diff_id(tar))


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def rich_tree(top: Path) -> None:
    """One of everything that a file system has."""
    (top / "usr/lib").mkdir(parents=True)
    (top / "usr/lib/file").write_bytes(os.urandom(100_000))
    (top / "usr/lib/empty").touch()
    os.link(top / "usr/lib/file", top / "zz-hard")
    (top / "link").symlink_to("/usr/lib/nowhere")
    os.link(top / "link", top / "link-of-link", follow_symlinks=False)
    os.mkfifo(top / "pipe")
    os.mknod(top / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(top / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    (top / ("n" * 250)).write_text("long name")
    (top / "grün 雪").write_text("utf-8")
    Path(os.fsdecode(os.fsencode(top) + b"/l\xe4tin\xff")).write_text("not utf-8")
    deep = top
    for number in range(20):
        deep = deep / f"{number:02}{'d' * 40}"
        deep.mkdir()
    (deep / "bottom").write_text("deep")
    with (top / "sparse").open("wb") as out:
        for number in range(10):
            out.seek(number * 1_000_000)
            out.write(b"island %d" % number)
        out.truncate(20_000_000)
    for number, mode in enumerate((0o4755, 0o2755, 0o1777, 0o000, 0o6111)):
        (top / f"mode{number}").write_text("m")
        (top / f"mode{number}").chmod(mode)
    for number, mode in enumerate((0o1777, 0o2775, 0o700, 0o000)):
        (top / f"dir{number}").mkdir()
        (top / f"dir{number}/inside").write_text("i")
        os.chown(top / f"dir{number}", number * 1000, 50 + number)
        (top / f"dir{number}").chmod(mode)
    (top / "owned").write_text("o")
    os.chown(top / "owned", 3_000_000_000, 4_000_000_000)
    os.chown(top / "link", 12, 34, follow_symlinks=False)
    os.setxattr(top / "owned", "user.note", b"\0\xff=\n bytes")
    os.setxattr(top / "usr", "user.dir", b"on a directory")
    os.setxattr(top / "usr/lib/empty", "trusted.mine", b"t")
    subprocess.run(["setcap", "cap_net_raw+ep", top / "mode0"], check=True)
    when = 1_234_567_890_123_456_789
    for directory, folders, files in os.walk(os.fsencode(top), topdown=False):
        for name in [*files, *folders]:
            when += 1_000_000_007
            os.utime(directory + b"/" + name, ns=(when, when), follow_symlinks=False)
    top.chmod(0o751)
    os.chown(top, 5, 6)


@pytest.mark.parametrize(
    "options",
    [("--format=posix", "--sparse"), ("--format=posix",), ("--format=gnu", "--sparse"),
     ("--format=posix", "--sparse", "--sparse-version=0.0"), ("--format=posix", "--sparse", "--sparse-version=0.1")],
    ids=" ".join,
)  # fmt: skip
def test_a_layer_is_laid_out_as_gnu_tar_does(tmp_path: Path, layers: LayerStore, options: tuple[str, ...]) -> None:
    (tmp_path / "source").mkdir()
    rich_tree(tmp_path / "source")
    kept = ("--xattrs", "--xattrs-include=*") if "--format=posix" in options else ()
    tar = gnu_tar(tmp_path / "source", *options, *kept)
    gnu_untar(tar, tmp_path / "oracle")
    lower = unpack(layers, tar)
    assert facts(lower) == facts(tmp_path / "oracle")
    if kept:
        assert facts(lower) == facts(tmp_path / "source")
        assert xattr(lower / "mode0", "security.capability")
    if "--sparse" in options:
        used = subprocess.run(["du", "-sk", tmp_path / "layers"], check=True, capture_output=True, text=True).stdout
        assert int(used.split()[0]) < 1500  # the file of 20 MB has 10 islands


def xattr(path: Path, name: str) -> bytes:
    return os.getxattr(path, name)


# ---------------------------------------------------------------- whiteouts


def test_whiteouts_of_nothing_are_not_seen(tmp_path: Path, layers: LayerStore) -> None:
    """The kernel lists a directory that one layer alone has as it is, unless that is marked."""
    tar = make_tar(info("d"), file("d/.wh.x"), file("d/kept", b"k"), file("new/.wh.y"), file("both/.wh.z"))
    base = unpack(layers, make_tar(info("both"), file("both/z", b"z"), file("both/a", b"a")))
    snapshots = OverlaySnapshots(tmp_path / "snapshots", tmp_path / "tmp", "b1")
    with snapshots.view([base, unpack(layers, tar)]) as view:
        seen = {name: sorted(path.name for path in (view / name).iterdir()) for name in ("d", "new", "both")}
    assert seen == {"d": ["kept"], "new": [], "both": ["a"]}


# ---------------------------------------------------------------- hostile layers


def test_a_file_never_goes_through_a_link_of_its_name(tmp_path: Path, layers: LayerStore) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    lower = unpack(layers, make_tar(info("f", tarfile.SYMTYPE, linkname=str(target)), file("f", b"mine")))
    assert (lower / "f").read_bytes() == b"mine"
    assert target.read_text() == "untouched"


HOSTILE = {
    "a name that leads up": make_tar(file("../evil", b"x")),
    "a name that leads up later": make_tar(info("a"), file("a/../../evil", b"x")),
    "a whiteout that leads up": make_tar(file("../.wh.x")),
    "a whiteout of the parent": make_tar(file("a/.wh...")),
    "a whiteout of the directory": make_tar(file("a/.wh..")),
    "a whiteout of nothing": make_tar(file("a/.wh.")),
    "a hard link out": make_tar(info("l", tarfile.LNKTYPE, linkname="../../../../../../etc/passwd")),
    "a hard link to the host's file": make_tar(info("l", tarfile.LNKTYPE, linkname="/etc/passwd")),
    "a hard link through a link": make_tar(
        info("s", tarfile.SYMTYPE, linkname="/etc"), info("l", tarfile.LNKTYPE, linkname="s/passwd")
    ),
    "a hard link to a directory": make_tar(info("d"), info("l", tarfile.LNKTYPE, linkname="d")),
    "a hard link to the root": make_tar(info("l", tarfile.LNKTYPE, linkname=".")),
    "a hard link to nothing": make_tar(info("l", tarfile.LNKTYPE, linkname="")),
    "links in a circle": make_tar(
        info("a", tarfile.SYMTYPE, linkname="b"), info("b", tarfile.SYMTYPE, linkname="a"), file("a/f", b"x")
    ),
    "links to themselves, longer": make_tar(info("a", tarfile.SYMTYPE, linkname="a/a"), file("a/f", b"x")),
    "a file as parent": make_tar(file("a", b"x"), file("a/b", b"y")),
    "an opaque file": make_tar(file("a", b"x"), file("a/.wh..wh..opq")),
    "a file as root": make_tar(file(".", b"")),
    "a link as root": make_tar(info(".", tarfile.SYMTYPE, linkname="/etc")),
    "a link to an empty name": make_tar(info("l", tarfile.SYMTYPE, linkname="")),
    "a link to too long a name": make_tar(info("l", tarfile.SYMTYPE, linkname="x/" * 3000)),
    "a hard link to what is not there": make_tar(info("l", tarfile.LNKTYPE, linkname="none")),
    "too long a name": make_tar(file("x" * 256, b"x")),
    "too long a name on the way": make_tar(file("x" * 256 + "/y", b"x")),
    "a whiteout of too long a name": make_tar(file(".wh." + "x" * 256)),
    "too long a name of an attribute": make_tar(file("f", pax_headers={"SCHILY.xattr.user." + "x" * 300: "v"})),
    "too large an attribute": make_tar(file("f", pax_headers={"SCHILY.xattr.user.x": "v" * 70_000})),
    "capabilities that are none": make_tar(file("f", pax_headers={"SCHILY.xattr.security.capability": "x"})),
    "an access list that is none": make_tar(file("f", pax_headers={"SCHILY.xattr.system.posix_acl_access": "x"})),
    "a path too long": make_tar(file("/".join(["d" * 100] * 60))),
    "an owner out of range": make_tar(file("f", pax_headers={"uid": "4294967295"})),
    "a negative owner": make_tar(file("f", pax_headers={"uid": "-1"})),
    "a device out of range": make_tar(info("f", tarfile.CHRTYPE, devmajor=-5, devminor=1), form=tarfile.GNU_FORMAT),
    "a time beyond the clock": make_tar(file("f", pax_headers={"mtime": "99999999999999999999"})),
    "a sparse file beyond the disk": make_tar(
        file("f", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.realsize": str(2**62), "GNU.sparse.map": "0,0"})
    ),
    "truncated data": make_tar(file("f", b"x" * 5000))[:3000],
    "no tar": b"<html>not found</html>" * 100,
}  # fmt: skip


@pytest.mark.parametrize("tar", HOSTILE.values(), ids=HOSTILE.keys())
def test_I3_hostile_layers_are_refused_and_leave_nothing(tmp_path: Path, layers: LayerStore, tar: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        unpack(layers, tar)
    assert diff_id(tar).short in caught.value.where
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_very_deep_layers_are_unpacked_replaced_and_removed(tmp_path: Path, layers: LayerStore) -> None:
    deep = "d/" * 1100 + "f"
    tar = make_tar(file(deep, b"x"))
    assert (unpack(layers, tar) / deep).read_bytes() == b"x"
    assert layers.has(diff_id(tar))
    assert (unpack(layers, make_tar(file(deep, b"x"), file("d", b"now a file"))) / "d").read_bytes() == b"now a file"
    with pytest.raises(VerificationError):
        layers.unpack(sha256(b"other"), TAR, io.BytesIO(make_tar(file(deep, b"y"))))
    assert list((tmp_path / "tmp").iterdir()) == []
    remove_tree(tmp_path / "layers")  # pytest's own way to remove it recurses


# ---------------------------------------------------------------- sharing, disks, memory


def test_several_threads_may_unpack_the_same_layer(tmp_path: Path, kind: str) -> None:
    tar = make_tar(*(file(f"f{number}", b"x" * number) for number in range(200)))
    outcomes: list[int] = []

    def work(number: int) -> None:
        with opened(kind, tmp_path, f"b{number}") as layers:
            outcomes.append(layers.unpack(diff_id(tar), TAR, io.BytesIO(tar)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [sum(range(200))] * 4
    assert [path.name.removesuffix(".erofs") for path in (tmp_path / "layers").iterdir()] == [diff_id(tar).hex]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_a_disk_error_and_leaves_nothing(small_disk: Path, kind: str) -> None:
    tar = make_tar(info("d"), *(file(f"d/{number}", bytes(500_000)) for number in range(20)))
    with opened(kind, small_disk) as layers:
        with pytest.raises(DiskError) as caught:
            unpack(layers, tar)
        assert "free some space" in caught.value.hint
        assert list((small_disk / "tmp").iterdir()) == []
        assert (unpack(layers, make_tar(file("small", b"s"))) / "small").read_bytes() == b"s"


def test_memory_does_not_grow_with_the_layer(tmp_path: Path, kind: str) -> None:
    program = """
import hashlib, resource, sys, tarfile, io
from pathlib import Path
from storage.digest import Digest, Hasher
from storage.layers.erofs.layers import ErofsLayers
from storage.layers.erofs.mount import ErofsMounts
from storage.interfaces.layers import LayerStore
from tests.storage.layers.test_directory import opened
place, hasher = Path(sys.argv[1]), Hasher()
with (place / "layer.tar").open("wb") as out:
    head = tarfile.TarInfo("big")
    head.size = 200 << 20
    for piece in [head.tobuf(), *[bytes([n % 256]) * (1 << 20) for n in range(200)], bytes(1024)]:
        hasher.update(piece)
        out.write(piece)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with (place / "layer.tar").open("rb", buffering=0) as source, opened(sys.argv[2], place) as layers:
    assert layers.unpack(hasher.digest(), "", source) == 200 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path, kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 120_000  # KiB


component = st.sampled_from(["a", "b", ".wh.a", "ü", "c" * 120])
paths = st.lists(component, min_size=1, max_size=3).map("/".join)
plain_paths = paths.filter(lambda path: ".wh." not in path)
members = st.lists(
    st.one_of(
        st.builds(lambda path, data: file(path, data, mtime=7), plain_paths, st.binary(max_size=1500)),
        st.builds(lambda path, mode: info(path, mode=mode), plain_paths, st.sampled_from([0o755, 0o1777, 0o700])),
    ),
    max_size=8,
)


@settings(max_examples=40)
@given(members)
def test_any_mixture_of_files_and_directories_is_as_gnu_tar_has_it(
    tmp_path_factory: pytest.TempPathFactory, kind: str, made: list[Member]
) -> None:
    place = tmp_path_factory.mktemp("any")
    kinds: dict[str, bool] = {}
    for member in made:  # GNU tar refuses to replace full directories, and to go below a file: not what is compared
        entry = member[0] if isinstance(member, tuple) else member
        for parent in list(Path(entry.name).parents)[:-1]:
            if not kinds.setdefault(str(parent), True):
                return
        if kinds.setdefault(entry.name, entry.isdir()) != entry.isdir():
            return
    tar = make_tar(*made)
    gnu_untar(tar, place / "oracle")
    with opened(kind, place) as layers:
        lower = unpack(layers, tar)
        assert without_implied(facts(lower), made) == without_implied(facts(place / "oracle"), made)


def without_implied(found: dict[bytes, tuple[object, ...]], made: list[Member]) -> dict[bytes, tuple[object, ...]]:
    """Times of directories that the tar does not name are nobody's promise."""
    named = {b"/" + os.fsencode((m[0] if isinstance(m, tuple) else m).name) for m in made}
    return {path: value if path in named else value[:3] for path, value in found.items()}


def test_I6_a_layer_is_durable_before_it_is_seen_and_its_name_before_it_is_told(
    tmp_path: Path, layers: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_tar(file("f", b"x"))
    unpack(layers, make_tar(file("other")))  # what a root needs once is there
    flushes = watch_flushes(monkeypatch, lambda: any(diff_id(tar).hex in name for name in names(tmp_path / "layers")))
    layers.unpack(diff_id(tar), TAR, io.BytesIO(tar))
    assert not flushes[0][0]
    assert flushes[-1] == (True, str(tmp_path / "layers"))


def test_I6_a_layer_that_the_kernel_failed_to_write_back_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FailingWriteBack(monkeypatch)
    tar = make_tar(file("f", b"x"))

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            kernel.fail()
            return super().read(size)

    with opened("directory", tmp_path) as store:
        with pytest.raises(DiskError, match="Input/output error"):
            store.unpack(diff_id(tar), TAR, Source(tar))
        assert not store.has(diff_id(tar))
        unpack(store, tar)
        assert store.has(diff_id(tar))
