"""What a layer looks like when it is mounted is what GNU tar, as root, makes of the same tar: everything that can be
in a layer, both ways to lay it out, and for images also what other readers of the format say.

The layers: Debian images as they are made for demos and benches, one by hand for each kind of entry, any number made by
hypothesis. GNU tar knows nothing of whiteouts: `_as_overlay` turns what it left into what overlay expects.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.decompression import decompress
from storage.digest import Digest, Hasher, sha256
from storage.interfaces.layers import LayerStore
from tests.storage.layers.erofs.readers import fsck, fsck_unpack
from tests.storage.layers.test_directory import opened
from tests.storage.layers.trees import TAR, facts
from tests.storage.tar.tars import CHAR, DIR, DISK, FIFO, HARD, LINK, Dialect, Member, Sparse, write
from tools.lab.seed import ImageCache, default_cache

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ownership and devices need root")

Facts = dict[bytes, tuple[object, ...]]
SECOND = 10**9
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep, revision 2
ACL = bytes.fromhex(  # u::rwx u:7:r-- g::r-x m::r-x o::r-x; one without a name in it is no more than a mode
    "0200000001000700ffffffff020004000700000004000500ffffffff10000500ffffffff20000500ffffffff"
)


@pytest.fixture(params=["directory", "erofs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk on which creating files is cheap: two of three trees to compare are made of them."""
    place = tmp_path_factory.mktemp("memory")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def scratch(memory: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(dir=memory))
    yield place
    subprocess.run(["rm", "-rf", place], check=True)  # deeper than what shutil can


def unpacked(store: LayerStore, tar: bytes) -> Path:
    store.unpack(sha256(tar), TAR, io.BytesIO(tar))
    return store.lower(sha256(tar))


def oracle(tar: bytes | BinaryIO, directory: Path) -> Path:
    """As GNU tar has it. Absolute names and links are as they are said, below `directory`; it warns of nothing."""
    directory.mkdir()
    command = ["tar", "-C", str(directory), "--numeric-owner", "--xattrs", "--xattrs-include=*",
               "--delay-directory-restore", "--warning=no-timestamp", "-xpf", "-"]  # fmt: skip
    source: dict[str, Any] = {"input": tar} if isinstance(tar, bytes) else {"stdin": tar}
    done = subprocess.run(command, check=False, capture_output=True, env={"LC_ALL": "C"}, **source)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return directory


def _as_overlay(top: Path) -> None:
    """Whiteout files to whiteout devices and opaque marks; the times of their directories stay."""
    marks = [
        (directory, name)
        for directory, _, names in os.walk(os.fsencode(top))
        for name in names if name.startswith(b".wh.")
    ]  # fmt: skip
    for directory, name in marks:
        before = os.stat(directory)  # noqa: PTH116 - bytes
        os.unlink(directory + b"/" + name)  # noqa: PTH108 - bytes
        hidden = directory + b"/" + name.removeprefix(b".wh.")
        if name == b".wh..wh..opq":
            os.setxattr(directory, b"trusted.overlay.opaque", b"y")
        elif not os.path.lexists(hidden):
            os.mknod(hidden, stat.S_IFCHR, 0)
        elif os.path.isdir(hidden) and not os.path.islink(hidden):  # noqa: PTH112, PTH114 - bytes
            os.setxattr(hidden, b"trusted.overlay.opaque", b"y")
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def comparable(found: Facts, implied: set[bytes]) -> Facts:
    """Without what nobody promises: times of directories that the tar only implies, and of whiteouts all but that."""
    kept: Facts = {}
    for path, said in found.items():
        mode, _, _, content, _, _, _ = said
        if mode == oct(stat.S_IFCHR) and content == 0:
            kept[path] = ("whiteout",)
        else:
            kept[path] = (*said[:5], None, *said[6:]) if path in implied else said
    return kept


def implied_by(members: list[Member]) -> set[bytes]:
    said = {b"/" + member.name.strip(b"/") for member in members if member.kind == DIR}
    parents = set()
    for member in members:
        path = b"/" + member.name.strip(b"/")
        while len(path) > 1:
            path = path.rpartition(b"/")[0] or b"/"
            parents.add(path)
    return parents - said


def as_gnu_tar_has_it(tar: bytes, directory: Path, implied: set[bytes]) -> Facts:
    expected = oracle(tar, directory)
    _as_overlay(expected)
    return comparable(facts(expected), implied)


