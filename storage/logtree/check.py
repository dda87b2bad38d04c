"""Does a log have the trees that were vouched for, and if not, from which leaf on? Pure.

All leaf hashes of the log are held here (32 bytes an event). Where the leaf hashes that the log once had were kept, and
those give the root that was vouched for, they are as good as that root, and the first one that differs is the culprit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from storage.logtree.merkle import Frontier

Kept = Callable[[int, int], Sequence[bytes] | None]
"""Leaf hashes [start, end) as they were kept, None where they were not."""
_SIZE = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """That the log's first `size` events had the tree `root`."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Misfit:
    """`claim` is not true. The log differs from what was vouched for in leaves [start, end); it is exactly leaf `start`
    (and maybe later ones) when `exact`."""

    claim: Claim
    start: int
    end: int
    exact: bool


class Leaves:
    """Hashes of all leaves, in order."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, hashes: Iterable[bytes]) -> None:
        """The next ones."""
        for one in hashes:
            self._data += one

    def __len__(self) -> int:
        return len(self._data) // _SIZE

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._data[index * _SIZE : (index + 1) * _SIZE])

    def between(self, start: int, end: int) -> Iterator[bytes]:
        """Those of leaves [start, end)."""
        data = self._data
        return (bytes(data[at : at + _SIZE]) for at in range(start * _SIZE, end * _SIZE, _SIZE))


def root_of(leaves: Leaves, size: int) -> bytes:
    """The root of the first `size` leaves."""
    tree = Frontier()
    tree.extend(leaves.between(0, size))
    return tree.root()


def check_claims(leaves: Leaves, claims: Iterable[Claim], kept: Kept | None) -> tuple[list[Misfit], bytes]:
    """The claims of trees no larger than the log that are not true, the smallest first, and the log's root."""
    tree, sound = Frontier(), Frontier()
    false: list[Misfit] = []
    for claim in sorted(claims, key=lambda one: one.size):
        if claim.size > len(leaves):
            break
        tree.extend(leaves.between(tree.size, claim.size))
        if tree.root() != claim.root:
            false.append(_locate(leaves, sound, claim, kept))
        elif not false:
            sound = Frontier(tree.size, tree.edge)
    tree.extend(leaves.between(tree.size, len(leaves)))
    return false, tree.root()


def _locate(leaves: Leaves, sound: Frontier, claim: Claim, kept: Kept | None) -> Misfit:
    """Where between the last sound tree and that of `claim` the difference is."""
    start = sound.size if sound.size < claim.size else 0
    said = kept(start, claim.size) if kept else None
    if said is not None and len(said) == claim.size - start:
        tree = Frontier(sound.size, sound.edge) if start else Frontier()
        tree.extend(said)
        if tree.root() == claim.root:
            pairs = enumerate(zip(said, leaves.between(start, claim.size), strict=True), start)
            index = next(index for index, (one, other) in pairs if one != other)  # else the claim would be true
            return Misfit(claim, index, index + 1, exact=True)
    return Misfit(claim, start, claim.size, exact=False)
