"""What is read of a log that somebody else wrote: an event of another shape is said to be one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.events import BuildFailed, to_data
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from storage.errors import VerificationError
from storage.interfaces.log import NewEvent
from tests.projections import story
from tests.projections.support import ListLog
from tools.replaying.story import read_story


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("BuildStarted", {"frontend": ["x"]}),
        ("BuildStarted", {"definition": 1.5}),
        ("BuildStarted", {"options": {"args": ["x"]}}),
        ("VertexCompleted", {"outputs": [["x"]]}),
        ("BuildFailed", {"vertex": []}),
        ("BuildFailed", {"vertex": 1.5}),
        ("BuildFailed", {"exit_code": "1"}),
    ],
)
def test_an_event_of_another_shape_is_no_internal_error(kind: str, wrong: dict[str, Any]) -> None:
    log, views = ListLog(), Views(None, STANDARD)
    story.whole(log)
    log.append(NewEvent("build/b2", "BuildStarted", to_data(story.started("b2")), "b2"))
    log.append(NewEvent("build/b2", "BuildFailed", to_data(BuildFailed(vertex=None, error="x", exit_code=1)), "b2"))
    views.catch_up(log)
    record = History(views).get("b2" if kind == "BuildFailed" else "b1")
    views.close()
    assert read_story(log, record).events
    for at, event in enumerate(log.events):
        if (event.type, event.build) == (kind, record.id):
            log.events[at] = replace(event, data={**event.data, **wrong})
    with pytest.raises(VerificationError, match="an event is not what it should be"):
        read_story(log, record)
