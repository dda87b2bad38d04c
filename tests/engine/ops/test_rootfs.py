"""Nothing a root directory holds leads out of it, with openat2 and without."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.ops import rootfs
from engine.ops.rootfs import Position, RootDir


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """`secret` lies outside `root`."""
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc/passwd").write_text("inside")
    (root / "secret").write_text("inside")
    (root / "bin").symlink_to("usr/bin")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "escape").symlink_to("../../../../../secret")
    (root / "host").symlink_to(tmp_path / "secret")
    (root / "updir").symlink_to("..")
    (root / "dangling").symlink_to("/later/dir")
    (root / "loop").symlink_to("loop")
    (root / "etc/back").symlink_to("../usr/bin/../../etc/passwd")
    return tmp_path


@pytest.fixture(params=[True, False], ids=["openat2", "walk"])
def root(host: Path, request: pytest.FixtureRequest) -> Iterator[RootDir]:
    with RootDir(host / "root", use_openat2=request.param) as root:
        yield root


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "etc/passwd", "//etc/./passwd", "absolute", "escape", "updir/updir/secret", "../../secret",
     "etc/back", "usr/../etc/passwd", "updir/absolute"],
)  # fmt: skip
def test_every_link_and_dotdot_stays_inside(root: RootDir, path: str) -> None:
    assert root.read_bytes(path, 100) == b"inside"


def test_a_link_to_a_host_path_is_looked_up_inside(root: RootDir, host: Path) -> None:
    assert (host / "secret").exists()
    with pytest.raises(FileNotFoundError):
        root.read_bytes("host", 100)


def test_creating_through_a_link_creates_inside(root: RootDir, host: Path) -> None:
    (host / "root/new").symlink_to("/../../created")
    os.close(root.open("new", os.O_WRONLY | os.O_CREAT, 0o600))
    assert (host / "root/created").is_file()
    assert not (host / "created").exists()


def test_exclusive_creation_does_not_follow_a_link(root: RootDir) -> None:
    with pytest.raises(FileExistsError):
        root.open("dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


@pytest.mark.parametrize(
    ("path", "error"),
    [("loop", OSError), ("etc/passwd/x", NotADirectoryError), ("etc/passwd/", NotADirectoryError),
     ("none/x", FileNotFoundError), ("none", FileNotFoundError), ("etc/passwd/..", NotADirectoryError),
     ("a\0b", OSError)],
)  # fmt: skip
def test_errors_are_those_of_the_system_and_name_the_path(root: RootDir, path: str, error: type[OSError]) -> None:
    with pytest.raises(error) as caught:
        root.stat(path)
    assert caught.value.filename == path.replace("\0", "\\0")


def test_stat_and_readlink_can_look_at_the_link_itself(root: RootDir) -> None:
    assert stat.S_ISLNK(root.stat("bin", follow=False).st_mode)
    assert stat.S_ISDIR(root.stat("bin").st_mode)
    assert root.readlink("absolute") == "/etc/passwd"
    with pytest.raises(OSError, match="Invalid argument"):
        root.readlink("etc/passwd")


def test_reading_is_bounded_and_refuses_what_is_no_file(root: RootDir, host: Path) -> None:
    os.mkfifo(host / "root/fifo")
    assert root.read_bytes("etc/passwd", 3) == b"ins"
    for path in ("fifo", "etc"):
        with pytest.raises(OSError, match="not a regular file"):
            root.read_bytes(path, 10)


@pytest.mark.parametrize(
    ("path", "real"),
    [("bin", "/usr/bin"), ("bin/x", "/usr/bin/x"), ("/", "/"), ("..", "/"), ("absolute", "/etc/passwd"),
     ("updir/bin/../lib", "/usr/lib"), ("etc/", "/etc"), ("dangling/..", None)],
)  # fmt: skip
def test_resolve_gives_the_real_path_inside(root: RootDir, path: str, real: str | None) -> None:
    if real is None:
        with pytest.raises(FileNotFoundError):
            root.resolve(path)
    else:
        assert root.resolve(path) == real


def make(root: RootDir, path: str) -> list[str]:
    """Make directory `path` and its parents where they are missing; the real paths of those made, top first."""
    made = []

    def directory(at: Position) -> None:
        os.mkdir(at.name, dir_fd=at.directory)
        made.append(at.path)

    root.make_missing(path + "/.", directory)
    return made


def test_what_is_missing_is_made_through_links_and_never_outside(root: RootDir, host: Path) -> None:
    assert make(root, "/bin/a/b") == ["/usr/bin/a", "/usr/bin/a/b"]
    assert (host / "root/usr/bin/a/b").is_dir()
    assert make(root, "/bin/a/b") == []
    assert make(root, "updir/updir/top") == ["/top"]
    assert not (host / "top").exists()
    assert make(root, "dangling") == ["/later", "/later/dir"]
    assert make(root, "/") == []


@pytest.mark.parametrize("path", ["etc/passwd", "etc/passwd/x", "absolute/x"])
def test_a_file_in_the_way_is_named(root: RootDir, path: str) -> None:
    with pytest.raises(NotADirectoryError) as caught:
        make(root, path)
    assert caught.value.filename == path


def test_no_descriptor_is_left_open(root: RootDir) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for path in ("bin/x", "absolute", "none/x", "loop", "etc/passwd/x"):
        for call in (root.stat, root.resolve, partial(make, root)):
            try:
                call(path)
            except OSError:
                continue
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_names_that_are_not_utf8_work(root: RootDir, host: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    (host / "root" / name).write_text("raw")
    assert root.read_bytes(name, 10) == b"raw"
    assert root.resolve(name) == f"/{name}"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_where_the_kernel_does_not_walk_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[int] = []

    def refuse(*_: object) -> int:
        calls.append(1)
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(rootfs, "_libc", SimpleNamespace(syscall=refuse))
    with RootDir(tmp_path) as root:
        for _ in range(2):
            os.close(root.open("/", os.O_RDONLY))
    assert len(calls) == (2 * rootfs._RETRIES if number == errno.EAGAIN else 1)  # a race may not come again
