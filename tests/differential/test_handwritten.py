"""What no builder here but ours knows gives what the reference says, path by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.differential.cases.expected import HANDWRITTEN
from tests.differential.conftest import Builders
from tests.differential.reading import Facts, Tree


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_what_the_reference_says(builders: Builders, name: str, tmp_path: Path) -> None:
    expected = HANDWRITTEN[name]
    ours = builders.build(name, expected.case, tmp_path)["ours"]
    assert ours.image is not None, ours.said
    wanted = {path: _facts(text) if text else None for path, text in expected.tree.items()}
    assert _changes(builders.base.tree, ours.image.tree) == wanted
    config = {key: value for key, value in ours.image.config["config"].items() if key in expected.config}
    assert config == dict(expected.config)


def _changes(base: Tree, tree: Tree) -> dict[str, Facts | None]:
    out: dict[str, Facts | None] = {}
    for path in {*base, *tree}:
        if base.get(path) != tree.get(path):
            facts = tree.get(path)
            out[f"/{path}"] = facts and {key: facts[key] for key in KEPT if key in facts}
    return out


KEPT = ("type", "mode", "owner", "content", "target")


def _facts(text: str) -> Facts:
    if text.startswith("-> "):
        return {"type": "symlink", "mode": "", "owner": (5, 6), "target": text[3:]}
    head, _, rest = text.partition(" ")
    owner, _, content = rest.partition(" ")
    uid, _, gid = owner.partition(":")
    kind = {"d": "directory", "f": "fifo"}.get(head[0], "file")
    facts: Facts = {"type": kind, "mode": oct(int(head.lstrip("dfio"), 8)), "owner": (int(uid), int(gid))}
    if kind == "file":
        facts["content"] = hashlib.sha256(content.encode()).hexdigest()
    return facts
