"""Cache mounts on disk: who may use which instance, and that one is never seen half made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.cachemounts import DirectoryCacheMounts, MemoryPlaces
from storage.digest import sha256
from storage.errors import DiskError
from storage.locks import FileLocks
from storage.overlay import mounts_below
from storage.sweep import sweep

CACHE = sha256(b"one")
OTHER = sha256(b"other")


@pytest.fixture
def caches(tmp_path: Path) -> DirectoryCacheMounts:
    return DirectoryCacheMounts(tmp_path / "cache", tmp_path / "tmp", "owner1", FileLocks(tmp_path / "locks"))


def test_sharing(caches: DirectoryCacheMounts) -> None:
    first = caches.try_acquire(CACHE, "shared")
    second = caches.try_acquire(CACHE, "shared")
    assert first and second
    assert first.path == second.path
    assert caches.try_acquire(CACHE, "locked") is None
    private = caches.try_acquire(CACHE, "private")
    assert private and private.instance == 1
    assert caches.try_acquire(OTHER, "locked") is not None
    first.release()
    assert caches.try_acquire(CACHE, "locked") is None  # the second one has it still
    second.release()
    second.release()
    locked = caches.try_acquire(CACHE, "locked")
    assert locked and locked.path == first.path
    assert caches.try_acquire(CACHE, "shared") is None
    locked.release()
    again = caches.try_acquire(CACHE, "private")
    assert again and again.instance == 0


def test_a_cache_is_filled_once_and_at_once(caches: DirectoryCacheMounts, tmp_path: Path) -> None:
    held = caches.try_acquire(CACHE, "shared")
    assert held
    assert not held.exists()
    seen = []

    def make(directory: Path) -> None:
        (directory / "a").write_text("first")
        seen.append(held.exists())

    held.fill(make)
    assert (seen, held.exists()) == ([False], True)
    (held.path / "used").touch()

    def late(directory: Path) -> None:
        (directory / "a").write_text("late")

    held.fill(late)
    assert sorted(path.name for path in held.path.iterdir()) == ["a", "used"]
    assert (held.path / "a").read_text() == "first"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_late_one_does_not_replace_an_empty_directory_in_use(caches: DirectoryCacheMounts) -> None:
    held = caches.try_acquire(CACHE, "shared")
    assert held

    def slow(directory: Path) -> None:
        held.fill(lambda _: None)
        inode.append(held.path.stat().st_ino)

    inode: list[int] = []
    held.fill(slow)
    assert held.path.stat().st_ino == inode[0]


def test_a_failure_leaves_nothing(caches: DirectoryCacheMounts, tmp_path: Path) -> None:
    held = caches.try_acquire(CACHE, "shared")
    assert held

    def make(directory: Path) -> None:
        (directory / "a").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        held.fill(make)
    assert not held.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_place_for_secrets_is_memory_closed_to_others_and_gone(tmp_path: Path) -> None:
    with MemoryPlaces(tmp_path, "owner1").place() as place:
        (place / "s").write_text("secret")
        assert place.stat().st_mode & 0o777 == 0o700
        assert mounts_below(place) == [place]
        assert place.stat().st_dev != tmp_path.stat().st_dev
    assert list(tmp_path.iterdir()) == []
    assert mounts_below(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_sweep_removes_the_place_of_a_dead_owner(tmp_path: Path) -> None:
    context = MemoryPlaces(tmp_path, "owner1").place()
    place = context.__enter__()
    (place / "s").write_text("secret")
    assert sweep(tmp_path, lambda _: False, "heir") == [place.name]
    assert list(tmp_path.iterdir()) == []
    assert mounts_below(tmp_path) == []
    context.__exit__(None, None, None)  # harmless now


@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_lies_behind_a_link_is_no_cache(caches: DirectoryCacheMounts, tmp_path: Path, above: int) -> None:
    """A step would write there."""
    held = caches.try_acquire(CACHE, "locked")
    assert held
    held.fill(lambda directory: (directory / "a").touch())
    link = [held.path, *held.path.parents][above]
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskError, match=f"{link}: a link in the place of a cache mount"):
        held.exists()
