"""Which extended attributes are carried along."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engine.ops.xattrs import CARRIED, KEPT, read_xattrs


@pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes need root")
def test_a_copy_keeps_fewer_than_a_layer_and_neither_the_overlays(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    for name in ("user.b", "user.a", "trusted.c", "trusted.overlay.opaque", "user.overlay.x"):
        os.setxattr(file, name, name.encode())
    assert list(read_xattrs(str(file), KEPT).items()) == [("user.a", b"user.a"), ("user.b", b"user.b")]
    assert list(read_xattrs(os.open(file, os.O_RDONLY), CARRIED)) == ["trusted.c", "user.a", "user.b"]


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENODATA, errno.EIO])
def test_a_file_system_without_any_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> list[str]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "listxattr", refuse)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            read_xattrs(str(tmp_path), KEPT)
    else:
        assert read_xattrs(str(tmp_path), KEPT) == {}