def check(store: LayerStore, tar: bytes, place: Path, implied: set[bytes], name: str = "oracle") -> None:
    assert comparable(facts(unpacked(store, tar)), implied) == as_gnu_tar_has_it(tar, place / name, implied)


# ---------------------------------------------------------------- by hand, one layer for each kind of entry


def big_map(count: int) -> Member:
    """A file of `count` blocks of data with holes between."""
    pieces = tuple((number * 4096, 512) for number in range(count))
    data = b"".join(b"%06d" % number * 85 + b"ab" for number in range(count))
    return Member(b"islands", segments=pieces, data=data, size=count * 4096 + 77)


SPARSE = [
    Member(b"aligned", segments=((4096, 1024), (1 << 20, 512)), data=os.urandom(1536), size=2 << 20),
    Member(b"odd offsets", segments=((1, 512), (5000, 512), (9999, 100)), data=os.urandom(1124), size=10_099),
    Member(b"only a hole", segments=(), size=123_456),
    Member(b"data to the end", segments=((8192, 1000),), data=os.urandom(1000), size=9192),
    Member(b"starts with data", segments=((0, 4096),), data=os.urandom(4096), size=70_000),
    Member(b"no holes at all", segments=((0, 700),), data=os.urandom(700), size=700),
    Member(b"empty", segments=(), size=0),
    Member(b"one piece far out", segments=((50 << 20, 512),), data=os.urandom(512), size=(50 << 20) + 512),
    big_map(50),
]
LONG = b"n" * 255
DEEP = b"/".join([b"%03d" % number + b"d" * 90 for number in range(40)])
TIMES = (0, 1, SECOND - 1, -1, -SECOND, -1_500_000_000, -2_000_000_000 * SECOND + 7, 1 << 32,
         4_000_000_000 * SECOND + 999_999_999, 10_000_000_000 * SECOND)  # fmt: skip
