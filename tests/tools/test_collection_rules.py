"""A root's policy file collects after each build, quietly, and never at a build's cost."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from storage.errors import InputError
from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess
from tools.collection_rules import read_rules

HOUR = 3_600_000_000_000


def test_rules_are_read_in_order_with_all_that_prune_takes(tmp_path: Path) -> None:
    assert read_rules(tmp_path) == ()
    (tmp_path / "policy.toml").write_text(
        '[[collect]]\nkeep-storage = "10GB"\nkeep-duration = "72h"\n'
        'filter = ["kind=layer", "shared!=true"]\nall = true\n'
        "[[collect]]\nkeep-storage = 5000\n"
    )
    first, second = read_rules(tmp_path)
    assert (first.keep_storage, first.keep_duration, first.everything) == (10**10, 72 * HOUR, True)
    assert [(one.key, one.value, one.negated) for one in first.filters] == [
        ("kind", "layer", False), ("shared", "true", True),
    ]  # fmt: skip
    assert (first.name, first.by) == ("policy.toml rule 1", "policy.toml rule 1")
    assert (second.keep_storage, second.keep_duration, second.filters, second.everything) == (5000, 0, (), False)


@pytest.mark.parametrize(
    "text",
    ["[[collect]", "[[collect]]\nall = true\n", "[[collect]]\nkeep-storage = 1.5\n", "[[collect]]\nsize = 1\n",
     '[[collect]]\nkeep-storage = "lots"\n', '[[collect]]\nkeep-duration = 72\n', "collect = 3\n", "other = 1\n",
     '[[collect]]\nfilter = "kind=layer"\n', '[[collect]]\nfilter = ["kind"]\n', "[[collect]]\nkeep-storage = true\n",
     "[[collect]]\nkeep-storage = -1\n"],
)  # fmt: skip
def test_a_malformed_file_is_one_line_that_says_where(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError, match=r"policy\.toml") as caught:
        read_rules(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
def test_after_each_build_the_rules_are_carried_out_and_one_line_says_so(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, f"{repository}/base", layers=2)
    builder.root.mkdir()
    policy = builder.root / "policy.toml"

    def build(word: str) -> str:
        return builder.must_build(f"FROM {image['reference']}\nRUN echo {word}{'x' * 3000} > /f\n", "-t", "app").err

    policy.write_text("[[collect]\n")
    failed = builder.build(f"FROM {image['reference']}\nRUN true\n")
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert "policy.toml" in failed.err
    assert not builder.builds()

    policy.write_text('[[collect]]\nkeep-storage = "1TB"\n')
    assert "policy.toml" not in build("one")
    policy.write_text('[[collect]]\nfilter = ["kind=layer"]\nkeep-storage = "1TB"\n[[collect]]\nkeep-storage = "4kB"\n')
    mark = registry.mark()
    told = build("two").splitlines()[-1]
    assert re.match(r"policy\.toml: freed 3\.\dkB \(0 demoted, 1 pruned\)", told)
    assert not [line for line in registry.requests()[mark:] if line.method == "HEAD" and line.blob], "none to be taken"
    (gone,) = builder.events("Pruned")
    assert (gone["data"]["kind"], gone["data"]["by"], gone["build"]) == ("snapshot", "policy.toml rule 2", None)
    assert "policy.toml" not in build("two"), "it is what the image of that name stands on"

    policy.write_text('[[collect]]\nkeep-storage = "0"\nall = true\n')
    step_failed = builder.build(f"FROM {image['reference']}\nRUN false\n")
    assert step_failed.code == 1
    assert "policy.toml: freed" in step_failed.err
    assert {event["data"]["kind"] for event in builder.events("Demoted")} == {"layer"}
    assert builder.leftovers() == []
