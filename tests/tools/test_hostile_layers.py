"""Hostile layers, end to end: one clear line and exit code 4, nothing outside the root touched, nothing kept."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.compression import compressor
from tests.builder import Builder, Done, busybox_layer
from tests.registry_fixture import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    RegistryProcess,
    digest_of,
    layer_tar,
    push_blob,
    push_manifest,
)
from tests.state import state_of
from tests.storage.layers.trees import file, info, make_tar
from tests.storage.tar.tars import DIR, HARD, LINK, Member, header, pax_record, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

LIMIT = 20_000_000
SPARSE = "'s'|sparse file"
ZSTD = OCI_LAYER.replace("gzip", "zstd")


@dataclass(frozen=True)
class Evil:
    """A layer: its blob and what the image says of it. `says`: what is to be found in the error. `tree`: does it
    depend on how layers are laid out?"""

    blob: bytes
    diff_id: str
    says: str
    media_type: str = OCI_LAYER
    size: int = -1
    tree: bool = False


def packed(tar: bytes, says: str, *, tree: bool = True) -> Evil:
    """A well-formed blob of a tar that is not what it should be."""
    return Evil(gzip.compress(tar, 1), digest_of(tar), says, tree=tree)


def pax(records: bytes, size: int = -1, kind: bytes = b"x") -> bytes:
    return header(b"x", kind, len(records) if size < 0 else size) + records + bytes(-len(records) % 512)


def bomb(name: str, media_type: str) -> Evil:
    """A hundred times the limit of zeros, in well below the limit."""
    stream = compressor(name)
    parts = [stream.compress(header(b"zeros", b"0", 100 * LIMIT))]
    parts += [stream.compress(bytes(1_000_000)) for _ in range(10 * LIMIT // 1_000_000)]
    blob = b"".join([*parts, stream.flush()])
    assert len(blob) < LIMIT // 10
    return Evil(blob, digest_of(b""), "REFLEDGER_LAYER_LIMIT", media_type)


def members(*made: Member) -> bytes:
    return write(made)


def cases(outside: Path) -> dict[str, Evil]:
    """`outside`: a directory of the host that they try to reach."""
    there = os.fsencode(outside)
    up = b"../" * 40 + there[1:]
    good = write([Member(b"f", data=os.urandom(100_000))])
    whole = gzip.compress(good)
    tree = write([Member(b"d/", DIR), Member(b"d/f", data=b"x" * 3000), Member(b"last", data=b"y")])
    grown = tree.replace(header(b"d/f", b"0", 3000, mtime=1_700_000_000), header(
        b"d/f", b"0", 300_000, mtime=1_700_000_000))  # fmt: skip
    shrunk = tree.replace(header(b"d/f", b"0", 3000, mtime=1_700_000_000), header(
        b"d/f", b"0", 600, mtime=1_700_000_000))  # fmt: skip
    assert grown != tree != shrunk
    keys = b"".join(pax_record(b"k%06d" % number, b"v" * 100) for number in range(8000))
    different = [keys.replace(b"k0", b"%c0" % letter) for letter in range(ord("A"), ord("I"))]
    return {
        "a name that leads up": packed(members(Member(up + b"/evil", data=b"x")), "leads out of its layer"),
        "a whiteout that leads up": packed(members(Member(up + b"/.wh.precious")), "leads out of its layer"),
        "a hard link that leads up": packed(members(Member(b"l", HARD, link=up + b"/precious")), "leads out"),
        "a hard link to the host's file": packed(members(Member(b"l", HARD, link=there + b"/precious")), "hard link"),
        "a hard link through a link": packed(
            members(Member(b"s", LINK, link=there), Member(b"l", HARD, link=b"s/precious")), "hard link"),
        "a hard link through a link that leads up": packed(
            members(Member(b"s", LINK, link=up), Member(b"l", HARD, link=b"s/precious")), "hard link"),
        "links in a circle": packed(
            members(Member(b"a", LINK, link=b"b"), Member(b"b", LINK, link=b"a"), Member(b"a/f")), "symbolic links"),
        "a file larger than the tar has it": packed(grown, "truncated", tree=False),
        "a file smaller than the tar has it": packed(shrunk, "not a tar"),
        "a blob smaller than the manifest says": Evil(whole, digest_of(good), "are promised", size=len(whole) + 1000),
        "a blob larger than the manifest says": Evil(whole, digest_of(good), "are promised", size=len(whole) - 1000),
        "a gzip bomb": bomb("gzip", OCI_LAYER),
        "a zstd bomb": bomb("zstd", ZSTD),
        "a truncated stream": Evil(whole[:-500], digest_of(good), "truncated gzip"),
        "a truncated zstd stream": Evil(zstd(good)[:-500], digest_of(good), "truncated zstd", ZSTD),
        "a truncated tar": packed(good[:50_000], "truncated", tree=False),
        "another layer than was promised": Evil(whole, digest_of(b"another"), "has diff ID"),
        "no tar": packed(b"<html>not found</html>" * 100, "not a tar", tree=False),
        "no gzip": Evil(b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 5000, digest_of(good), "corrupt gzip"),
        "nothing": Evil(b"", digest_of(b""), "empty"),
        "an extended header of a gigabyte": packed(pax(b"", 1 << 30) + bytes(4096), "extended header of", tree=False),
        "many extended headers for one file": packed(
            b"".join(map(pax, different)) + good, "extended header", tree=False),
        "many global headers": packed(
            b"".join(pax(records, kind=b"g") for records in different) + good, "extended header", tree=False),
        "a broken extended header": packed(pax(b"999 path=x\n") + good, "broken PAX", tree=False),
        "a sparse file of 8 EiB": packed(members(Member(b"s", segments=(), size=(1 << 63) - 1)), SPARSE),
        "a sparse file of more than 8 EiB": packed(members(Member(b"s", segments=(), size=1 << 63)), SPARSE),
        "a sparse file whose data is beyond 2 TiB": packed(
            members(Member(b"s", segments=((1 << 61, 512),), data=bytes(512), size=(1 << 61) + 512)), SPARSE),
        "a device that is none": packed(
            make_tar(info("n", tarfile.CHRTYPE, devmajor=-5), form=tarfile.GNU_FORMAT), "out of range"),
    }  # fmt: skip


def zstd(data: bytes) -> bytes:
    stream = compressor("zstd")
    return stream.compress(data) + stream.flush()


NAMES = tuple(cases(Path("/nowhere")))


def push(host: str, repository: str, evil: Evil) -> str:
    """An image with a shell, and `evil` on top; its reference."""
    base = layer_tar(busybox_layer())
    layers = [(gzip.compress(base, 1, mtime=0), digest_of(base), OCI_LAYER, -1),
              (evil.blob, evil.diff_id, evil.media_type, evil.size)]  # fmt: skip
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id, _, _ in layers]},
    }).encode()  # fmt: skip
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": push_blob(host, repository, config), "size": len(config)},
        "layers": [
            {"mediaType": media_type, "digest": push_blob(host, repository, blob),
             "size": len(blob) if size < 0 else size}
            for blob, _, media_type, size in layers
        ],
    }).encode()  # fmt: skip
    push_manifest(host, repository, "latest", manifest, OCI_MANIFEST)
    return f"{host}/{repository}:latest"


@pytest.fixture(scope="module", params=["erofs", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Builder:
    """One root for all of them: whatever one leaves, the next ones meet."""
    return Builder(tmp_path_factory.mktemp(f"hostile-{kind}"))


@pytest.fixture(scope="module")
def evils(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Evil]]:
    """Somebody's directory on this host, and layers that try to reach it."""
    place = tmp_path_factory.mktemp("outside")
    (place / "precious").write_text("precious")
    return place, cases(place)


