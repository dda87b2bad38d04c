"""Merkle trees of RFC 9162: roots by its recursive definition, proofs by its verification algorithms."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import merkle

LEAVES = [merkle.leaf_hash(b"event %d" % number) for number in range(200)]
SIZES = st.integers(1, len(LEAVES))


def defined(leaves: list[bytes]) -> bytes:
    """MTH(D[n]), written down as RFC 9162 section 2.1.1 has it."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else sha256().digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + defined(leaves[:k]) + defined(leaves[k:])).digest()


def node(level: int, index: int) -> bytes:
    return defined(LEAVES[index << level : (index + 1) << level])


@given(st.integers(0, len(LEAVES)), SIZES)
def test_a_tree_that_grows_has_the_defined_root_and_tells_its_nodes(begin: int, size: int) -> None:
    begin = min(begin, size)
    whole = merkle.Frontier()
    whole.extend(LEAVES[:begin])
    tree = merkle.Frontier(whole.size, whole.edge)
    for leaf in LEAVES[begin:size]:
        for level, index, value in tree.add(leaf):
            assert value == node(level, index)
    assert tree.root() == defined(LEAVES[:size]) == merkle.subtree(node, 0, size)


def test_the_empty_tree_and_an_edge_that_does_not_fit() -> None:
    assert merkle.Frontier().root() == sha256().digest()
    with pytest.raises(ValueError, match="2 nodes for a tree of 4"):
        merkle.Frontier(4, [b"", b""])


@given(SIZES, st.data())
def test_an_inclusion_proof_leads_to_the_root_and_no_other_one_does(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    path = merkle.inclusion_proof(node, index, size)
    root = defined(LEAVES[:size])
    assert merkle.root_of_inclusion(LEAVES[index], index, size, path) == root
    other = data.draw(st.integers(0, len(LEAVES) - 1))
    if other != index:
        assert merkle.root_of_inclusion(LEAVES[other], index, size, path) != root
    if path:
        with pytest.raises(ValueError, match="too short"):
            merkle.root_of_inclusion(LEAVES[index], index, size, path[:-1])
    with pytest.raises(ValueError, match="too long"):
        merkle.root_of_inclusion(LEAVES[index], index, size, [*path, root])


@given(SIZES, st.data())
def test_a_consistency_proof_leads_to_both_roots(second: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, second))
    path = merkle.consistency_proof(node, first, second)
    old, new = defined(LEAVES[:first]), defined(LEAVES[:second])
    assert merkle.roots_of_consistency(first, second, path, old) == (old, new)
    if path:
        forged = [*path[:-1], sha256(path[-1]).digest()]
        assert merkle.roots_of_consistency(first, second, forged, old) != (old, new)
        with pytest.raises(ValueError, match="too"):
            merkle.roots_of_consistency(first, second, path[:-1], old)
    with pytest.raises(ValueError, match="too long"):
        merkle.roots_of_consistency(first, second, [*path, new], old)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_what_no_tree_has_cannot_be_proved(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion_proof(node, index, size)
    with pytest.raises(ValueError, match="no leaf"):
        merkle.root_of_inclusion(b"", index, size, [])
    with pytest.raises(ValueError, match="no tree"):
        merkle.consistency_proof(node, index + 1, index)
