"""Merkle trees over a log's leaves: roots and proofs. Pure.

Source: RFC 9162 section 2.1 (the same tree and proofs as RFC 6962 section 2.1): leaf hash SHA-256(0x00 || leaf), node
hash SHA-256(0x01 || left || right), and a tree of n leaves splits at the largest power of two that is less than n.

The hash of the complete subtree that covers leaves [index × 2^level, (index + 1) × 2^level) is a *node*; all that is
asked here can be answered from nodes, so a log need not keep its tree, only be able to tell nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

Node = Callable[[int, int], bytes]
"""The hash of node (level, index). Level 0 are the leaves."""

EMPTY = sha256().digest()
"""The root of a tree without leaves."""


def leaf_hash(leaf: bytes) -> bytes:
    """Of one leaf."""
    return sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two children."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """A tree that only grows: it keeps the nodes on its right edge, at most one a level, and knows its root."""

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        """`edge`: the nodes that a tree of `size` leaves is made of, the largest first, as `edge` gives them. Raises
        ValueError when there are more or fewer."""
        if len(edge) != size.bit_count():
            raise ValueError(f"{len(edge)} nodes for a tree of {size} leaves")
        self.size = size
        self.edge: list[bytes] = list(edge)

    def add(self, leaf: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Append the hash of a leaf; gives every node that is complete now, from the leaf up."""
        level, index = 0, self.size
        yield level, index, leaf
        while index & 1:
            leaf = node_hash(self.edge.pop(), leaf)
            level, index = level + 1, index >> 1
            yield level, index, leaf
        self.edge.append(leaf)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append the hashes of many leaves."""
        edge, size = self.edge, self.size
        for one in leaves:
            node, index = one, size
            while index & 1:
                node, index = sha256(b"\1" + edge.pop() + node).digest(), index >> 1
            edge.append(node)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """The tree's hash."""
        return fold(self.edge) if self.edge else EMPTY


def fold(edge: Sequence[bytes]) -> bytes:
    """The hash of subtrees side by side, the largest (leftmost) first; at least one."""
    *rest, root = edge
    for node in reversed(rest):
        root = node_hash(node, root)
    return root


def cover(start: int, end: int) -> list[tuple[int, int]]:
    """The nodes (level, index), from left to right, that together cover leaves [start, end) of a tree in which that
    range is a subtree: `start` is a multiple of a power of two that is no less than `end - start`."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def subtree(node: Node, start: int, end: int) -> bytes:
    """The hash of leaves [start, end), as `cover` has them."""
    return fold([node(level, index) for level, index in cover(start, end)]) if end > start else EMPTY


def inclusion_proof(node: Node, index: int, size: int) -> list[bytes]:
    """PATH(index, D[size]), RFC 9162 section 2.1.3.1. Raises ValueError for a leaf that the tree does not have."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(subtree(node, middle, end))
            end = middle
        else:
            path.append(subtree(node, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(node: Node, first: int, second: int) -> list[bytes]:
    """PROOF(first, D[second]), RFC 9162 section 2.1.4.1. Raises ValueError unless 0 < first <= second."""
    if not 0 < first <= second:
        raise ValueError(f"no tree of {first} leaves in one of {second}")
    path: list[bytes] = []
    start, end, whole = 0, second, True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            path.append(subtree(node, middle, end))
            end = middle
        else:
            path.append(subtree(node, start, middle))
            start, whole = middle, False
    if not whole:
        path.append(subtree(node, start, end))
    return path[::-1]


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that `path` leads to from the leaf hash `leaf` (RFC 9162 section 2.1.3.2). Raises ValueError for a path
    of another tree."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    fn, sn, root = index, size - 1, leaf
    for one in path:
        if sn == 0:
            raise ValueError("the path is too long")
        if fn & 1 or fn == sn:
            root = node_hash(one, root)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = node_hash(root, one)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ValueError("the path is too short")
    return root


def roots_of_consistency(first: int, second: int, path: Sequence[bytes], first_root: bytes) -> tuple[bytes, bytes]:
    """The roots of the trees of `first` and `second` leaves that `path` leads to (RFC 9162 section 2.1.4.2); the first
    one's root is needed where its tree is complete, as the path leaves it out then. Raises ValueError for a path of
    other trees."""
    if not 0 < first <= second:
        raise ValueError(f"no tree of {first} leaves in one of {second}")
    if first == second:
        if path:
            raise ValueError("the path is too long")
        return first_root, first_root
    nodes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not nodes:
        raise ValueError("the path is too short")
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = nodes[0]
    for one in nodes[1:]:
        if sn == 0:
            raise ValueError("the path is too long")
        if fn & 1 or fn == sn:
            old, new = node_hash(one, old), node_hash(one, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, one)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ValueError("the path is too short")
    return old, new


def _split(size: int) -> int:
    """The largest power of two that is less than `size`."""
    return 1 << (size - 1).bit_length() - 1