BY_HAND: dict[str, tuple[Dialect, list[Member]]] = {
    "nothing": ("pax", []),
    "sizes": ("pax", [Member(b"%d" % size, data=os.urandom(size)) for size in (0, 1, 511, 512, 513, 4096, 70_001)]),
    "hard links": ("pax", [
        Member(b"a", data=b"a", mode=0o4755), Member(b"d/", DIR), Member(b"d/b", HARD, link=b"a"),
        Member(b"c", HARD, link=b"./d/b"), Member(b"s", LINK, link=b"c"), Member(b"s2", HARD, link=b"s"),
        Member(b"p", FIFO), Member(b"p2", HARD, link=b"p"), Member(b"n", CHAR, device=(1, 3)),
        Member(b"n2", HARD, link=b"n"),
    ]),
    "hard links whose first name is replaced": ("pax", [
        Member(b"a", data=b"first"), Member(b"b", HARD, link=b"a"), Member(b"a", data=b"second"),
        Member(b"c", HARD, link=b"a"), Member(b"b", LINK, link=b"c"),
    ]),
    "whiteouts": ("pax", [
        Member(b"d/", DIR, mode=0o700), Member(b"d/.wh.gone"), Member(b".wh.at the top"), Member(b"d/.wh.\xff\xfe"),
        Member(b"d/.wh." + b"w" * 251), Member(b"e/", DIR), Member(b"e/.wh..wh..opq"), Member(b"e/new", data=b"n"),
    ]),
    "whiteouts of what the layer itself has": ("pax", [
        Member(b".wh.f"), Member(b"f", data=b"f"), Member(b"d/", DIR), Member(b"d/in", data=b"i"), Member(b".wh.d"),
        Member(b".wh.l"), Member(b"l", LINK, link=b"d"),
    ]),
    "an opaque root": ("pax", [Member(b"./", DIR, mode=0o755), Member(b".wh..wh..opq"), Member(b"f", data=b"x")]),
    "attributes": ("pax", [
        Member(b"f", xattrs={b"user.a": b"1", b"user.bytes": bytes(range(256)),
                             b"trusted.t": b"t", b"user." + b"k" * 200: b"v" * 900}),
        Member(b"empty", xattrs={b"user.empty": b""}),
        Member(b"same", xattrs={b"user.a": b"1"}), Member(b"same too", xattrs={b"user.a": b"1"}),
        Member(b"d/", DIR, xattrs={b"user.d": b"d", b"system.posix_acl_default": ACL}),
        Member(b"acl", mode=0o755, xattrs={b"system.posix_acl_access": ACL}),
        Member(b"large", data=b"x" * 600, xattrs={b"user.large": os.urandom(3000)}),
    ]),
    "capabilities": ("pax", [
        Member(b"ping", data=b"elf", mode=0o755, xattrs={b"security.capability": CAPABILITY}),
        Member(b"owned", data=b"elf", mode=0o755, uid=7, gid=8, xattrs={b"security.capability": CAPABILITY}),
        Member(b"ping again", HARD, link=b"ping"),
    ]),
    "devices and fifos": ("pax", [
        Member(b"null", CHAR, mode=0o666, device=(1, 3)), Member(b"disk", DISK, mode=0o660, gid=6, device=(259, 70000)),
        Member(b"most", CHAR, device=(4095, (1 << 20) - 1)), Member(b"minor", DISK, device=(0, 256)),
        Member(b"pipe", FIFO, mode=0o622, uid=1, mtime=5 * SECOND + 5),
    ]),
    "modes and owners": ("pax", [
        *(Member(b"f%o" % mode, mode=mode, data=b"m") for mode in (0, 0o4755, 0o2755, 0o1644, 0o6111, 0o7777)),
        *(Member(b"d%o/" % mode, DIR, mode=mode, gid=9) for mode in (0, 0o1777, 0o2775, 0o7000)),
        *(Member(b"d%o/in" % mode, data=b"i") for mode in (0, 0o1777, 0o2775, 0o7000)),
        Member(b"far", uid=4_294_967_294, gid=3_000_000_000), Member(b"l", LINK, link=b"far", uid=12, gid=2_097_152),
    ]),
    "times": ("pax", [Member(b"%d" % number, mtime=when) for number, when in enumerate(TIMES)] + [
        Member(b"d%d/" % number, DIR, mtime=when) for number, when in enumerate(TIMES)] + [
        Member(b"l%d" % number, LINK, link=b"x", mtime=when) for number, when in enumerate(TIMES)]),
    "times, GNU": ("gnu", [Member(b"%d" % n, mtime=when // SECOND * SECOND) for n, when in enumerate(TIMES)]),
    "names": ("pax", [
        Member(LONG, data=b"1"), Member(LONG[:-4] + b"/", DIR), Member(LONG[:-4] + b"/" + LONG, data=b"2"),
        Member("grün 雪".encode(), data=b"3"), Member(b"l\xe4tin\xff", data=b"4"), Member(b" a\nb\t*?[]\\ ", data=b"5"),
        Member(b"-rf", data=b"6"), Member(b"..a", data=b"7"), Member(b"...", data=b"8"), Member(b"d.wh.x", data=b"9"),
        Member(bytes(range(1, 0x2F)), data=b"10"), Member(bytes(range(0x30, 0x100)), data=b"11"),
    ]),
    "names, GNU": ("gnu", [
        Member(LONG, data=b"1"), Member(bytes(range(0x30, 0x100)), data=b"2"), Member(b"x" * 100, data=b"3"),
        Member(b"x" * 101, data=b"4"), Member(b"l", LINK, link=b"t" * 300), Member(b"h", HARD, link=LONG),
    ]),
    "deep paths": ("pax", [Member(DEEP + b"/bottom", data=b"deep"), Member(DEEP + b"/", DIR, mode=0o701)]),
    "deep paths, GNU": ("gnu", [Member(DEEP + b"/bottom", data=b"deep")]),
    "long links": ("pax", [
        Member(b"l%d" % size, LINK, link=(b"t" * 99 + b"/") * (size // 100) + b"u" * (size % 100))
        for size in (1, 59, 60, 100, 101, 400, 448, 449, 512, 1000, 4095)
    ]),
    "links that point outside": ("pax", [
        Member(b"abs", LINK, link=b"/etc/passwd"), Member(b"up", LINK, link=b"../../../etc"),
        Member(b"self", LINK, link=b"self"), Member(b"bytes", LINK, link=b"\xff\x01"),
    ]),
    "a parent after its child": ("pax", [
        Member(b"a/b/c", data=b"c"), Member(b"a/", DIR, mode=0o711, uid=3, mtime=9 * SECOND), Member(b"a/d", data=b"d"),
        Member(b"a/b/", DIR, mode=0o1777, xattrs={b"user.late": b"1"}), Member(b"./", DIR, mode=0o751, gid=4),
    ]),
    "duplicates": ("pax", [
        Member(b"f", data=b"old", mode=0o600, xattrs={b"user.old": b"1"}), Member(b"f", data=b"new and longer"),
        Member(b"l", LINK, link=b"one"), Member(b"l", LINK, link=b"two"), Member(b"x", data=b"file"),
        Member(b"x", LINK, link=b"f"), Member(b"y", LINK, link=b"f"), Member(b"y", data=b"now a file"),
        Member(b"d/", DIR, mode=0o700), Member(b"d/f", data=b"in"), Member(b"d/", DIR, mode=0o755, uid=5),
        Member(b"z", FIFO), Member(b"z", data=b"was a fifo"), Member(b"e", data=b"file"), Member(b"e/", DIR),
    ]),
    "a thousand in one directory": ("pax", [Member(b"d/", DIR), *(Member(b"d/%d" % n) for n in range(1000))]),
    "directories that fill their blocks": ("pax", [
        member for size in range(1, 40)
        for member in (Member(b"%03d/" % size, DIR), *(Member(b"%03d/" % size + b"n" * size + b"%02d" % n)
                                                       for n in range(size)))
    ]),
    "attributes that fill blocks before links": ("pax", [
        Member(b"d%03d/" % size, DIR, xattrs={b"user.x": b"v" * size}) for size in range(0, 900, 7)
    ]),
    "sparse, 1.0": ("pax", SPARSE),
    "sparse, GNU": ("gnu", SPARSE),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_each_kind_of_entry_is_as_gnu_tar_has_it(memory: Path, kind: str, name: str) -> None:
    dialect, members = BY_HAND[name]
    with scratch(memory) as place, opened(kind, place) as store:
        check(store, write(members, dialect), place, {b"/"} | implied_by(members))


@pytest.mark.parametrize("version", ["0.0", "0.1"])
def test_older_sparse_files_too(memory: Path, kind: str, version: Sparse) -> None:
    with scratch(memory) as place, opened(kind, place) as store:
        check(store, write(SPARSE, "pax", version), place, {b"/"})


@pytest.fixture(scope="module")
def many_names(memory: Path) -> tuple[bytes, Facts]:
    """A tar of a directory with more files than 16 bits can count, and what GNU tar makes of it."""
    names = [b"d/%x%s" % (number, b"-" * (number % 40)) for number in range(66_000)]
    tar = write([Member(b"d/", DIR), *(Member(name, data=name if name[-1:] == b"7" else b"") for name in names)])
    with scratch(memory) as place:
        return tar, as_gnu_tar_has_it(tar, place / "oracle", {b"/"})


def test_a_directory_of_more_files_than_16_bits_can_count(
    memory: Path, kind: str, many_names: tuple[bytes, Facts]
) -> None:
    tar, expected = many_names
    assert len(expected) == 66_002
    with scratch(memory) as place, opened(kind, place) as store:
        assert comparable(facts(unpacked(store, tar)), {b"/"}) == expected


@pytest.fixture(params=["pax", "gnu"])
def over_4_gib(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Digest, tuple[int, ...]]:
    """A sparse file of more than 4 GiB: its tar, diff ID, and where its data is."""
    places = (0, (4 << 30) - 512, 4 << 30, (5 << 30) + 4096)
    member = Member(b"large", segments=tuple((place, 512) for place in places), data=os.urandom(2048), size=6 << 30)
    tar = write([member], request.param)
    (tmp_path / "tar").write_bytes(tar)
    return tmp_path / "tar", sha256(tar), places


def test_files_over_4_gib_stored_sparse(
    memory: Path, tmp_path: Path, kind: str, over_4_gib: tuple[Path, Digest, tuple[int, ...]]
) -> None:
    tar, diff_id, places = over_4_gib
    with scratch(memory) as place, opened(kind, tmp_path) as store:
        wanted = oracle(tar.read_bytes(), place / "oracle") / "large"
        store.unpack(diff_id, TAR, io.BytesIO(tar.read_bytes()))
        found = store.lower(diff_id) / "large"
        assert found.stat().st_size == wanted.stat().st_size == 6 << 30
        with found.open("rb") as ours, wanted.open("rb") as theirs:
            for at in places:  # with some of the hole before and behind
                start = max(0, at - 10_000)
                assert os.pread(ours.fileno(), 20_000, start) == os.pread(theirs.fileno(), 20_000, start)
            assert os.pread(ours.fileno(), 100_000, (6 << 30) - 5000) == bytes(5000)


# ---------------------------------------------------------------- Debian images


def debian_layers() -> list[tuple[str, str]]:
    """(digest, media type) of the layers of the image kinds that demos use, made once on a machine."""
    cache = ImageCache(default_cache())
    found: dict[str, str] = {}
    for image in ("busybox", "python"):
        tag = cache.image(image)
        index = json.loads((cache.directory / "index.json").read_text())
        (manifest,) = [
            entry["digest"] for entry in index["manifests"]
            if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
        ]  # fmt: skip
        for layer in json.loads(blob(manifest).read_text())["layers"]:
            found[layer["digest"]] = layer["mediaType"]
    return list(found.items())


def blob(digest: str) -> Path:
    return ImageCache(default_cache()).directory / "blobs/sha256" / digest.partition(":")[2]


def plain(digest: str, media_type: str, target: Path) -> Digest:
    """The layer's tar at `target`; its diff ID."""
    hasher = Hasher()
    with blob(digest).open("rb") as packed, target.open("wb") as out:
        source = decompress(packed, media_type)
        while data := source.read(1 << 20):
            hasher.update(data)
            out.write(data)
    return hasher.digest()


def test_debian_layers_are_as_gnu_tar_has_them(memory: Path, tmp_path: Path, kind: str) -> None:
    found = debian_layers()
    assert len(found) == 4
    for number, (digest, media_type) in enumerate(found):
        with scratch(memory) as place, opened(kind, place) as store:
            diff_id = plain(digest, media_type, tmp_path / str(number))
            with blob(digest).open("rb") as packed:
                store.unpack(diff_id, media_type, packed)
            with (tmp_path / str(number)).open("rb") as tar:
                expected = oracle(tar, place / "oracle")
            _as_overlay(expected)
            wanted = facts(expected)
            assert len(wanted) > 100
            assert comparable(facts(store.lower(diff_id)), set()) == comparable(wanted, set())


# ---------------------------------------------------------------- by hypothesis

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"usr", "ü".encode(), b"x" * 255, b"y" * 120, b"\xff\xfe"]),
    st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"0")),
).filter(lambda name: name not in {b".", b".."} and not name.startswith(b".wh."))
MTIMES = st.one_of(
    st.integers(-(1 << 31) * SECOND, (1 << 33) * SECOND), st.sampled_from(TIMES), st.just(1_700_000_000 * SECOND)
)
OWNERS = st.one_of(st.just(0), st.integers(0, 70_000), st.sampled_from([2_097_151, 2_097_152, 4_294_967_294]))
MODES = st.one_of(st.sampled_from([0o644, 0o755, 0o4711, 0o1777, 0o2755]), st.integers(0, 0o7777))
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b.c", b"trusted.t", b"user." + b"n" * 100, b"security.capability"]),
    st.one_of(st.binary(max_size=40), st.just(b"v" * 700)),
    max_size=3,
)  # fmt: skip


