"""Builds go on while everything that can be collected is: the small version of tools/drills/prune_under_load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tools.drills.prune_under_load import drill, report

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="builds need root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]


def test_no_build_fails_or_goes_wrong_while_everything_prunable_is_pruned(tmp_path: Path) -> None:
    for seconds in (4, 60):  # on a machine so busy that nothing was let go of in between: once more, and longer
        figures = drill(tmp_path / str(seconds), seconds=seconds, builders=2)
        assert figures.right, "\n".join(report(figures))
        if figures.prunes and figures.events["Demoted"]:
            return
    pytest.fail("\n".join(report(figures)))
