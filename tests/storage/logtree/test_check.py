"""Where a log differs from what was vouched for: exactly, where kept hashes are as good as the root, else a range."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from storage.logtree.check import Claim, Leaves, Misfit, check_claims, root_of
from storage.logtree.merkle import EMPTY, Frontier, leaf_hash

TRUE = [leaf_hash(b"event %d" % number) for number in range(60)]


def claim(size: int) -> Claim:
    tree = Frontier()
    tree.extend(TRUE[:size])
    return Claim(size, tree.root())


def log_of(hashes: Sequence[bytes]) -> Leaves:
    leaves = Leaves()
    leaves.add(hashes)
    return leaves


def kept(start: int, end: int) -> Sequence[bytes]:
    return TRUE[start:end]


def test_an_honest_log_has_every_tree_that_was_vouched_for() -> None:
    false, root = check_claims(log_of(TRUE), [claim(size) for size in (1, 7, 32, 60)], kept)
    assert (false, root) == ([], claim(60).root)
    assert root_of(log_of(TRUE), 33) == claim(33).root
    assert check_claims(Leaves(), [], None) == ([], EMPTY)


@given(st.integers(0, 49), st.sets(st.integers(1, 60), min_size=1))
def test_a_changed_leaf_is_found_exactly_with_the_kept_hashes(changed: int, sizes: set[int]) -> None:
    hashes = [*TRUE]
    hashes[changed] = leaf_hash(b"forged")
    false, _ = check_claims(log_of(hashes), [claim(size) for size in sizes], kept)
    beyond = sorted(size for size in sizes if size > changed)
    assert [misfit.claim.size for misfit in false] == beyond
    if beyond:
        assert false[0] == Misfit(claim(beyond[0]), changed, changed + 1, exact=True)


@given(st.integers(0, 59), st.sets(st.integers(1, 60), min_size=1))
def test_without_them_it_lies_between_two_checkpoints(changed: int, sizes: set[int]) -> None:
    hashes = [*TRUE]
    hashes[changed] = leaf_hash(b"forged")
    for witness in (None, lambda start, end: hashes[start:end], lambda start, end: TRUE[start : end - 1]):
        false, _ = check_claims(log_of(hashes), [claim(size) for size in sizes], witness)
        beyond = sorted(size for size in sizes if size > changed)
        if beyond:
            start = max((size for size in sizes if size <= changed), default=0)
            assert false[0] == Misfit(claim(beyond[0]), start, beyond[0], exact=False)


def test_a_claim_of_more_than_there_is_is_not_judged_here() -> None:
    assert check_claims(log_of(TRUE[:10]), [claim(20)], kept)[0] == []
