"""One proof that many leaves are in a tree. Pure.

It has the hashes of the largest subtrees that hold none of the leaves, from left to right, splitting the tree as RFC
9162 section 2.1 does: whoever has the leaves can make the root of them and these. For one leaf it has the hashes of the
inclusion proof (section 2.1.3), in the order of their places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

from storage.logtree.merkle import Node, node_hash, subtree


def multiproof(node: Node, indices: Sequence[int], size: int) -> list[bytes]:
    """For the leaves at `indices`, ascending and at least one. Raises ValueError for one that the tree has not."""
    _check(indices, size)
    found: list[bytes] = []

    def walk(start: int, end: int, first: int, last: int) -> None:
        if first == last:
            found.append(subtree(node, start, end))
        elif last - first < end - start:  # else all leaves are known, and so are their parents
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            split = bisect_left(indices, middle, first, last)
            walk(start, middle, first, split)
            walk(middle, end, split, last)

    walk(0, size, 0, len(indices))
    return found


def root_of(leaves: Sequence[bytes], indices: Sequence[int], size: int, proof: Sequence[bytes]) -> bytes:
    """The root that the leaf hashes at `indices` lead to. Raises ValueError for a proof of other leaves."""
    _check(indices, size)
    rest: Iterator[bytes] = iter(proof)

    def walk(start: int, end: int, first: int, last: int) -> bytes:
        if first == last:
            one = next(rest, None)
            if one is None:
                raise ValueError("the proof is too short")
            return one
        if end - start == 1:
            return leaves[first]
        middle = start + (1 << (end - start - 1).bit_length() - 1)
        split = bisect_left(indices, middle, first, last)
        left = walk(start, middle, first, split)
        return node_hash(left, walk(middle, end, split, last))

    root = walk(0, size, 0, len(indices))
    if next(rest, None) is not None:
        raise ValueError("the proof is too long")
    return root


def _check(indices: Sequence[int], size: int) -> None:
    if not indices or indices[0] < 0 or indices[-1] >= size:
        raise ValueError(f"no such leaves in a tree of {size}")
    if any(one >= other for one, other in pairwise(indices)):
        raise ValueError("leaves are not in order")
