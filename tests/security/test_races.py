"""Somebody swaps names while a context is read or an export is written: nothing outside of it comes in or changes."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from engine.errors import DiskError, InputError
from engine.graph import Copy
from engine.ops.copy import copy_layer
from engine.ops.rootfs import RootDir
from engine.ops.select import select
from storage.digest import sha256
from storage.interfaces.layers import Look
from storage.layers.compose import TreeWriter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

_EXCHANGE = 2  # RENAME_EXCHANGE, <linux/fs.h>
_libc = ctypes.CDLL(None, use_errno=True)
OURS, THEIRS = "of the context", "of this machine"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of this machine."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text(THEIRS)
    return victim


def outcomes(act: Callable[[int], str], *swaps: Callable[[], None]) -> set[str]:
    """What comes of it when a swap is done before each of its calls to the kernel in turn, and undone by another before
    the next call, the one after that, or at the end. Not by another process or thread: those hardly meet the moments
    that matter. `act` is given another number each time."""
    seen = set[str]()
    numbers = itertools.count()
    for swap, stays in itertools.product(swaps, (1, 2, 1 << 30)):
        done = 1
        for first in itertools.count():
            if not done:
                break  # it has no more calls
            calls = itertools.count()
            done = 0

            def watch(_: FrameType, event: str, function: Any) -> None:
                nonlocal done
                ours = event == "c_call" and function.__module__ in {"posix", "_io", "io"}
                if ours and next(calls) in {first, first + stays}:  # noqa: B023 - called in this round only
                    swap()  # noqa: B023
                    done += 1

            sys.setprofile(watch)
            try:
                found = act(next(numbers))
            except (InputError, DiskError) as error:
                found = type(error).__name__
            finally:
                sys.setprofile(None)
            seen.add(found)
            if done % 2:
                swap()
    return seen


def swapped(one: Path, other: Path) -> Callable[[], None]:
    """Exchange the two, with no moment in between."""

    def swap() -> None:
        if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2")

    return swap


def replaced(place: Path, target: Path) -> Callable[[], None]:
    """Make `place` a link to `target`, or a new directory if it is a link."""

    def replace() -> None:
        if place.is_symlink():
            place.unlink()
            place.mkdir()
        else:
            shutil.rmtree(place, ignore_errors=True)
            place.symlink_to(target)

    return replace


def planted(place: Path, target: Path) -> Callable[[], None]:
    """Put a link to `target` in the place of what is there, or take it away."""

    def plant() -> None:
        there = place.is_symlink() and place.readlink() == target
        with suppress(OSError):
            place.unlink()
        if not there and place.parent.is_dir():
            place.symlink_to(target)

    return plant


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


def owners(place: Path) -> list[tuple[str, int, int]]:
    """Of all there is in it."""
    return [(str(path), path.lstat().st_mode, path.lstat().st_uid) for path in sorted([place, *place.rglob("*")])]


def copied(op: Copy, context: Path, out: Path, *, hashed: bool) -> Path:
    """`out`, new, with what a COPY takes from `context`."""
    out.mkdir()
    chosen = select(op, context, hash_files=hashed)
    assert sha256(THEIRS.encode()) not in {entry.digest for entry in chosen.entries}
    copy_layer(op, chosen, context, None, lambda: TreeWriter(out, empty=True), now_ns=0)
    return out


@pytest.mark.parametrize("hashed", [True, False])
def test_a_directory_of_the_context_that_becomes_a_link(tmp_path: Path, victim: Path, hashed: bool) -> None:
    context = tmp_path / "context"
    (context / "d").mkdir(parents=True)
    (context / "d/file").write_text(OURS)
    op = Copy(sources=(".",), dest="/", from_context=True)

    def copy(number: int) -> str:
        out = copied(op, context, tmp_path / f"out{number}", hashed=hashed)
        texts = [path.read_text() for path in out.rglob("*") if path.is_file() and not path.is_symlink()]
        return str(sorted(set(texts)))

    found = outcomes(copy, swapped(context / "d", link(tmp_path / "l", victim)))
    assert not [text for text in found if THEIRS in text]
    assert any(OURS in text for text in found)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_of_the_context_that_becomes_a_link_or_a_pipe(tmp_path: Path, victim: Path, hashed: bool) -> None:
    """A pipe would hold the build for ever."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_text(OURS)
    op = Copy(sources=("f",), dest="/f", from_context=True)

    def copy(number: int) -> str:
        out = copied(op, context, tmp_path / f"out{number}", hashed=hashed)
        return (out / "f").read_text() if (out / "f").is_file() and not (out / "f").is_symlink() else "other"

    found = outcomes(
        copy,
        swapped(context / "f", link(tmp_path / "l", victim / "file")),
        swapped(context / "f", fifo(tmp_path / "p")),
    )
    assert THEIRS not in found
    assert OURS in found


