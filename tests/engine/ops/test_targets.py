"""Where mounts go: no link is left in a target, whoever made it, and nothing covers what the runtime works with."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from engine.errors import DiskError, InputError
from engine.ops.bundle import _settled
from engine.ops.oci_spec import ContainerMount, Process
from engine.ops.targets import settled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("dev", "proc", "sys", "data/deep", "other"):
        (root / name).mkdir(parents=True)
    for name, text in {
        "d": "/dev", "e": "other/../dev", "up": "../../../../dev", "chain": "d", "sub": "/data", "k": "/proc/sys",
        "top": "/", "round": "round", "data/out": "/other", "ptmx": "/dev/ptmx", "shm": "/dev/shm",
    }.items():  # fmt: skip
        (root / name).symlink_to(text)
    return root


def targets(root: Path, *mounts: ContainerMount) -> list[str]:
    return [mount.target for mount in settled(root, mounts)]


@pytest.mark.parametrize(
    ("written", "real"),
    [
        ("/plain", "/plain"), ("/new/deep", "/new/deep"), ("/sub/deep", "/data/deep"), ("/sub/new", "/data/new"),
        ("/data/out/x", "/other/x"), ("/dev/shm", "/dev/shm"), ("/shm", "/dev/shm"), ("/a/../b", "/b"),
        ("/dev/new", "/dev/new"),
    ],
)  # fmt: skip
def test_links_of_the_image_are_followed_inside_of_it(root: Path, written: str, real: str) -> None:
    assert targets(root, ContainerMount(written)) == [real]


@pytest.mark.parametrize(
    "target",
    ["/", "/dev", "/dev/null", "/dev/pts", "/dev/fd/3",
     "/proc", "/proc/self", "/sys", "/sys/fs/cgroup", "/d", "/e", "/up", "/chain",
     "/d/null", "/k", "/k/kernel", "/top", "/top/dev", "/ptmx", "/round", "/data/../d", "/sub/../d"],
)  # fmt: skip
def test_what_the_runtime_makes_cannot_be_covered(root: Path, target: str) -> None:
    with pytest.raises(InputError, match="cannot be mounted"):
        settled(root, [ContainerMount(target)])


def test_links_in_what_is_mounted_before_count_as_well(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "away").symlink_to("/data")
    (cache / "dev").symlink_to("/dev")
    (cache / "dots").symlink_to("../other")
    first = ContainerMount("/c", str(cache))
    assert targets(root, first, ContainerMount("/c/away/x")) == ["/c", "/data/x"]
    assert targets(root, first, ContainerMount("/c/dots")) == ["/c", "/other"]
    assert targets(root, ContainerMount("/c"), ContainerMount("/c/away/x")) == ["/c", "/c/away/x"]  # an empty tmpfs
    with pytest.raises(InputError, match=r"/c/dev cannot be mounted over, a link to /dev"):
        settled(root, [first, ContainerMount("/c/dev")])


def test_a_link_leads_into_no_other_mount_as_its_content_may_change(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match=r"/sub/x cannot be mounted over, a link to /data/x, which lies in another"):
        settled(root, [ContainerMount("/data", str(tmp_path / "cache")), ContainerMount("/sub/x")])
    assert targets(root, ContainerMount("/data"), ContainerMount("/sub/x")) == ["/data", "/data/x"]


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_an_image_with_a_link_in_the_place_of_what_the_runtime_mounts_is_refused(root: Path, name: str) -> None:
    (root / name).rmdir()
    (root / name).symlink_to("/data")
    with pytest.raises(InputError, match=f"a link in the place of /{name}"):
        settled(root, [])


def test_a_target_that_is_too_long_is_no_link(root: Path) -> None:
    assert targets(root, ContainerMount("/" + "a" * 300)) == ["/" + "a" * 300]  # whoever makes it will say so


def test_a_disk_that_cannot_be_read_is_said_where_mounts_are_prepared(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "lstat", broken)
    process = Process(
        argv=("true",), env=(), cwd="/", uid=0, gid=0, groups=(), network="none", root=root,
        mounts=(ContainerMount("/m", str(root)),),
    )  # fmt: skip
    with pytest.raises(DiskError, match="preparing the container: Input/output error"):
        _settled(process)
