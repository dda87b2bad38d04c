"""Builds a case with everyone and says what is not as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.cases.case import Case
from tests.differential.comparing import Differences, compare_images
from tests.differential.conftest import Builders, Outcome
from tests.differential.deviations import stale, unexplained


def judge(builders: Builders, name: str, case: Case, directory: Path) -> None:
    """Fail the test where ours differs from an oracle without a listed deviation, or no longer differs."""
    outcomes = builders.build(name, case, directory)
    ours = outcomes.pop("ours")
    assert ours.image is not None, ours.said
    if not outcomes:
        pytest.skip(f"nobody to compare with: {dict(case.lacks) | dict(builders.missing)}")
    for oracle, theirs in outcomes.items():
        found = differences(oracle, ours, theirs, builders.began)
        left = unexplained(name, oracle, found, builders.began)
        if left:
            pytest.fail(f"{oracle}: {left}" + f"\n{theirs.said[-2000:]}" * ("builds" in left), pytrace=False)
        assert stale(name, oracle, found) == [], f"{oracle}: no longer a deviation"


def differences(oracle: str, ours: Outcome, theirs: Outcome, before: float) -> Differences:
    """`builds` alone when only ours builds; layers are compared with BuildKit only (see oracles.Buildah)."""
    assert ours.image is not None
    if theirs.image is None:
        return {"builds": (True, False)}
    found = compare_images(ours.image, theirs.image, before)
    mine, its = ours.image.made_layers, theirs.image.made_layers
    assert sum(mine) == ours.image.layers, "each layer has its entry in the history"
    if oracle == "buildkit" and (mine, ours.image.layers) != (its, theirs.image.layers):
        found["layers"] = (mine, its)
    return found