def test_a_file_that_grows_while_it_is_copied_is_said_or_cut_off(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_bytes(b"x" * (3 << 20))
    stop = threading.Event()

    def grow() -> None:
        with (context / "f").open("ab", buffering=0) as file:
            while not stop.wait(0.001) and file.tell() < 64 << 20:
                file.write(b"y" * 4096)

    thread = threading.Thread(target=grow)
    thread.start()
    op = Copy(sources=("f",), dest="/f", from_context=True)
    try:
        for number in range(5):
            out = tmp_path / f"out{number}"
            out.mkdir()
            try:
                chosen = select(op, context, hash_files=True)
                copy_layer(op, chosen, context, None, lambda out=out: TreeWriter(out, empty=True), now_ns=0)
            except InputError as error:
                assert "changed during the build" in str(error)
            else:
                assert [entry.digest for entry in chosen.entries] == [sha256((out / "f").read_bytes())]
    finally:
        stop.set()
        thread.join()


def test_a_directory_of_an_export_that_becomes_a_link(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "out"
    (out / "d").mkdir(parents=True)
    fifo(victim / "pipe").chmod(0o600)
    before = owners(victim)

    def export(_: int) -> str:
        writer = TreeWriter(out)
        try:
            writer.directory(b"d", Look(0o777, 7, 7, 1))
            writer.file(b"d/file", Look(0o666, 7, 7, 1), 3, [b"new"])
            writer.node(b"d/pipe", Look(0o777, 7, 7, 1), "fifo", b"", 0)
            writer.node(b"d/link", Look(0o777, 7, 7, 1), "symlink", b"x", 0)
            writer.commit()
        finally:
            writer.discard()
        return "done"

    found = outcomes(
        export,
        replaced(out / "d", victim),
        *(planted(out / "d" / name, victim / "file") for name in ("file", "pipe", "link")),
        planted(out / "d/pipe", victim / "pipe"),
    )
    assert "done" in found
    assert (victim / "file").read_text() == THEIRS
    assert owners(victim) == before


@pytest.mark.parametrize("kernel", [True, False])
def test_a_root_file_system_that_changes_while_it_is_looked_into(tmp_path: Path, victim: Path, kernel: bool) -> None:
    root = tmp_path / "root"
    (root / "d/deep").mkdir(parents=True)
    (root / "d/deep/file").write_text(OURS)
    (victim / "deep").mkdir()
    (victim / "deep/file").write_text(THEIRS)

    def read(_: int) -> str:
        with RootDir(root, use_openat2=kernel) as tree:
            try:
                return tree.read_bytes("d/deep/../deep/file", 100).decode()
            except OSError as error:
                return type(error).__name__

    found = outcomes(
        read,
        swapped(root / "d", link(tmp_path / "l", victim)),
        swapped(root / "d/deep/file", link(tmp_path / "lf", victim / "file")),
    )
    assert THEIRS not in found
    assert OURS in found
    assert sorted(path.name for path in victim.rglob("*")) == ["deep", "file", "file"]
