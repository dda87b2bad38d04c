"""Blobs: content-addressed, durable before visible, an OCI image layout at all times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.blobs import DirectoryBlobs
from storage.digest import Digest, digest_of, sha256
from storage.errors import DiskError, InputError, VerificationError


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_the_root_is_an_oci_layout_that_skopeo_style_tools_accept(tmp_path: Path) -> None:
    digest = DirectoryBlobs(tmp_path, owner="b1").put(b"x")
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["schemaVersion"], index["manifests"]) == (2, [])
    assert files(tmp_path) == {"oci-layout", "index.json", f"blobs/sha256/{digest.hex}"}


def test_an_index_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("mine")
    DirectoryBlobs(tmp_path, owner="b1").put(b"x")
    assert (tmp_path / "index.json").read_text() == "mine"


def test_I6_file_and_directory_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = DirectoryBlobs(tmp_path, owner="b1")
    blobs.put(b"first")
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(fd: int) -> None:
        calls.append("fsync " + str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix(str(tmp_path)))
        fsync(fd)

    def noted_rename(path: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(path, target)

    writer = blobs.writer()
    writer.write(b"second")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    writer.commit()
    assert [call.split("-")[0] for call in calls] == ["fsync /tmp/b1", "rename", "fsync /blobs/sha256"]
    calls.clear()
    DirectoryBlobs(tmp_path, owner="b2").put(b"second")
    assert calls == ["fsync /blobs/sha256"], "whoever put it there may have died before that"


def test_a_full_disk_is_a_disk_error_and_leaves_nothing(small_disk: Path) -> None:
    blobs = DirectoryBlobs(small_disk, owner="b1")
    kept = blobs.put(b"kept")
    writer = blobs.writer()
    with pytest.raises(DiskError) as caught:
        writer.write(bytes(2 << 20))
    assert "free some space" in caught.value.hint
    assert files(small_disk) == {"oci-layout", "index.json", f"blobs/sha256/{kept.hex}"}
    assert blobs.put(b"small") == sha256(b"small")


def test_a_blob_that_is_too_large_for_a_document_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.blobs._WHOLE", 10)
    lost: list[str] = []
    store = DirectoryBlobs(tmp_path, owner="a1", lost=lambda digest, why: lost.append(digest))
    digest = store.put(b"a layer, say")
    with pytest.raises(VerificationError, match="more than 10 bytes"):
        store.get(digest)
    assert store.sound(digest)
    assert not lost


def test_many_threads_put_the_same_and_other_blobs(tmp_path: Path) -> None:
    stores = [DirectoryBlobs(tmp_path, owner=f"b{number}") for number in range(4)]

    def work(number: int) -> None:
        for value in range(20):
            stores[number].put(b"shared %d" % value)
            stores[number].put(b"own %d %d" % (number, value))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(tmp_path / "blobs")) == 20 + 80
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("owner", ["", "a-b", "A", "../x", "é"])
def test_owners_that_could_not_be_told_apart_are_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(InputError):
        DirectoryBlobs(tmp_path, owner=owner)


KILLED = """
import os, signal, sys
from pathlib import Path
from storage.blobs import DirectoryBlobs
DirectoryBlobs(Path(sys.argv[1]), owner="dead").writer().write(b"half of it")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_I12_unfinished_blobs_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    blobs = DirectoryBlobs(tmp_path, owner="alive")
    living = blobs.writer()
    living.write(b"whole")
    (tmp_path / "tmp/a note of somebody").write_text("x")
    assert len(list((tmp_path / "tmp").iterdir())) == 3
    blobs.sweep()
    digest, _ = living.commit()
    assert blobs.get(digest) == b"whole"
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["a note of somebody"]
    DirectoryBlobs(tmp_path / "none", owner="alive").sweep()


def test_nothing_is_swept_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{'a' * 6}-{'0' * 16}").write_text("as if it were unfinished")
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout/tmp").symlink_to(tmp_path / "elsewhere")
    DirectoryBlobs(tmp_path / "layout", owner="alive").sweep()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


@pytest.mark.parametrize("name", ["tmp", "blobs", "blobs/sha256"])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_where_a_link_in_a_layout_leads(tmp_path: Path, name: str, *, there: bool) -> None:
    target = tmp_path / "sudoers.d"
    if there:
        target.mkdir()
    (tmp_path / "layout" / name).parent.mkdir(parents=True)
    (tmp_path / "layout" / name).symlink_to(target)
    with pytest.raises(InputError, match="a link in the place of a directory of the layout"):
        DirectoryBlobs(tmp_path / "layout", owner="b1").put(b"x")
    assert list(target.iterdir() if there else [target.exists()]) == ([] if there else [False])


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_layouts_share_the_blobs_of_another_by_a_link(tmp_path: Path, name: str) -> None:
    shared = DirectoryBlobs(tmp_path / "shared", owner="b1")
    shared.put(b"x")
    (tmp_path / "layout" / name).parent.mkdir(parents=True)
    (tmp_path / "layout" / name).symlink_to(tmp_path / "shared" / name)
    linked = DirectoryBlobs(tmp_path / "layout", owner="b1")
    assert shared.get(linked.put(b"y")) == b"y"


def test_another_algorithms_directory_is_no_link_out_of_the_layout_either(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "layout", owner="b1")
    blobs.put(b"x")
    (tmp_path / "layout/blobs/sha512").symlink_to(tmp_path)
    writer = blobs.writer()
    writer.write(b"y")
    with pytest.raises(InputError):
        writer.commit(digest_of(b"y", "sha512"))
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]


@pytest.mark.parametrize("repaired", [False, True])
def test_a_damaged_blob_that_somebody_else_dropped_just_then_is_judged_by_what_is_there_now(
    tmp_path: Path, repaired: bool
) -> None:
    class Raced(DirectoryBlobs):
        def _problem(self, digest: Digest) -> str:
            found = super()._problem(digest)
            if found:
                self.path(digest).unlink()
                if repaired:
                    self.path(digest).write_bytes(b"blob")
            return found

    lost: list[str] = []
    store = Raced(tmp_path, owner="a1", lost=lambda digest, why: lost.append(digest))
    digest = DirectoryBlobs(tmp_path, owner="b1").put(b"blob")
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(b"blot")
    assert (store.sound(digest), lost) == (repaired, [])
