"""What an append-only log can be, event by event; the logs of older versions are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from projections.named import Named
from projections.wellformed import Fault, Row, Wellformed, at, ordered
from storage.log.eventlog import SqliteEventLog
from tests.builder import PROJECT

BUILD = "build/0123456789ab"
START: dict[str, Any] = {
    "frontend": "dockerfile", "definition": "d", "options": {}, "context": None, "engine_version": "1", "host": {},
}  # fmt: skip


def row(seq: int, version: int, name: str, data: Any, stream: str = BUILD, **envelope: Any) -> Row:
    state = {"t": seq * 10, "b": "0123456789ab", **envelope, "d": data}
    return seq, stream, version, name, json.dumps(state).encode()


def honest() -> list[Row]:
    return [
        row(1, 1, "BuildStarted", START),
        row(2, 2, "VertexStarted", {"name": "RUN", "inputs": []}, v="sha256:1", c=1),
        row(3, 1, "LocalCreated", {"ref": "r", "parent": None, "bytes": 1}, stream="ref/r"),
        row(4, 3, "FromTheFuture", {"anything": 1}),
        row(5, 4, "BuildCompleted", {"results": []}),
        row(6, 1, "CheckpointPublished", {"size": 5, "root": "", "target": "x"}, stream="log", b=None),
    ]


def kinds(rows: list[Row]) -> list[tuple[int, str]]:
    form = Wellformed()
    for one in rows:
        form.look(one)
    return [(fault.seq, fault.kind) for fault in ordered(form.faults)]


def test_an_honest_log_has_no_fault_also_where_a_type_is_not_known() -> None:
    form = Wellformed()
    for one in honest():
        assert form.look(one) is not None
    assert (form.faults, form.builds, form.unknown) == ([], 1, {"FromTheFuture": 1})


@pytest.mark.parametrize("name", ["1-first.db", "1-language.db", "1-caches.db"])
def test_logs_of_older_versions_are_wellformed(name: str) -> None:
    log = SqliteEventLog(PROJECT / "tests/fixtures/logs" / name, read_only=True)
    form = Wellformed()
    try:
        for one in log.rows(0, log.last_seq()):
            form.look(one)
    finally:
        log.close()
    assert form.faults == []
    assert form.seq > 50


@pytest.mark.parametrize(
    ("at_row", "changed", "expected"),
    [
        (1, row(2, 3, "VertexStarted", {"name": "RUN", "inputs": []}), "version"),
        (1, row(2, 2, "VertexStarted", {"name": "RUN"}), "state"),
        (1, row(2, 2, "VertexStarted", [1]), "state"),
        (1, row(2, 2, "VertexStarted", {"name": "RUN", "inputs": []}, more=1), "state"),
        (1, (2, BUILD, 2, "VertexStarted", b"\xff"), "state"),
        (1, (2, BUILD, 2, "VertexStarted", "text"), "row"),
        (1, row(2, 2, "VertexStarted", {"name": "RUN", "inputs": []}, t=5), "time"),
        (1, row(2, 2, "VertexStarted", {"name": "RUN", "inputs": []}, c=2), "cause"),
        (1, row(2, 2, "VertexStarted", {"name": "RUN", "inputs": []}, b="ba9876543210"), "stream"),
        (2, row(3, 1, "LocalCreated", {"ref": "q", "parent": None, "bytes": 1}, stream="ref/r"), "stream"),
        (2, row(3, 1, "LocalCreated", {"ref": "r", "parent": None, "bytes": 1}, stream="cache"), "stream"),
        (1, row(2, 2, "BuildStarted", START), "build"),
        (1, row(2, 2, "PullFailed", {"digest": "d", "provider": {}, "kind": "missing", "error": ""}), "state"),
        (0, row(1, 1, "VertexOutput", {"fd": 1, "offset": 0, "text": ""}), "build"),
    ],
)
def test_what_no_log_can_have_is_found_at_its_event(at_row: int, changed: Any, expected: str) -> None:
    rows = honest()
    rows[at_row] = changed
    assert kinds(rows)[0] == (changed[0], expected)


def test_a_gap_is_found_where_it_begins() -> None:
    rows = honest()
    del rows[2:4]
    form = Wellformed()
    for one in rows:
        form.look(one)
    assert form.faults[0] == Fault(3, 4, "gap", "events 3 to 4 are missing")


def test_the_first_fault_is_the_earliest_and_what_belongs_to_no_event_comes_last() -> None:
    faults = [Fault(0, 0, "views", ""), at(9, "tree", ""), Fault(1, 20, "signature", ""), at(4, "blob", "")]
    assert [fault.kind for fault in ordered(faults)] == ["blob", "tree", "signature", "views"]
    assert next(ordered([*faults, at(30, "file", "")])).kind == "file"


def test_a_fact_whose_field_the_log_calls_otherwise_is_whole_with_the_logs_name() -> None:
    failed = {"digest": "d", "provider": {}, "class": "missing", "error": ""}
    assert kinds([*honest()[:2], row(3, 3, "PullFailed", failed)]) == []


def test_bytes_count_as_here_until_they_are_let_go_and_again_when_they_return() -> None:
    named = Named()
    pulled = {"digest": "sha256:b", "diff_id": "sha256:d"}
    named.look(1, "LayerPulled", pulled)
    named.look(2, "RemoteCreated", {"layers": [{"digest": "sha256:far"}]})
    assert named.here == {("layer", "sha256:d"): (1, "")}
    named.look(3, "Demoted", {"kind": "layer", "name": "sha256:d"})
    assert (named.here, named.gone) == ({}, {("layer", "sha256:d"): 3})
    named.look(4, "LayerPulled", pulled)
    assert (named.here, named.gone) == ({("layer", "sha256:d"): (4, "")}, {})
    assert named.remote == {"sha256:far"}


def test_what_came_as_a_file_or_was_made_here_should_be_here_and_a_revoked_snapshot_not() -> None:
    named = Named()
    named.look(1, "LayerStored", {"ref": "r", "name": "a.tar", "layer": {"digest": "sha256:file"}})
    named.look(2, "Exported", {"kind": "index", "digest": "sha256:index", "layers": []})
    named.look(3, "Exported", {"kind": "image", "digest": "sha256:image", "layers": []})
    named.look(4, "LocalCreated", {"ref": "s", "layers": [{"snapshot": "s"}]})
    assert named.here == {
        ("blob", "sha256:file"): (1, "layer"), ("blob", "sha256:index"): (2, "index"), ("snapshot", "s"): (4, ""),
    }  # fmt: skip
    named.look(5, "HitRevoked", {"ref": "s", "digest": "s", "reexecuted": []})
    assert (("snapshot", "s") in named.here, named.gone) == (False, {("snapshot", "s"): 5})
