"""Our trees, proofs and checkpoints beside implementations that are not ours, in both directions.

pymerkle: roots and inclusion proofs as RFC 9162 has them (its consistency proofs are of a form of its own).
proofbundle: the verification algorithms of RFC 9162 section 2.1, its consistency proofs, and C2SP checkpoints.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofbundle import checkpoint as oracle_notes
from proofbundle import merkle as oracle
from pymerkle import InclusionProof, InmemoryTree, verify_inclusion

from storage.logtree import merkle
from storage.logtree.tiles import Tree
from storage.signing.notes import Checkpoint, Note, Verifier, new_signer, sign_note

COUNT = 600
LEAVES = [b'{"seq":%d}' % number for number in range(1, COUNT + 1)]
TREE = Tree()
TREE.add(map(merkle.leaf_hash, LEAVES))
OTHER = InmemoryTree(algorithm="sha256")
OTHER.append_entries(LEAVES)
SIGNER = new_signer("ci.example/log", bytes(range(32)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 511, 512, 513, COUNT])
def test_roots(size: int) -> None:
    assert TREE.root(size) == OTHER.get_root(size)


@given(st.integers(1, COUNT), st.data())
@settings(max_examples=150)
def test_inclusion_proofs(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root, path = TREE.root(size), merkle.inclusion_proof(TREE.node, index, size)
    assert oracle.verify_inclusion(LEAVES[index], index, size, path, root)
    theirs = OTHER.prove_inclusion(index + 1, size)
    leaf = merkle.leaf_hash(LEAVES[index])
    assert theirs.path == [leaf, *path]
    assert merkle.root_of_inclusion(leaf, index, size, theirs.path[1:]) == OTHER.get_root(size)
    ours = InclusionProof("sha256", True, size, index + 1, theirs.rule, [leaf, *path])
    verify_inclusion(leaf, root, ours, index=index + 1, size=size)
    if path:
        assert not oracle.verify_inclusion(LEAVES[index], index, size, path[:-1], root)


@given(st.integers(1, 120), st.data())
@settings(max_examples=150)
def test_consistency_proofs(second: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, second))
    old, new = TREE.root(first), TREE.root(second)
    path = merkle.consistency_proof(TREE.node, first, second)
    assert oracle.verify_consistency(first, second, path, old, new)
    theirs = oracle.consistency_proof(LEAVES[:second], first)
    assert theirs == path
    assert merkle.roots_of_consistency(first, second, theirs, old) == (OTHER.get_root(first), OTHER.get_root(second))
    if path:
        assert not oracle.verify_consistency(first, second, path, old, TREE.root(COUNT))


@given(st.integers(0, 2**62), st.binary(min_size=32, max_size=32))
@settings(max_examples=50)
def test_checkpoints(size: int, root: bytes) -> None:
    made = Checkpoint("ci.example/log/0123456789abcdef", size, root)
    note = sign_note(str(made), SIGNER)
    found = oracle_notes.verify_checkpoint(note, str(SIGNER.verifier))
    assert (found["ok"], found["origin"], found["tree_size"]) == (True, made.origin, size)
    assert not oracle_notes.verify_checkpoint(note, str(new_signer("ci.example/log", bytes(32)).verifier))["ok"]


def test_checkpoints_and_keys_that_the_other_one_made() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    note = oracle_notes.sign_checkpoint("ci.example/log", 600, TREE.root(), key, "ci.example/log")
    verifier = Verifier.parse(oracle_notes.vkey("ci.example/log", key.public_key().public_bytes_raw()))
    parsed = Note.parse(note)
    assert parsed.verified_by([verifier]) == (verifier,)
    assert Checkpoint.parse(parsed.text) == Checkpoint("ci.example/log", 600, TREE.root())
    assert verifier == new_signer("ci.example/log", bytes(range(1, 33))).verifier
