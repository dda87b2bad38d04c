"""Which earlier build a build is compared with: the nearest one of the same definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from projections.asked import Blobs, Build, read_build
from projections.history import BuildRecord, History
from storage.interfaces.log import EventLog

LOOKED_AT = 50
"""Earlier builds that are looked into, the newest first: each costs its graph and its questions."""
_SOURCES = frozenset({"scratch", "image", "layer", "context", "http", "git", "archive"})


@dataclass(frozen=True, slots=True)
class _Likeness:
    """Compared field by field, the first one first."""

    context: bool
    target: bool
    platforms: bool
    shared: int
    name: bool

    @property
    def rank(self) -> tuple[bool, bool, bool, int, bool]:
        """Greater is nearer."""
        return (self.context, self.target, self.platforms, self.shared, self.name)


def nearest(log: EventLog, blobs: Blobs, history: History, build: Build) -> Build | None:
    """The earlier build most like `build` that asked the cache: of the same context before any other, then with the
    same target and platforms, then with the most steps in common, then the newest. One that only told what would run
    left nothing to compare with. Raises LogError, VerificationError."""
    best: tuple[_Likeness, Build] | None = None
    for old in _earlier(log, blobs, history, build.record):
        found = _likeness(old, build)
        if not found.context and not found.name and not found.shared:
            continue
        if best is None or found.rank > best[0].rank:
            best = (found, old)
            if found == _Likeness(True, True, True, len(_steps(build)), True):
                break
    return best[1] if best else None


def _earlier(log: EventLog, blobs: Blobs, history: History, record: BuildRecord) -> Iterator[Build]:
    looked = 0
    for candidate in history.list():
        if candidate.first_seq >= record.first_seq or candidate.filename != record.filename or looked >= LOOKED_AT:
            continue
        looked += 1
        old = read_build(log, blobs, candidate)
        if old.asked and not old.dry:
            yield old


def _likeness(old: Build, new: Build) -> _Likeness:
    def same(name: str) -> bool:
        return bool(old.options.get(name) == new.options.get(name))

    same_name = old.record.name == new.record.name
    return _Likeness(
        # where the directory was is not in older logs: then its name tells
        same("context") and same("directory") and (bool(new.options.get("directory")) or same_name),
        same("target"),
        same("platforms"),
        len(_steps(old) & _steps(new)),
        same_name,
    )


def _steps(build: Build) -> set[str]:
    return {vertex for vertex, step in build.steps.items() if step.kind not in _SOURCES}
