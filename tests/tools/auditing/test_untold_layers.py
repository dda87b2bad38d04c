"""Layers that came to be mountable here without a pull that the log tells of, and what is said of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image, layer_digests
from tests.processes import run_module
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def report(builder: Builder, build: str) -> dict[str, Any]:
    done = builder.run("audit", "report", build, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)["report"]
    assert isinstance(found, dict)
    return found


def test_I12_a_layer_whose_puller_died_before_it_said_so_is_told_of_by_whoever_uses_it(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, repository, size=20_000, layers=1)
    builder.write({"Dockerfile": f"FROM {image['reference']}\nRUN echo a > /a\n"})
    args = ("build", str(builder.context), "--progress", "plain", "--snapshotter", "directory")
    died = run_module("tests.crash.victim", "before:LayerPulled", *args, env=builder.env)
    assert died.returncode == -signal.SIGKILL
    (killed,) = builder.builds()
    at_first = {layer["digest"]: layer for layer in report(builder, killed["id"])["layers"]}
    (begun,) = [layer for layer in at_first.values() if layer["digest"] in layer_digests(image)]
    assert (begun["state"], begun["detail"]) == ("begun", f"build {killed['id']} began to pull it")
    assert builder.events("LayerPulled") == []

    assert builder.run(*args).code == 0
    assert builder.events("LayerPulled") == []  # it is here, and it is right
    (told,) = builder.events("LayerLaidOut")
    assert told["data"] == {
        "diff_id": image["layers"][0]["diff_id"], "digest": begun["digest"], "how": "found", "verified": ["seal"]
    }  # fmt: skip
    for build in builder.builds():
        told_of = report(builder, build["id"])
        (layer,) = [one for one in told_of["layers"] if one["digest"] == begun["digest"]]
        assert layer["state"] == "laid out"
        assert told["seq"] in layer["seqs"]
        assert "no event tells who gave it" in layer["detail"]
        assert "believed" not in [gap["what"] for gap in told_of["gaps"]]
    text = builder.run("audit", "report", build["id"]).out
    assert "laid out here by no pull of them that the log tells of: 1" in text
    assert "NEVER" not in text
    assert builder.run("audit", "verify", str(builder.root)).code == 0
