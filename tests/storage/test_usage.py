"""Every byte of a root has an owner, and what is removed goes whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from storage.errors import InputError
from storage.usage import DiskItems, measure, mentioned

HEX = "ab" * 32


def du(root: Path) -> int:
    """What the system's du says, in bytes."""
    done = subprocess.run(
        ["du", "-s", "--apparent-size", "-B1", root], env={**os.environ, "LC_ALL": "C"}, capture_output=True, check=True
    )
    return int(done.stdout.split()[0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for path, size in {
        "log.db": 5000, "log.db-wal": 70, "views.db": 4096, "format": 2, "oci-layout": 30, "policy.toml": 11,
        f"layers/{HEX}/fs/bin/sh": 900, f"layers/{HEX}/implied": 5, f"layers/{'cd' * 32}.erofs": 8192,
        "snapshots/b1-v-1/fs/out": 12, "snapshots/b1-w-1.erofs": 512, f"blobs/sha256/{HEX}": 321,
        f"blobs/sha512/{'ef' * 64}": 9, "blobs/sha256/stray": 3, f"partial/sha256-{HEX}/0": 100,
        f"partial/sha256-{HEX}/4096": 50, f"cache/{HEX}/0/fs/x": 6, f"cache/{HEX}/1/fs/x": 7,
        "tmp/b2-0011223344556677/upper/f": 44, "run/runc/x": 1, "locks/build-b1": 0, "layers/stray": 1,
        "snapshots/.stray": 1, "partial/stray": 1, "cache/stray/0": 1,
    }.items():  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * size)
    return root


def test_every_byte_has_one_owner_and_the_sum_is_that_of_du(root: Path) -> None:
    (root / f"layers/{HEX}/fs/bin/link").symlink_to("sh")
    (root / f"layers/{HEX}/fs/bin/other").hardlink_to(root / f"layers/{HEX}/fs/bin/sh")
    (root / "snapshots/empty/fs").mkdir(parents=True)
    os.mkfifo(root / "snapshots/b1-v-1/fs/fifo")
    before = set(Path("/proc/self/fd").iterdir())
    found = measure(root)
    assert set(Path("/proc/self/fd").iterdir()) <= before, "or a large root would be too many open files"
    assert found.items == {
        f"blob/sha256:{HEX}": 321, f"blob/sha512:{'ef' * 64}": 9, f"cachemount/{HEX}/0": 6, f"cachemount/{HEX}/1": 7,
        f"layer/sha256:{HEX}": 907, f"layer/sha256:{'cd' * 32}": 8192, "locks/": 0, "log/": 5070, "other/blobs": 3,
        "other/cache": 1, "other/layers": 1, "other/partial": 1, "other/snapshots": 1,
        "other/format": 2, "other/oci-layout": 30, "other/policy.toml": 11, f"partial/sha256:{HEX}": 150, "run/": 1,
        "snapshot/b1-v-1": 12, "snapshot/b1-w-1": 512, "snapshot/empty": 0, "tmp/b2-0011223344556677": 44,
        "views/": 4096,
    }  # fmt: skip
    assert du(root) in {found.total, found.files}  # the latter since coreutils 9.2


def test_digests_that_stand_in_documents_are_found(root: Path) -> None:
    one, two, three = (f"sha256:{digits * 32}" for digits in ("11", "22", "33"))
    (root / "blobs/sha256" / ("55" * 32)).write_text(f'{{"x":"{one}","y":["{two}"]}}')
    documents = [f"sha256:{'66' * 32}", f"sha256:{'55' * 32}"]  # the first is not here
    assert mentioned(root, documents, {one, three}) == {one}
    assert mentioned(root, documents[:1], {one}) == set()


def test_a_tree_deeper_than_a_path_may_be_long_is_measured_and_removed(root: Path) -> None:
    top = root / "snapshots/deep/fs"
    top.mkdir(parents=True)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with os.fdopen(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"y" * 77)
    os.close(fd)
    assert measure(root).items["snapshot/deep"] == 77
    disk = DiskItems(root, "prune1")
    disk.discard(disk.take("snapshot/deep"))
    assert "snapshot/deep" not in measure(root).items


def test_each_kind_goes_whole_and_nothing_else_does(root: Path) -> None:
    disk = DiskItems(root, "prune1")
    before = dict(measure(root).items)
    going = [key for key in before if key.split("/")[0] in {"layer", "snapshot", "blob", "partial", "cachemount"}]
    for key in going:
        assert disk.here(key)
        taken = disk.take(key)
        assert taken
        assert not disk.here(key)
        disk.discard(taken)
        del before[key]
        assert measure(root).items == before
    assert not (root / "cache" / HEX).exists()


def test_what_was_taken_is_out_of_sight_under_the_owners_name(root: Path) -> None:
    taken = DiskItems(root, "prune1").take(f"layer/sha256:{HEX}")
    assert [path.name.partition("-")[0] for path in taken] == ["prune1"]
    assert taken[0].parent == root / "tmp"
    assert (taken[0] / "fs/bin/sh").exists()


@pytest.mark.parametrize(
    "key",
    ["log/", "layer/../../etc", "layer/x", "snapshot/..", "snapshot/", "record/x", "blob/", "blob/sha256",
     "blob/sha256:", "partial/a:b", "tmp/b2-0011", "layer/a/b", "cachemount/", f"cachemount/{HEX}",
     f"cachemount/{HEX}/.."],
)
def test_what_is_no_item_is_never_removed(root: Path, key: str) -> None:
    before = measure(root)
    with pytest.raises(InputError):
        DiskItems(root, "prune1").take(key)
    assert measure(root) == before
