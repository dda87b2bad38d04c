"""Where two images differ, flat: `"/file fact"`, `"/directory/ fact"`, `"/path only ours"` or `"config.Key"` →
(ours, theirs)."""

from __future__ import annotations

from typing import Any

from tests.differential.reading import Facts, Image, Tree

Differences = dict[str, tuple[Any, Any]]
SLACK = 2
"""Seconds that a clock may be behind."""


def compare_images(ours: Image, theirs: Image, before: float) -> Differences:
    """Trees and configs; of the history, which entries have a layer (`layers`), not its words and times."""
    return compare_trees(ours.tree, theirs.tree, before) | compare_json(ours.config, theirs.config)


def compare_trees(ours: Tree, theirs: Tree, before: float) -> Differences:
    """Every fact counts; times do unless both are of the build itself, that is not older than `before`."""
    out: Differences = {}
    for name in sorted({*ours, *theirs}):
        left, right = ours.get(name), theirs.get(name)
        if left is None or right is None:
            out[f"{_shown(name, left or right or {})} only {'ours' if left else 'theirs'}"] = (left, right)
            continue
        for fact in sorted({*left, *right}):
            pair = (left.get(fact), right.get(fact))
            both_new = fact == "mtime" and min(left[fact], right[fact]) > before - SLACK
            if pair[0] != pair[1] and not both_new:
                out[f"{_shown(name, left)} {fact}"] = pair
    return out


def _shown(name: str, facts: Facts) -> str:
    return f"/{name}/" if facts.get("type") == "directory" else f"/{name}"


def compare_json(left: Any, right: Any, prefix: str = "") -> Differences:
    """Paths whose values differ. Empty and absent are one."""
    if isinstance(left or right, dict) and isinstance(right or left, dict):
        left, right = left or {}, right or {}
        out: Differences = {}
        for key in sorted({*left, *right}):
            out |= compare_json(left.get(key), right.get(key), f"{prefix}.{key}" if prefix else key)
        return out
    return {} if left == right or (not left and not right) else {prefix: (left, right)}
