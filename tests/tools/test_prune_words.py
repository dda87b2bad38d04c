"""`refledger prune` and `du` in words: the plan, what stays and why, and what was done."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.builder import Builder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def test_the_plan_is_told_then_done_and_what_stays_with_its_reason(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.write({"a": "x" * 5000})
    builder.must_build("FROM scratch\nCOPY a /kept\n", "-t", "app:1", "--output", f"type=oci,dest={tmp_path}/app.tar")
    builder.must_build("FROM scratch\nCOPY a /unnamed\n")
    planned = builder.run("prune", "--dry-run").out.splitlines()
    assert planned[0].split() == ["PLAN", "ID", "KIND", "SIZE", "REASON"]
    (row,) = [line for line in planned if line.startswith("prune")]
    assert "snapshot" in row
    assert row.endswith("[1/1] COPY a /unnamed: only here, its step would run again")
    assert re.search(r"\nkeep \d+ things, \S+: part of docker.io/library/app:1 \(--all takes that, too\)\n",
                     "\n".join(planned))  # fmt: skip
    size = row.split()[3]
    assert planned[-1] == f"Would free: {size}; nothing was changed"
    assert builder.run("prune").out.splitlines() == [*planned[:-1], f"Freed: {size}"]
    again = builder.run("prune").out.splitlines()
    assert (again[0], again[-1]) == ("nothing to let go of", "Freed: 0B")

    told = builder.run("du", "--verbose").out
    assert re.search(r"Made by: +\[1/1\] COPY a /kept\n", told)
    assert re.search(r"Images: +docker.io/library/app:1\n", told)
    assert "unnamed" not in told
