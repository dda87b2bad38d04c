"""Removing what dead owners left in a `tmp` directory: mounts first, then files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.errors import DiskError
from storage.overlay import detach_below
from storage.scratch import Scratch, owner_of


def sweep(tmp: Path, is_alive: Callable[[str], bool], heir: str) -> list[str]:
    """Detach mounts below and remove the scratch entries of owners that `is_alive` denies; other entries stay.
    Returns the names of what was removed, sorted. Safe while living owners work, and while others sweep: an entry
    becomes one of `heir`, who sweeps, before it is emptied. Raises DiskError, InputError for no owner's id."""
    scratch = Scratch(tmp, heir)
    try:
        names = sorted(path.name for path in tmp.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiskError.of(error, "looking for leftovers") from error
    alive: dict[str, bool] = {}
    removed = []
    for name in names:
        owner = owner_of(name)
        if owner is None:
            continue
        if owner not in alive:
            alive[owner] = is_alive(owner)
        if alive[owner]:
            continue
        try:
            detach_below(tmp / name)
            was_there = scratch.drop(tmp / name)
        except OSError as error:
            raise DiskError.of(error, "removing leftovers of a build that died") from error
        if was_there:
            removed.append(name)
    return removed