@st.composite
def sparse_files(draw: st.DrawFn, name: bytes) -> Member:
    at, pieces = 0, []
    for _ in range(draw(st.integers(0, 7))):
        at += draw(st.one_of(st.integers(0, 3000), st.sampled_from([0, 512, 4096, 1 << 20])))
        length = 512 * draw(st.integers(1, 6))
        pieces.append((at, length))
        at += length
    tail = draw(st.sampled_from([0, 0, 1, 512, 100_000]))
    if not tail and pieces and draw(st.booleans()):
        pieces[-1] = (pieces[-1][0], pieces[-1][1] - draw(st.integers(0, 511)))  # as a file's end is
        at = sum(pieces[-1])
    seed = draw(st.binary(min_size=1, max_size=8))
    stored = sum(length for _, length in pieces)
    return Member(name, segments=tuple(pieces), data=(seed * (stored // len(seed) + 1))[:stored], size=at + tail)


@st.composite
def dressed(draw: st.DrawFn, member: Member) -> Member:
    xattrs = draw(XATTRS) if member.kind in {b"0", DIR} else {}
    if b"security.capability" in xattrs:
        xattrs = {**xattrs, b"security.capability": CAPABILITY}
    if member.kind == DIR:
        xattrs.pop(b"security.capability", None)
    return replace(
        member, mode=draw(MODES), uid=draw(OWNERS), gid=draw(OWNERS), mtime=draw(MTIMES), xattrs=xattrs
    )

KINDS = ["file", "file", "file", "sparse", "link", "hard", "hard", "fifo", "char", "disk", "whiteout", "opaque"]


@st.composite
def layers(draw: st.DrawFn) -> list[Member]:
    """Members in an order, without what GNU tar refuses or does otherwise on purpose: full directories that are
    replaced, and files below links."""
    directories = [b""]
    for name in draw(st.lists(NAMES, max_size=5)):
        directories.append(draw(st.sampled_from(directories)) + name + b"/")
    directories = list(dict.fromkeys(directories))
    taken = {directory.rstrip(b"/") for directory in directories}
    made: list[Member] = []
    linkable: list[bytes] = []
    for name in draw(st.lists(NAMES, max_size=12)):
        path = draw(st.sampled_from(directories)) + name
        if path in taken:
            continue
        what = draw(st.sampled_from(KINDS))
        member = Member(path)
        if what == "file":
            member = Member(path, data=draw(st.one_of(st.binary(max_size=100), st.just(b"block" * 300))))
        elif what == "sparse":
            member = draw(sparse_files(path))
        elif what == "link":
            target = draw(st.one_of(NAMES, st.just(b"t" * 2000), st.sampled_from([b"../up/and", b"/etc/passwd"])))
            member = Member(path, LINK, link=target)
        elif what == "hard" and linkable:
            target = draw(st.sampled_from(linkable))
            if target == path:
                continue
            made.append(Member(path, HARD, link=target))
            linkable.append(path)
            continue
        elif what == "fifo":
            member = Member(path, FIFO)
        elif what in {"char", "disk"}:
            numbers = (draw(st.integers(1, 4095)), draw(st.integers(0, (1 << 20) - 1)))
            member = Member(path, CHAR if what == "char" else DISK, device=numbers)
        elif what == "whiteout":
            made.append(Member(path[: len(path) - len(name)] + b".wh." + name[:251]))
            continue
        elif what == "opaque":
            made.append(Member(path[: len(path) - len(name)] + b".wh..wh..opq"))
            continue
        made.append(draw(dressed(member)))
        linkable = [name for name in linkable if name != path]
        if not member.link.startswith((b"/", b"..")):  # GNU tar has a file in such a link's place until the end
            linkable.append(path)
    for directory in directories:
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
            member = draw(dressed(Member(directory or b"./", DIR)))
            made.insert(draw(st.integers(0, len(made))), member)
    return [
        replace(member, xattrs={}) if any(member.name == later.name for later in made[number + 1 :]) else member
        for number, member in enumerate(made)
    ]  # GNU tar adds those of a directory's second member to those of the first


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(layers(), st.sampled_from(["pax", "gnu"]), st.sampled_from(["0.0", "0.1", "1.0"]))
def test_any_layer_is_as_gnu_tar_has_it(
    memory: Path, kind: str, members: list[Member], dialect: Dialect, sparse: Sparse
) -> None:
    with scratch(memory) as place, opened(kind, place) as store:
        check(store, write(members, dialect, sparse), place, {b"/"} | implied_by(members))


# ---------------------------------------------------------------- other readers of the format


@pytest.mark.parametrize("name", BY_HAND)
def test_fsck_finds_no_error_and_unpacks_the_same(memory: Path, name: str) -> None:
    dialect, members = BY_HAND[name]
    tar = write(members, dialect)
    with scratch(memory) as place, opened("erofs", place) as store:
        mounted = unpacked(store, tar)
        (image,) = (place / "layers").iterdir()
        fsck(image)
        found = fsck_unpack(image, place / "unpacked", mounted)
        assert as_fsck_has_it(facts(found)) == as_fsck_has_it(facts(mounted))


def as_fsck_has_it(found: Facts) -> Facts:
    """Version 1.8 sets no empty attributes, and loses capabilities when it changes owners afterwards."""
    return {
        path: (*said[:6], {key: value for key, value in xattrs.items() if value and key != "security.capability"})
        for path, said in found.items()
        for xattrs in [said[6]] if isinstance(xattrs, dict)
    }  # fmt: skip


def test_fsck_finds_no_error_in_debian_layers(tmp_path: Path) -> None:
    for number, (digest, media_type) in enumerate(debian_layers()):
        diff_id = plain(digest, media_type, tmp_path / str(number))
        with opened("erofs", tmp_path) as store, (tmp_path / str(number)).open("rb") as tar:
            store.unpack(diff_id, TAR, tar)
            fsck(tmp_path / "layers" / f"{diff_id.hex}.erofs")
