"""What a disk refuses in the middle of things, and what others do to the same files meanwhile: said, or passed over."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import durable
from storage.blobs import DirectoryBlobs, WithMore
from storage.cachemounts import DirectoryCacheMounts, MemoryPlaces
from storage.digest import Digest, sha256
from storage.durable import create_held, make_directories, replace_file
from storage.errors import DiskError
from storage.interfaces.images import Descriptor
from storage.locks import FileLocks
from storage.partial import DirectoryPartials, FilePartial
from storage.temporary import TemporaryPlace, usual_directory
from storage.usage import DiskItems, measure, mentioned

DIGEST = sha256(b"content")
BLOB = Descriptor("m", DIGEST, 7)
FLOCK = fcntl.flock
Patch = pytest.MonkeyPatch


def refusing(number: int) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


def once(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """`first` the first time, `then` from then on."""
    calls: list[int] = []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        return (first if len(calls) == 1 else then)(*arguments, **more)

    return call


# ---------------------------------------------------------------- blobs


def blobs(root: Path) -> DirectoryBlobs:
    return DirectoryBlobs(root, owner="b1", lost=lambda digest, why: None)


def test_a_blob_that_goes_while_it_is_looked_at_is_not_here(tmp_path: Path, monkeypatch: Patch) -> None:
    blobs(tmp_path).put(b"content")
    store = blobs(tmp_path)
    monkeypatch.setattr("storage.blobs.open_regular", refusing(errno.ENOENT))
    assert not store.sound(DIGEST)
    assert not store._drop(DIGEST), "nor is it damaged"


def test_a_blob_that_may_not_be_read_is_neither_sound_nor_damaged(tmp_path: Path, monkeypatch: Patch) -> None:
    blobs(tmp_path).put(b"content")
    store = blobs(tmp_path)
    monkeypatch.setattr("storage.blobs.open_regular", refusing(errno.EACCES))
    with pytest.raises(DiskError, match="reading a blob: Permission denied"):
        store.sound(DIGEST)
    assert store.path(DIGEST).exists()


@pytest.mark.parametrize("instead", ["directory", "file"])
def test_a_damaged_blob_that_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: Patch, instead: str) -> None:
    blobs(tmp_path).put(b"content")
    store = blobs(tmp_path)
    path = store.path(DIGEST)
    path.unlink()
    path.mkdir() if instead == "directory" else path.write_bytes(b"other")
    monkeypatch.setattr(Path, "unlink", refusing(errno.EROFS))
    monkeypatch.setattr(Path, "rename", refusing(errno.EROFS))
    with pytest.raises(DiskError, match="removing a damaged blob: Read-only"):
        store.get(DIGEST)


def test_a_name_that_could_not_be_made_durable_is_written_anew(tmp_path: Path, monkeypatch: Patch) -> None:
    """I6: the blob is here, put by a process that may have died before its name was durable."""
    blobs(tmp_path).put(b"content")
    store = blobs(tmp_path)
    monkeypatch.setattr("storage.blobs.fsync_directory", once(refusing(errno.EIO), durable.fsync_directory))
    inode = store.path(DIGEST).stat().st_ino
    assert store.put(b"content") == DIGEST
    assert store.path(DIGEST).stat().st_ino != inode


def test_a_blob_that_cannot_be_stored_leaves_nothing(tmp_path: Path, monkeypatch: Patch) -> None:
    store = blobs(tmp_path)
    writer = store.writer()
    writer.write(b"content")
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(DiskError, match="storing a blob: Input/output error"):
        writer.commit()
    assert store.size(DIGEST) is None
    assert list((tmp_path / "tmp").iterdir()) == []


def test_unfinished_blobs_that_cannot_be_looked_for_are_said_and_none_are_none(tmp_path: Path) -> None:
    blobs(tmp_path).sweep()
    (tmp_path / "tmp").touch()
    with pytest.raises(DiskError, match="removing unfinished blobs"):
        blobs(tmp_path).sweep()


def test_what_one_store_lacks_is_read_from_another_and_never_written_there(tmp_path: Path) -> None:
    mine, more = DirectoryBlobs(tmp_path / "mine", owner="b1"), DirectoryBlobs(tmp_path / "more", owner="b1")
    both = WithMore(mine, more)
    more.put(b"content")
    assert both.sound(DIGEST)
    assert both.get(DIGEST) == b"content"
    writer = both.writer()
    writer.write(b"new")
    new, _ = writer.commit()
    assert (mine.size(new), more.size(new)) == (3, None)
    assert both.sound(new)
    assert not both.sound(sha256(b"neither"))


# ---------------------------------------------------------------- partial blobs


def partial(root: Path) -> FilePartial:
    made = DirectoryPartials(root / "partial").open(BLOB)
    made.write(0, b"con")
    return made


def test_an_interrupted_pull_that_cannot_be_read_or_removed_is_said(tmp_path: Path, monkeypatch: Patch) -> None:
    made = partial(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refusing(errno.EIO))
        with pytest.raises(DiskError, match="reading back a blob's bytes: Input/output error"):
            made.read(0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refusing(errno.ENOSPC))
        with pytest.raises(DiskError, match="keeping a blob's bytes: No space left"):
            made.write(3, b"tent")
    assert made.read(0, 7) == b"con"
    with monkeypatch.context() as patch:
        patch.setattr("storage.partial.remove_tree", refusing(errno.EROFS))
        with pytest.raises(DiskError, match="removing an interrupted pull: Read-only"):
            made.discard()
        with pytest.raises(DiskError, match="removing interrupted pulls: Read-only"):
            DirectoryPartials(tmp_path / "partial").sweep(float("inf"), FileLocks(tmp_path / "locks"))


def test_a_pull_that_somebody_went_on_with_or_ended_meanwhile_stays_out_of_a_sweep(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    partial(tmp_path).close()
    partials, locks = DirectoryPartials(tmp_path / "partial"), FileLocks(tmp_path / "locks")
    touched = once(lambda path: 0.0, lambda path: 100.0)
    monkeypatch.setattr("storage.partial._touched", touched)
    assert partials.sweep(50.0, locks) == []
    monkeypatch.undo()
    listed = [tmp_path / "partial" / "sha256-gone"]
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(listed))
    assert partials.sweep(float("inf"), locks) == []


# ---------------------------------------------------------------- what a root uses


def test_what_vanishes_while_a_root_is_measured_does_not_count(tmp_path: Path, monkeypatch: Patch) -> None:
    for name in ("snapshots/s/fs/d/gone", "snapshots/s/fs/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    scandir = os.scandir

    class Vanishing:
        """An entry that goes before it is looked at; a directory before it is opened."""

        def __init__(self, entry: os.DirEntry[Any]) -> None:
            self.name = entry.name
            self._entry = entry

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            if self.name == "file":
                raise FileNotFoundError
            status = self._entry.stat(follow_symlinks=follow_symlinks)
            if self.name == "d":
                (tmp_path / "snapshots/s/fs/d").rename(tmp_path.with_name("away"))
            return status

    class Scan:
        def __init__(self, fd: int) -> None:
            self._real = scandir(fd)

        def __enter__(self) -> list[Vanishing]:
            return [Vanishing(entry) for entry in self._real]

        def __exit__(self, *_: object) -> None:
            self._real.close()

    monkeypatch.setattr(os, "scandir", Scan)
    assert measure(tmp_path).items == {"snapshot/s": 0}


def test_what_was_collected_and_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: Patch) -> None:
    items = DiskItems(tmp_path, "b1")
    for number in range(2):
        (tmp_path / f"cache/{DIGEST.hex}/{number}").mkdir(parents=True)
    taken = items.take(f"cachemount/{DIGEST.hex}/0")
    assert (tmp_path / "cache" / DIGEST.hex / "1").exists(), "the other instance stays where it is"
    assert items.take(f"cachemount/{DIGEST.hex}/0") == []
    monkeypatch.setattr("storage.usage.remove_tree", refusing(errno.EIO))
    with pytest.raises(DiskError, match="removing what was collected"):
        items.discard(taken)


def test_documents_that_are_not_here_mention_nothing_and_no_more_is_read_than_needed(tmp_path: Path) -> None:
    wanted = {str(DIGEST)}
    gone, there, unread = (sha256(name) for name in (b"gone", b"there", b"unread"))
    place = tmp_path / "blobs/sha256"
    (place / unread.hex).mkdir(parents=True)
    (place / there.hex).write_text(f'{{"config": "{DIGEST}"}}')
    assert mentioned(tmp_path, [str(gone), str(there), str(unread)], wanted) == wanted


# ---------------------------------------------------------------- locks, files beside their place, temporary places


def test_a_lock_whose_file_goes_between_opening_and_locking_is_taken_anew(tmp_path: Path, monkeypatch: Patch) -> None:
    locks = FileLocks(tmp_path)
    real = fcntl.fcntl

    def vanish(fd: int, command: int, argument: bytes) -> bytes:
        (tmp_path / "x").unlink()
        return real(fd, command, argument)

    monkeypatch.setattr("storage.locks.fcntl.fcntl", once(vanish, real))
    lock = locks.try_acquire("x")
    assert lock is not None
    assert (tmp_path / "x").exists()
    assert locks.held("x")
    lock.release()


def test_a_lock_that_cannot_be_taken_or_swept_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: Patch) -> None:
    locks = FileLocks(tmp_path)
    monkeypatch.setattr("storage.locks.fcntl.fcntl", refusing(errno.ENOLCK))
    with pytest.raises(DiskError, match="taking a lock: No locks available"):
        locks.try_acquire("x")
    with pytest.raises(DiskError, match="removing locks of builds that died"):
        locks.sweep()


def test_a_new_file_that_is_taken_for_a_dead_one_s_is_made_anew(tmp_path: Path, monkeypatch: Patch) -> None:
    """Whoever sweeps may hold it, or have removed it already, before it is locked."""
    monkeypatch.setattr("storage.durable.fcntl.flock", once(refusing(errno.EWOULDBLOCK), FLOCK))
    assert create_held(tmp_path / "held", 0o600) is None
    monkeypatch.setattr("storage.durable.fcntl.flock", once(lambda fd, how: (tmp_path / "gone").unlink(), FLOCK))
    assert create_held(tmp_path / "gone", 0o600) is None
    monkeypatch.setattr("storage.durable.fcntl.flock", once(refusing(errno.EWOULDBLOCK), FLOCK))
    replace_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
    monkeypatch.setattr("storage.durable.fcntl.flock", once(refusing(errno.EWOULDBLOCK), FLOCK))
    assert blobs(tmp_path / "root").put(b"content") == DIGEST


def test_where_files_cannot_be_locked_they_are_made_all_the_same(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("storage.durable.fcntl.flock", refusing(errno.ENOLCK))
    replace_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_directory_that_may_not_be_looked_at_from_above_serves(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(durable, "fsync_directory", once(refusing(errno.EACCES), durable.fsync_directory))
    make_directories(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


def test_a_temporary_place_that_is_taken_for_a_dead_one_s_is_made_anew(tmp_path: Path, monkeypatch: Patch) -> None:
    def sweep(fd: int, _how: int) -> None:
        os.rmdir(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH106, PTH115 - as the kernel names it

    monkeypatch.setattr("storage.temporary.fcntl.flock", once(sweep, FLOCK))
    with TemporaryPlace(tmp_path) as place:
        assert list(tmp_path.iterdir()) == [place]


def test_temporary_files_go_where_there_is_a_place_for_them(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert usual_directory() == tmp_path
    monkeypatch.delenv("TEMP")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.chdir(tmp_path)
    assert usual_directory() == tmp_path


# ---------------------------------------------------------------- cache mounts, secrets


def test_a_cache_mount_that_cannot_be_put_in_its_place_is_said(tmp_path: Path, monkeypatch: Patch) -> None:
    caches = DirectoryCacheMounts(tmp_path / "cache", tmp_path / "tmp", "b1", FileLocks(tmp_path / "locks"))
    held = caches.try_acquire(Digest(str(DIGEST)), "locked")
    assert held is not None
    monkeypatch.setattr(Path, "rename", refusing(errno.EXDEV))
    with pytest.raises(DiskError, match="making a cache mount: Invalid cross-device link"):
        held.fill(lambda tree: None)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not held.exists()


def test_a_place_for_secrets_that_cannot_be_mounted_is_said_and_gone(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("storage.cachemounts.mount_memory", refusing(errno.EPERM))
    with pytest.raises(DiskError, match="mounting a tmpfs for secrets"), MemoryPlaces(tmp_path, "b1").place():
        pass
    assert list(tmp_path.iterdir()) == []


def test_leftovers_that_are_none_go_and_those_of_somebody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial/stray").touch()
    assert DirectoryPartials(tmp_path / "partial").sweep(float("inf"), FileLocks(tmp_path / "locks")) == ["stray"]
    theirs = tmp_path / ".refledger-tmp.abcdefgh"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 1234, 1234)
        with TemporaryPlace(tmp_path):
            assert theirs.exists()


def test_a_stored_blob_is_a_file_like_others(tmp_path: Path) -> None:
    digest = blobs(tmp_path).put(b"0123456789")
    with blobs(tmp_path).open(digest) as file:
        assert file.seekable()
        assert os.pread(file.fileno(), 3, 4) == b"456"


def test_a_pipe_that_may_not_be_written_to_is_no_place_for_a_result(tmp_path: Path, monkeypatch: Patch) -> None:
    os.mkfifo(tmp_path / "pipe")
    durable.try_place(tmp_path / "pipe")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for everybody but root
    with pytest.raises(PermissionError, match="pipe"):
        durable.try_place(tmp_path / "pipe")
