"""Merkle trees of RFC 9162: roots by its recursive definition, proofs by its verification algorithms."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.logtree import merkle

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


# ---------------------------------------------------------------- known answers

# The leaves, roots and proofs that implementations of RFC 6962 are tested with (google/certificate-transparency,
# transparency-dev/merkle).
KNOWN = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                          "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEFT = ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]  # fmt: skip
SIX_EIGHT = ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
             "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0", ROOTS[3]]  # fmt: skip


def known_node(level: int, index: int) -> bytes:
    return defined([merkle.leaf_hash(leaf) for leaf in KNOWN[index << level : (index + 1) << level]])


def test_the_known_roots_and_proofs() -> None:
    assert [merkle.subtree(known_node, 0, size).hex() for size in range(1, 9)] == ROOTS
    assert [one.hex() for one in merkle.inclusion_proof(known_node, 0, 8)] == LEFT
    assert [one.hex() for one in merkle.consistency_proof(known_node, 6, 8)] == SIX_EIGHT
    assert [one.hex() for one in merkle.consistency_proof(known_node, 1, 8)] == LEFT
