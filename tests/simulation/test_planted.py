"""The disk and its races find bugs that are planted in storage/: a suite that passes with them would show nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from projections.history import History
from storage import locks, sweep
from storage.errors import RefledgerError
from storage.layout import target as layout_target
from storage.partial import DirectoryPartials
from tests.simulation import test_durability as durability
from tests.simulation import test_races as races
from tests.simulation.chance import Crashed
from tests.simulation.descriptors import Descriptors
from tests.simulation.oslocks import Libc
from tests.simulation.paths import simulated_files
from tests.simulation.processes import opened
from tools import roots

Plant = Callable[[pytest.MonkeyPatch], None]


def no_fsync(directories: bool) -> Plant:
    """Whoever synchronises a directory, or a file, does not."""
    real = Descriptors.fsync

    def fsync(calls: Descriptors, fd: int) -> None:
        if opened(fd).inode.is_directory != directories:
            real(calls, fd)

    return lambda patch: patch.setattr(Descriptors, "fsync", fsync)


def unlocked_sweep(patch: pytest.MonkeyPatch) -> None:
    """Old pulls go whoever works on them."""
    real = DirectoryPartials.sweep
    anybody = SimpleNamespace(try_acquire=lambda name: nullcontext())
    patch.setattr(DirectoryPartials, "sweep", lambda partials, older, _locks: real(partials, older, anybody))


def ended(_history: History, _build: str) -> Any:
    return SimpleNamespace(status="running")


PLANTED: dict[str, tuple[Plant, Callable[[], None]]] = {
    "files are not synchronised": (
        no_fsync(directories=False),
        lambda: durability.test_I6_what_was_done_survives_a_power_loss_right_behind_it("blob"),
    ),
    "directories are not synchronised": (
        no_fsync(directories=True),
        lambda: durability.test_I6_what_was_done_survives_a_power_loss_right_behind_it("layer"),
    ),
    "an archive's directory is not synchronised": (
        no_fsync(directories=True),
        lambda: durability.test_I6_what_was_done_survives_a_power_loss_right_behind_it("archive"),
    ),
    "file systems are not synchronised": (
        lambda patch: patch.setattr(Libc, "syncfs", lambda libc, fd: 0),
        lambda: durability.test_I6_what_was_done_survives_a_power_loss_right_behind_it("run"),
    ),
    "a lock on a file that was removed counts": (
        lambda patch: patch.setattr(locks, "_is_at", lambda fd, path: True),
        races.test_I4_a_lock_has_one_holder_or_some_that_share_it,
    ),
    "the files of the living are swept": (
        lambda patch: patch.setattr(roots, "sweep", lambda tmp, is_alive, by: sweep.sweep(tmp, lambda _: False, by)),
        races.test_I12_recovery_takes_nothing_from_a_build_that_begins_or_ends,
    ),
    "builds hold no lock": (
        lambda patch: patch.setattr(roots, "owning", lambda root, build: nullcontext()),
        races.test_I12_a_build_ends_once_in_the_log_however_many_find_it_dead,
    ),
    "the log is not looked at again": (
        lambda patch: patch.setattr(History, "get", ended),
        races.test_I12_a_build_ends_once_in_the_log_however_many_find_it_dead,
    ),
    "pulls are swept while somebody works on them": (
        unlocked_sweep, races.test_I4_what_came_of_a_pull_is_one_process_s_at_a_time
    ),
    "a layout is written to by two at once": (
        lambda patch: patch.setattr(layout_target, "_locked", lambda path: nullcontext(True)),
        races.test_tags_that_several_write_into_a_layout_are_all_there,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _files() -> Iterator[None]:
    with simulated_files():
        yield


@pytest.mark.parametrize("bug", PLANTED)
def test_what_is_planted_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, suite = PLANTED[bug]
    plant(monkeypatch)
    with pytest.raises((AssertionError, OSError, RefledgerError, Crashed)):
        suite()
