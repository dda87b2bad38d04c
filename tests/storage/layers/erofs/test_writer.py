"""What a step's layer cannot hold, and a disk that refuses, while it is written as an image."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import DiskError, InputError
from storage.interfaces.layers import Look
from storage.layers.erofs.compose import ErofsLayerWriter

FILE = Look(0o644, 0, 0, 0)


def begun(place: Path) -> ErofsLayerWriter:
    return ErofsLayerWriter(place / "tmp/new", place / "snapshots/s.erofs", "s")


def link_to_directory(writer: ErofsLayerWriter) -> None:
    writer.directory(b"d", FILE)
    writer.link(b"l", b"d")


WRONG: dict[str, tuple[Callable[[ErofsLayerWriter], object], type[Exception], str]] = {
    "a name": (lambda to: to.file(b"n" * 300, FILE, 0, []), InputError, "File name too long"),
    "an owner": (lambda to: to.file(b"f", Look(0o644, 1 << 32, 0, 0), 0, []), InputError, "out of range"),
    "attributes": (lambda to: to.file(b"f", Look(0, 0, 0, 0, {b"user.x": bytes(70_000)}), 0, []), InputError, "range"),
    "a major": (lambda to: to.node(b"c", FILE, "char", b"", os.makedev(1 << 12, 0)), InputError, "out of range"),
    "a minor": (lambda to: to.node(b"c", FILE, "block", b"", os.makedev(0, 1 << 20)), InputError, "out of range"),
    "a link": (lambda to: to.link(b"l", b"nowhere"), ValueError, "which was not written"),
    "a link to a directory": (link_to_directory, InputError, "directory"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_layer_holds_is_the_inputs_fault_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    act, kind, why = WRONG[what]
    writer = begun(tmp_path)
    with pytest.raises(kind, match=why):
        act(writer)
    writer.discard()
    writer.discard()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size", [5, 1 << 20])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """At the end, or while the content of a file is written."""

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = begun(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="writing a layer: No space left on device"):
        patch.setattr(os, "write", full)
        writer.file(b"f", FILE, size, [bytes(size)])
        assert size < 1 << 20, "it was written"
        writer.commit()
    writer.discard()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
