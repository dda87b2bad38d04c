"""What is read of a log that somebody else wrote: an event of another shape is said to be one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.events import BlobCreated, BuildFailed, ContextKept, to_data
from engine.refs.ref import Layer
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from storage.errors import VerificationError
from storage.interfaces.log import NewEvent
from tests.projections import story
from tests.projections.support import ListLog
from tools.replaying.story import Kept, read_story

DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("BuildStarted", {"frontend": ["x"]}),
        ("BuildStarted", {"definition": 1.5}),
        ("BuildStarted", {"options": {"args": ["x"]}}),
        ("VertexCompleted", {"outputs": [["x"]]}),
        ("VertexCached", {"outputs": []}),
        ("BuildFailed", {"vertex": []}),
        ("BuildFailed", {"vertex": 1.5}),
        ("BuildFailed", {"exit_code": "1"}),
        ("ContextKept", {"packs": ["x"]}),
        ("ContextKept", {"layer": {}}),
        ("BlobCreated", {"bytes": -1}),
        ("BlobCreated", {"media_type": None}),
        ("BlobCreated", {"diff_id": "x"}),
    ],
)
def test_an_event_of_another_shape_is_no_internal_error(kind: str, wrong: dict[str, Any]) -> None:
    log, views = ListLog(), Views(None, STANDARD)
    story.whole(log)
    log.append(NewEvent("build/b2", "BuildStarted", to_data(story.started("b2")), "b2"))
    log.append(NewEvent("build/b2", "BuildFailed", to_data(BuildFailed(vertex=None, error="x", exit_code=1)), "b2"))
    for fact in (
        ContextKept(ref="r", listing="l", layer=DIGEST, packs=(DIGEST,)),
        BlobCreated("r", DIGEST, DIGEST, "application/tar", 1, compressor="none", snapshot="s"),
    ):
        log.append(NewEvent("ref/r", type(fact).__name__, to_data(fact), "b1"))
    views.catch_up(log)
    record = History(views).get("b2" if kind == "BuildFailed" else "b1")
    views.close()
    assert read_story(log, record).events
    for at, event in enumerate(log.events):
        if (event.type, event.build) == (kind, record.id):
            log.events[at] = replace(event, data={**event.data, **wrong})
    with pytest.raises(VerificationError, match="an event is not what it should be"):
        read_story(log, record)


def test_I10_contexts_that_were_kept_before_there_were_packs_are_found() -> None:
    log, views = ListLog(), Views(None, STANDARD)
    story.whole(log)
    log.append(NewEvent("ref/r", "ContextKept", {"ref": "r", "listing": "l", "layer": "s"}, "b1"))
    views.catch_up(log)
    found = read_story(log, History(views).get("b1"))
    views.close()
    assert found.kept == {"l": [Kept(Layer(snapshot="s"), ())]}
