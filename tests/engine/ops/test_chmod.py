"""--chmod: octal and symbolic modes."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.ops.chmod import parse_chmod


def _applied(text: str, mode: int, *, is_dir: bool = False) -> int:
    chmod = parse_chmod(text)
    assert chmod is not None
    return chmod.apply(mode, is_dir=is_dir)


@pytest.mark.parametrize(
    ("text", "mode", "is_dir", "result"),
    [
        ("755", 0o600, False, 0o755),
        ("07777", 0o600, True, 0o7777),
        ("0", 0o777, False, 0),
        # the reference's own examples
        ("+x", 0o644, False, 0o755),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("u=rwX,go=rX", 0o700, True, 0o755),
        ("g=u", 0o750, False, 0o770),
        # others
        ("u+s,g+s", 0o755, False, 0o6755),
        ("+t", 0o777, True, 0o1777),
        ("a-s", 0o6755, False, 0o755),
        ("u=", 0o4755, False, 0o055),
        ("go-rwx", 0o777, False, 0o700),
        ("u+x-w", 0o644, False, 0o544),
        ("ug=rw,o=", 0o777, False, 0o660),
        ("+w", 0o444, False, 0o644),  # the umask is 022
        ("=rw", 0o777, False, 0o644),
        ("o=g,g=", 0o750, False, 0o705),
        ("a+X", 0o644, False, 0o644),
        ("a+X", 0o644, True, 0o755),
    ],
)
def test_modes_are_what_chmod_makes_them(text: str, mode: int, is_dir: bool, result: int) -> None:
    assert _applied(text, mode, is_dir=is_dir) == result


@pytest.mark.parametrize("start", [0o600, 0o644, 0o755, 0o777, 0o400])
@pytest.mark.parametrize(
    "text",
    ["+x", "-x", "u+w", "g=u", "o=g", "a=r", "u=rwx,g=rx,o=", "ug+rw", "go-w", "+r", "-w", "=rx", "u+s", "g+s,o+t",
     "a+X", "u-x,g=o", "o+u"],
)  # fmt: skip
def test_agrees_with_chmod(tmp_path: Path, text: str, start: int) -> None:
    for is_dir in (False, True):
        path = tmp_path / str(is_dir)
        path.mkdir() if is_dir else path.touch()
        path.chmod(start)
        subprocess.run(["chmod", "--", text, path], umask=0o022, check=False, capture_output=True)
        assert _applied(text, start, is_dir=is_dir) == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "text", ["8", "10000", "77777", "0o755", "-1", "+7", "٧", "u", "rwx", "u+y", "u+x,", "+x g+w", "z=r"]
)
def test_anything_else_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        parse_chmod(text)


def test_no_mode_is_none() -> None:
    assert parse_chmod("") is None
