"""USER and --chown mean in an image what docker says they mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.ops.rootfs import RootDir
from engine.ops.users import ExecUser, directory_owner, resolve_owner, resolve_user

PASSWD = """root:x:0:0:root:/root:/bin/sh
# comment:x:5:5::/:
broken
nonumber:x:abc:1::/:
huge:x:99999999999:1::/:
+nis::::::
app:x:1000:1001:App:/srv/app:/bin/sh
app:x:7:7:second:/:/bin/sh
short:x:12:13
12:x:500:501::/named-like-a-number:/bin/sh
"""
GROUP = """root:x:0:
staff:x:50:app,other
app:x:1001:app
audio:x:29:app
audio2:x:29:app
bad:x:nope:app
none
12:x:600:
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[RootDir]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    with RootDir(tmp_path) as root:
        yield root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ExecUser(0, 0, (), "/root")),
        ("root", ExecUser(0, 0, (), "/root")),
        ("app", ExecUser(1000, 1001, (50, 29), "/srv/app")),
        ("1000", ExecUser(1000, 1001, (50, 29), "/srv/app")),
        ("app:staff", ExecUser(1000, 50, (), "/srv/app")),
        ("app:5", ExecUser(1000, 5, (), "/srv/app")),
        ("app:", ExecUser(1000, 1001, (50, 29), "/srv/app")),
        ("4242", ExecUser(4242, 0, (), "/")),
        ("4242:77", ExecUser(4242, 77, (), "/")),
        ("4242:staff", ExecUser(4242, 50, (), "/")),
        (":staff", ExecUser(0, 50, (), "/root")),
        ("short", ExecUser(12, 13, (), "/")),
        ("12", ExecUser(12, 13, (), "/")),
        ("0:12", ExecUser(0, 12, (), "/root")),
    ],
)
def test_user(root: RootDir, text: str, expected: ExecUser) -> None:
    assert resolve_user(root, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("app", (1000, 1001)), ("app:staff", (1000, 50)), ("10", (10, 10)), ("10:11", (10, 11)), ("0:app", (0, 1001))],
)
def test_chown(root: RootDir, text: str, expected: tuple[int, int]) -> None:
    assert resolve_owner(root, text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [("ghost", "user 'ghost'.*/etc/passwd"), ("app:ghost", "group 'ghost'.*/etc/group"), ("2147483648", "too large"),
     ("-1", "user '-1'"), ("nonumber", "user 'nonumber'"), ("9" * 5000, "too large")],
)  # fmt: skip
def test_unknown_names_and_large_numbers_are_input_errors(root: RootDir, text: str, words: str) -> None:
    for resolve in (resolve_user, resolve_owner):
        with pytest.raises(InputError, match=words) as caught:
            resolve(root, text)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (0, 0)), ("app", (1000, 1001)), ("app:staff", (1000, 50)), ("77", (77, 77)), ("77:5", (77, 5)),
     ("ghost", (0, 0)), ("ghost:5", (0, 5)), ("app:ghost", (1000, 1001))],
)  # fmt: skip
def test_a_workdir_belongs_to_the_user(root: RootDir, text: str, expected: tuple[int, int]) -> None:
    assert directory_owner(root, text) == expected


@pytest.mark.parametrize("text", ["", ":staff", "app:"])
def test_chown_must_name_what_it_announces(root: RootDir, text: str) -> None:
    with pytest.raises(InputError, match="names no"):
        resolve_owner(root, text)


def test_an_image_without_passwd_knows_numbers_only(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/etc/passwd/../../loop")
    with RootDir(tmp_path) as root:
        assert resolve_user(root, "") == ExecUser(0, 0, (), "/")
        assert resolve_user(root, "5:6") == ExecUser(5, 6, (), "/")
        with pytest.raises(InputError):
            resolve_user(root, "root")


def test_the_hosts_passwd_is_never_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "host").write_text("evil:x:66:66::/:\n")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").symlink_to(tmp_path / "host")
    with RootDir(tmp_path / "root") as root, pytest.raises(InputError):
        resolve_user(root, "evil")


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"\xff" * (1 << 20) + b"\nlate:x:1:1::/:\n")
    with RootDir(tmp_path) as root, pytest.raises(InputError):
        resolve_user(root, "late")