@pytest.fixture
def outside(evils: tuple[Path, dict[str, Evil]]) -> Iterator[Path]:
    """That directory: it stays as it is."""
    before = state_of(evils[0])
    assert before
    yield evils[0]
    assert state_of(evils[0]) == before


def build(builder: Builder, kind: str, dockerfile: str) -> Done:
    return builder.build(dockerfile, "--snapshotter", kind, env={"REFLEDGER_LAYER_LIMIT": str(LIMIT)})


def loops(root: Path) -> list[str]:
    """Loop devices on files below `root`, also deleted ones."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(path.read_text().strip())
        except OSError:
            continue  # gone meanwhile
    return [name for name in found if str(root) in name]


@pytest.mark.parametrize("name", NAMES)
def test_I3_a_hostile_layer_is_one_line_exit_4_and_leaves_nothing(
    builder: Builder, kind: str, registry: RegistryProcess, repository: str, outside: Path,
    evils: tuple[Path, dict[str, Evil]], name: str,
) -> None:  # fmt: skip
    evil = evils[1][name]
    if kind == "directory" and not evil.tree:
        pytest.skip("it is refused before the ways to lay out part")
    reference = push(registry.host, repository, evil)
    done = build(builder, kind, f"FROM {reference}\nRUN true\n")
    lines = [line for line in done.err.splitlines() if line.startswith("ERROR: ")]
    assert len(lines) == 1, done.err
    assert re.search(evil.says, lines[0]), lines[0]
    assert done.code == 4, lines
    kept = {path.name.removesuffix(".erofs") for path in (builder.root / "layers").iterdir()}
    assert kept <= {digest_of(layer_tar(busybox_layer())).partition(":")[2]}
    assert builder.leftovers() == []
    assert loops(builder.root) == []
    blobs = {path.name for path in (builder.root / "blobs/sha256").iterdir()}
    assert digest_of(evil.blob).partition(":")[2] not in blobs
    assert not (builder.root / "partial" / digest_of(evil.blob).replace(":", "-")).exists()
    used = subprocess.run(["du", "-sb", builder.root], check=True, capture_output=True, text=True).stdout
    assert int(used.split()[0]) < LIMIT


def test_absolute_names_and_links_that_point_outside_stay_inside(
    builder: Builder, kind: str, registry: RegistryProcess, repository: str, outside: Path
) -> None:
    there = os.fsencode(outside)
    up = b"../" * 40 + there[1:]
    tar = members(
        Member(there + b"/absolute", data=b"1"),
        Member(b"link", LINK, link=there), Member(b"link/through", data=b"2"),
        Member(b"up", LINK, link=up), Member(b"up/through up", data=b"3"),
        Member(b"file", LINK, link=there + b"/precious"), Member(b"file", data=b"4"),
        Member(b"usr/", DIR), Member(b"usr/.wh.precious"), Member(b"link/.wh.gone"),
    )  # fmt: skip
    evil = packed(tar, "")
    names = "absolute through 'through up' /link/absolute /up/absolute /file"
    script = f"cd {outside} && cat {names} && test ! -e precious"
    done = build(builder, kind, f"FROM {push(registry.host, repository, evil)}\nRUN {script} && echo\n")
    assert done.code == 0, done.err
    assert "123114" in done.err + done.out


def test_the_root_is_usable_after_a_hostile_layer(
    builder: Builder, kind: str, registry: RegistryProcess, repository: str, evils: tuple[Path, dict[str, Evil]]
) -> None:
    evil = evils[1]["a name that leads up"]
    assert build(builder, kind, f"FROM {push(registry.host, repository, evil)}\nRUN true\n").code == 4
    good = packed(make_tar(info("d"), file("d/f", b"fine")), "")
    done = build(builder, kind, f"FROM {push(registry.host, repository + '/good', good)}\nRUN cat /d/f; echo\n")
    assert (done.code, "fine" in done.err + done.out) == (0, True), done.err
    assert builder.run("rebuild", "--check").code == 0
    assert builder.leftovers() == []

