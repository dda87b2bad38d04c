"""Mount points that an image lacks are there for the step, and gone after it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DiskError, InputError
from engine.ops.mountpoints import MountPoints


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    os.utime(path / "etc", ns=(5, 5))
    return path


def test_a_directory_where_a_file_is_wanted_is_the_images_fault_and_nothing_stays(root: Path) -> None:
    (root / "etc/hosts").mkdir()
    wanted = MountPoints(root, directories=("/new/deep",), files=("/etc/hosts",))
    with pytest.raises(InputError, match="in the way of /etc/hosts: Is a directory"):
        wanted.__enter__()
    assert sorted(path.name for path in root.rglob("*")) == ["etc", "hosts"]


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (lambda root: None, []),
        (lambda root: (root / "etc/hosts").write_text("mine"), ["etc/hosts"]),
        (lambda root: (root / "new/deep/file").touch(), ["new", "new/deep", "new/deep/file"]),
        (lambda root: ((root / "etc/hosts").unlink(), (root / "etc/hosts").symlink_to("x")), ["etc/hosts"]),
        (lambda root: (root / "etc/hosts").unlink(), []),
        (lambda root: ((root / "new/deep").rmdir(), (root / "new").rmdir(), (root / "new").touch()), ["new"]),
    ],
)
def test_what_a_step_made_its_own_stays(root: Path, change: Callable[[Path], object], stays: list[str]) -> None:
    with MountPoints(root, directories=("/new/deep",), files=("/etc/hosts",)):
        assert (root / "new/deep").is_dir()
        change(root)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != "etc") == stays


def test_the_directory_above_keeps_its_time(root: Path) -> None:
    with MountPoints(root, directories=(), files=("/etc/hosts",)):
        pass
    assert (root / "etc").stat().st_mtime_ns == 5


def test_a_full_disk_is_told_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(DiskError, match="No space left"):
        MountPoints(root, directories=("/new",), files=()).__enter__()


def test_what_cannot_be_removed_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    made = MountPoints(root, directories=("/new",), files=())
    made.__enter__()
    monkeypatch.setattr(os, "rmdir", broken)
    with pytest.raises(DiskError, match="removing what the container needed"):
        made.__exit__(None, None, None)
