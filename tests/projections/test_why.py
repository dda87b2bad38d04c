"""Reasons of misses, folded from logs that no quick build makes: old ones, lost bytes, another key schema."""

from __future__ import annotations

from typing import Any

import pytest

from engine import events as e
from projections.asked import Component, read_build
from projections.changes import Change, FileChange, component_changes, file_changes, pair_steps
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from storage.digest import canonical_json
from storage.errors import LogError, VerificationError
from tests.projections.asking import MemoryBlobs, why
from tests.projections.story import started
from tests.projections.support import ListLog

Asked = tuple[str, list[Component], str]
"""Name, key and what came of it: `hit`, or the reason of a miss."""


def tell(log: ListLog, blobs: MemoryBlobs, build: str, steps: list[Asked], *, old: bool = False) -> None:
    """A build of steps that stand on each other; `old`: by a version that kept no components of a question."""
    log.add(started(build), build)
    vertices: list[dict[str, Any]] = []
    for number, (name, _, _) in enumerate(steps, 1):
        vertices.append({
            "digest": f"{build}{number}", "op": {"op": "run"}, "name": f"[s {number}/{len(steps)}] {name}",
            "inputs": [f"{build}{number - 1}"] if number > 1 else [], "stage": "s", "lines": [number, number],
        })  # fmt: skip
    graph = blobs.put(canonical_json({"vertices": vertices, "results": []}))
    log.add(e.GraphDefined(graph=graph, vertices=len(steps)), build)
    for number, (name, components, outcome) in enumerate(steps, 1):
        key = blobs.put(canonical_json([list(item) for item in components]))
        hit = {"outcome": "hit", "ref": "r", "origin_build": "b0"} if outcome == "hit" else {"reason": outcome}
        known = {} if old else {"components": key}
        log.add_raw("CacheQueried", {"key": key, "outcome": "miss", **hit, **known}, build, f"{build}{number}")
        log.add(e.VertexCompleted(name=name, outputs=("r",)), build, f"{build}{number}")
    log.add(e.BuildCompleted(results=()), build)


def test_I10_a_log_that_names_no_components_of_a_question_is_explained_by_its_keys() -> None:
    log, blobs = ListLog(), MemoryBlobs()
    tell(log, blobs, "b1", [("RUN a", [("schema", "1"), ("argv", "a")], "never-built")], old=True)
    tell(log, blobs, "b2", [("RUN b", [("schema", "1"), ("argv", "b")], "never-built")], old=True)
    (verdict,) = why(log, blobs, "b2").verdicts
    assert verdict.reason == "component-changed"
    assert verdict.changes == (Change("argv", "a", "b"),)


def test_another_key_schema_is_its_own_reason() -> None:
    log, blobs = ListLog(), MemoryBlobs()
    tell(log, blobs, "b1", [("RUN a", [("schema", "1"), ("argv", "a")], "never-built")])
    tell(log, blobs, "b2", [("RUN a", [("schema", "2"), ("argv", "a")], "never-built")])
    (verdict,) = why(log, blobs, "b2").verdicts
    assert verdict.reason == "key-schema-changed"


def test_lost_bytes_are_the_cause_and_what_stands_on_them_follows() -> None:
    log, blobs = ListLog(), MemoryBlobs()
    steps: list[Asked] = [("RUN a", [("argv", "a")], "never-built"), ("RUN b", [("argv", "b")], "never-built")]
    tell(log, blobs, "b1", steps)
    tell(log, blobs, "b2", [(name, key, "bytes-lost") for name, key, _ in steps])
    found = why(log, blobs, "b2")
    assert [(item.reason, item.step.title) for item in found.causes] == [("bytes-lost", "RUN a")]
    assert [item.step.title for item in found.followed] == ["RUN b"]


def test_a_change_of_its_own_below_a_miss_is_a_cause_too_but_the_same_change_is_told_once() -> None:
    log, blobs = ListLog(), MemoryBlobs()
    before: list[Asked] = [
        ("RUN a", [("env", "X=1"), ("argv", "a")], "never-built"),
        ("RUN b", [("env", "X=1"), ("argv", "b"), ("input", "k1")], "never-built"),
        ("RUN c", [("env", "X=1"), ("argv", "c"), ("input", "k2")], "never-built"),
    ]
    after: list[Asked] = [
        ("RUN a", [("env", "X=2"), ("argv", "a")], "never-built"),
        ("RUN b", [("env", "X=2"), ("argv", "b"), ("input", "k3")], "never-built"),
        ("RUN d", [("env", "X=2"), ("argv", "d"), ("input", "k4")], "never-built"),
    ]
    tell(log, blobs, "b1", before)
    tell(log, blobs, "b2", after)
    found = why(log, blobs, "b2")
    assert [item.step.title for item in found.causes] == ["RUN a", "RUN d"]
    assert [item.step.title for item in found.followed] == ["RUN b"]


def test_a_step_stands_for_the_one_in_its_place() -> None:
    log, blobs = ListLog(), MemoryBlobs()
    tell(log, blobs, "b1", [(f"RUN {name}", [("argv", name)], "never-built") for name in "abc"])
    tell(log, blobs, "b2", [(f"RUN {name}", [("argv", name)], "never-built") for name in ("a", "new", "b", "d")])
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        old, new = (read_build(log, blobs, History(views).get(build)) for build in ("b1", "b2"))
    assert pair_steps(old, new) == {"b21": "b11", "b23": "b12", "b24": "b13"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([("env", "A=1"), ("env", "B=2")], [("env", "B=2"), ("env", "A=1")], [Change("env order", "A B", "B A")]),
        ([("argv", "a")], [("argv", "a"), ("argv", "b")], [Change("argv", None, "b")]),
        ([("exclude", "a"), ("exclude", "b")], [("exclude", "b"), ("exclude", "a")],
         [Change("exclude order", "a b", "b a")]),
        ([("user", "")], [("user", "")], []),
        ([], [("link", "True")], [Change("link", None, "True")]),
        ([("input", "a")], [("input", "b")], []),
    ],
)  # fmt: skip
def test_components_are_compared_by_name_and_place(
    old: list[Component], new: list[Component], expected: list[Change]
) -> None:
    assert component_changes(old, new) == expected


def test_files_are_compared_by_path() -> None:
    old = {"same": ("file", "0644", "d"), "gone": ("file", "0644", "d"), "mode": ("file", "0644", "d"),
           "own": ("file", "0644", "d"), "kind": ("file", "0644", "d")}  # fmt: skip
    new = {"same": ("file", "0644", "d"), "new": ("dir", "0755", ""), "mode": ("file", "0755", "d"),
           "own": ("file", "0644", "d", "1:1"), "kind": ("symlink", "0777", "t")}  # fmt: skip
    assert file_changes(old, new) == [
        FileChange("gone", "removed", "d", ""),
        FileChange("kind", "changed", "d", "t"),
        FileChange("mode", "mode", "0644", "0755"),
        FileChange("new", "added", "", "dir"),
        FileChange("own", "owner", "", "1:1"),
    ]


def test_a_stored_graph_that_is_none_is_one_clear_error() -> None:
    log, blobs = ListLog(), MemoryBlobs()
    log.add(started("b1"), "b1")
    log.add(e.GraphDefined(graph=blobs.put(b"[1"), vertices=1), "b1")
    with pytest.raises((VerificationError, LogError), match="cannot be read"):
        why(log, blobs, "b1")
