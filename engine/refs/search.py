"""Which layers answer for some paths: the overlay's rules, from the top layer down, asking for one layer at a time.

Pure but for the trees it is given: a search yields the layers it needs next and goes on when they can be looked into.
Layers are counted from the top, which is 0. Paths are resolved as engine.ops.select resolves them: links in the way
and a source that is a link are followed, inside the root; wildcards match component by component.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from engine.frontend.glob import compile_glob, has_wildcard
from storage.interfaces.parts import LayerTree, Part, Seen

_MOST_LINKS = 40  # as the kernel's MAXSYMLINKS
T = TypeVar("T")
Needs = Generator[Sequence[int], None, T]
"""Yields layers that must be looked into before it goes on."""


@dataclass(frozen=True, slots=True)
class _Found:
    path: bytes
    layer: int
    seen: Seen


class Search:
    """One search over layers whose `trees` (top first) are filled in as it asks for them. `cost` of looking into a
    layer: those that cost less are looked into before others, where the order does not matter. `looks`: how directories
    on the way look matters too."""

    def __init__(self, trees: list[LayerTree | None], cost: Callable[[int], int], *, looks: bool) -> None:
        self._trees = trees
        self._cost = cost
        self._looks = looks
        self._seen: dict[int, set[bytes]] = defaultdict(set)
        self._files: dict[int, set[bytes]] = defaultdict(set)
        self._whole: dict[int, set[bytes]] = defaultdict(set)

    def run(self, sources: Sequence[str]) -> Needs[None]:
        """Find all that `sources` name. Raises InputError for a malformed pattern, OSError."""
        for pattern in sources:
            path = posixpath.normpath("/" + pattern).lstrip("/")
            if has_wildcard(path):
                yield from self._expand(path)
            else:
                yield from self._take(os.fsencode(path))

    def part(self, layer: int) -> Part:
        """What the search found to be wanted of `layer`."""
        return Part(self._seen[layer], self._files[layer], self._whole[layer], lambda path: self._above(layer, path))

    # ---------------------------------------------------------------- sources

    def _take(self, path: bytes) -> Needs[None]:
        """What a source leads to: a file from one layer, a directory from all that have a share in it."""
        found = yield from self._resolve(path)
        if found is None:
            return
        if found.seen.kind != "directory":
            self._files[found.layer].add(found.path)
            return
        for layer in (yield from self._shares(found.path)):
            self._whole[layer].add(found.path)

    def _expand(self, pattern: str) -> Needs[None]:
        parts = pattern.split("/")
        fixed = next(index for index, part in enumerate(parts) if has_wildcard(part))
        base = os.fsencode("/".join(parts[:fixed]))
        found = yield from self._resolve(base)
        if found is not None and found.seen.kind == "directory":
            yield from self._expand_below(base, found.path, parts[fixed:])

    def _expand_below(self, path: bytes, real: bytes, parts: Sequence[str]) -> Needs[None]:
        glob = compile_glob(parts[0])
        names: set[bytes] = set()
        for layer in (yield from self._shares(real)):
            tree = self._trees[layer]
            assert tree is not None  # _shares looked into it
            names |= tree.names(real)
        for name in sorted(name for name in names if glob.fullmatch(os.fsdecode(name))):
            found = yield from self._find(_join(real, name))
            if found is None:
                continue
            if len(parts) == 1:
                yield from self._take(_join(path, name))
            elif found.seen.kind == "directory":
                yield from self._expand_below(_join(path, name), found.path, parts[1:])

    # ---------------------------------------------------------------- paths

    def _resolve(self, path: bytes) -> Needs[_Found | None]:
        """What `path` leads to, without links; None when nothing is there."""
        done: list[bytes] = []
        if self._looks:
            yield from self._find(b"")
        pending = path.split(b"/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                done = done[:-1]
                continue
            found = yield from self._find(b"/".join([*done, part]))
            if found is None or (found.seen.kind == "other" and pending):
                return None
            if found.seen.kind == "symlink":
                links += 1
                if links > _MOST_LINKS:
                    return None
                done = [] if found.seen.target.startswith(b"/") else done
                pending.extend(found.seen.target.split(b"/")[::-1])
            else:
                done.append(part)
        return (yield from self._find(b"/".join(done)))

    def _find(self, path: bytes) -> Needs[_Found | None]:
        """The topmost layer that has something at `path`, whose parent is a directory."""
        first: _Found | None = None
        for layer in range(len(self._trees)):
            if self._trees[layer] is None:
                yield [layer]
            seen = self._look(layer, path)
            if seen.kind not in {"missing", "whiteout", "directory"}:
                return first or _Found(path, layer, seen)
            if seen.kind == "directory":
                first = first or _Found(path, layer, seen)
                if not (self._looks and seen.implied):
                    return first
            if seen.ends:
                return first
        return first

    def _shares(self, path: bytes) -> Needs[list[int]]:
        """All layers that have a share in directory `path`. As it is known now that they are needed, they are asked
        for at once; those first that cost little and may end the search."""
        while missing := [layer for layer in range(self._end(path)) if self._trees[layer] is None]:
            least = min(map(self._cost, missing))
            yield [layer for layer in missing if self._cost(layer) == least]
        looks = [self._look(layer, path) for layer in range(self._end(path))]
        return [layer for layer, seen in enumerate(looks) if seen.kind == "directory"]

    def _end(self, path: bytes) -> int:
        """How many layers may have a share in directory `path`, as far as is known."""
        for layer, tree in enumerate(self._trees):
            if tree is not None and tree.look(path).ends:
                return layer + 1
        return len(self._trees)

    def _look(self, layer: int, path: bytes) -> Seen:
        tree = self._trees[layer]
        assert tree is not None  # it was asked for
        self._seen[layer].add(path)
        return tree.look(path)

    def _above(self, layer: int, path: bytes) -> Literal["nothing", "directory", "covers"]:
        answer: Literal["nothing", "directory"] = "nothing"
        for tree in self._trees[:layer]:
            assert tree is not None  # nothing is wanted of a layer before those above it are known
            seen = tree.look(path)
            if seen.ends:
                return "covers"
            if seen.kind == "directory":
                answer = "directory"
        return answer


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
