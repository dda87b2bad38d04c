"""A log of one whole build, and the views of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from projections.runner import Views
from projections.standard import STANDARD
from tests.projections import story
from tests.projections.support import ListLog


@pytest.fixture
def log() -> ListLog:
    log = ListLog()
    story.whole(log)
    return log


@pytest.fixture
def views(log: ListLog) -> Iterator[Views]:
    with Views(None, STANDARD) as views:
        views.catch_up(log)
        yield views
