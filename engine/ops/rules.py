"""What the flags of COPY say about which files of a source are taken: --exclude, --parents; and what mounts take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.glob import has_wildcard
from engine.graph import Copy, Mount


def source_of(mount: Mount, *, from_context: bool, dest: str = "/") -> Copy:
    """The copy that takes what `mount` does. Its source is a path, not a pattern: select it so."""
    return Copy((mount.source or ".",), dest, from_context=from_context)


def with_parents(source: str, excludes: Sequence[str]) -> tuple[str, str, Below]:
    """A source of --parents: the directory whose contents it takes, the pattern below that, and what is taken of it."""
    above, pattern = _split(source)
    if pattern == ".":
        return above, pattern, below(excludes)
    plain = f"\\{pattern}" if pattern.startswith("!") else pattern
    include, reach = IgnoreMatcher((plain,)), IgnoreMatcher((f"!{pattern}",))
    return above, pattern, replace(below(excludes), include=include, reach=reach)


def asked_of(op: Copy) -> tuple[str, ...]:
    """Sources that, without --parents, cover all that `op` looks at. Where a pattern of --parents means something else
    than one of COPY does, all of the directory that it is looked for in."""
    return tuple(map(_covering, op.sources)) if op.parents else op.sources


def _covering(source: str) -> str:
    above, pattern = _split(source)
    if has_wildcard(above):  # it is a path, whatever it looks like
        return "/"
    alike = pattern == pattern.strip() and not any(odd in pattern for odd in ("**", "\\", ".."))
    return f"{above}/{pattern}" if alike else above or "/"


def below(excludes: Sequence[str]) -> Below:
    """What is taken of a directory when --exclude gives `excludes`. Raises InputError for a malformed pattern."""
    return Below(IgnoreMatcher(excludes) if excludes else None)


def _split(source: str) -> tuple[str, str]:
    """The directory whose contents a source of --parents takes, and the pattern below it: `a/./b/*` → `a`, `b/*`."""
    above, point, pattern = source.partition("/./")
    return (above, pattern) if point else ("", source)


@dataclass(frozen=True, slots=True)
class Below:
    """What is taken of a directory: all but what --exclude hides; with --parents what `include` matches. `reach`, the
    same pattern as an exception, tells where more of it may lie."""

    exclude: IgnoreMatcher | None = None
    include: IgnoreMatcher | None = None
    reach: IgnoreMatcher | None = None

    def takes(self, path: str) -> bool:
        """Is `path` itself taken?"""
        if self.include is not None and not self.include.excluded(path):
            return False
        return self.exclude is None or not self.exclude.excluded(path)

    def may_take_in(self, path: str) -> bool:
        """May something below the directory `path` be taken?"""
        if self.exclude is not None and self.exclude.excluded(path) and not self.exclude.may_contain_included(path):
            return False
        return (
            self.include is None
            or self.include.excluded(path)
            or (self.reach is not None and self.reach.may_contain_included(path))
        )
