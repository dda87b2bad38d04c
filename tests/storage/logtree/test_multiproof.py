"""One proof of many leaves leads to the root, and to no other for other leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.logtree.merkle import Frontier, inclusion_proof, leaf_hash, subtree
from storage.logtree.multiproof import multiproof, root_of

LEAVES = [leaf_hash(b"event %d" % number) for number in range(150)]


def node(level: int, index: int) -> bytes:
    tree = Frontier()
    tree.extend(LEAVES[index << level : (index + 1) << level])
    return tree.root()


@st.composite
def chosen(draw: st.DrawFn) -> tuple[int, list[int]]:
    size = draw(st.integers(1, len(LEAVES)))
    return size, sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))


@given(chosen())
def test_it_leads_to_the_root_of_the_tree(case: tuple[int, list[int]]) -> None:
    size, indices = case
    proof = multiproof(node, indices, size)
    assert root_of([LEAVES[one] for one in indices], indices, size, proof) == subtree(node, 0, size)


@given(st.integers(1, len(LEAVES)).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))))
def test_of_one_leaf_it_is_the_inclusion_proof(case: tuple[int, int]) -> None:
    size, index = case
    assert sorted(multiproof(node, [index], size)) == sorted(inclusion_proof(node, index, size))


@given(chosen(), st.data())
def test_another_leaf_leads_elsewhere(case: tuple[int, list[int]], data: st.DataObject) -> None:
    size, indices = case
    leaves = [LEAVES[one] for one in indices]
    leaves[data.draw(st.integers(0, len(indices) - 1))] = leaf_hash(b"forged")
    assert root_of(leaves, indices, size, multiproof(node, indices, size)) != subtree(node, 0, size)


@given(chosen(), st.data())
def test_without_one_of_its_leaves_it_leads_nowhere_or_elsewhere(
    case: tuple[int, list[int]], data: st.DataObject
) -> None:
    size, indices = case
    if len(indices) < 2:
        return
    out = data.draw(st.sampled_from(indices))
    fewer = [one for one in indices if one != out]
    proof = multiproof(node, indices, size)
    try:
        root = root_of([LEAVES[one] for one in fewer], fewer, size, proof)
    except ValueError:
        return
    assert root != subtree(node, 0, size)


@pytest.mark.parametrize("indices", [[], [-1], [5], [2, 2], [3, 1]])
def test_leaves_that_cannot_be_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="leaves"):
        multiproof(node, indices, 5)
    with pytest.raises(ValueError, match="leaves"):
        root_of([LEAVES[0]] * len(indices), indices, 5, [])
