"""What is said beside the display of a build, and of its end, in words that lead on."""

from __future__ import annotations

import io

import pytest

from engine import events as e
from engine.errors import InputError, StepFailed
from engine.graph import Scratch, vertex
from projections.history import History
from projections.runner import Views
from projections.standard import STANDARD
from tests.projections import story
from tests.projections.support import ListLog
from tools.cli.failure import explain
from tools.cli.moment import find_step, whole_view
from tools.cli.render import make_renderer


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)


def test_nothing_is_drawn_of_a_build_that_has_not_begun() -> None:
    stream = io.StringIO()
    renderer = make_renderer("tty", "b1", stream)
    renderer.tick()
    renderer.close()
    assert stream.getvalue() == ""


def test_what_is_said_stands_above_the_picture_whole() -> None:
    log, stream = ListLog(), io.StringIO()
    story.begin(log)
    now = [0]
    renderer = make_renderer("tty", "b1", stream, lambda: now[0])
    for event in log.events:
        now[0] = event.time
        renderer.event(event)
    said = "replaying build b0 [bold] " + "x" * 100
    renderer.say(said)
    renderer.close()
    before, found, after = stream.getvalue().partition(said)
    assert found
    assert "RUN make" in before
    assert before.endswith(("\x1b[2K", "\r"))  # the picture was taken away, so the line begins at the left
    assert after.startswith("\n")
    assert "RUN make" in after


def test_what_is_said_is_a_line_in_plain_words_and_nothing_for_programs() -> None:
    for mode, said in {"plain": "a line\n", "json": "", "quiet": ""}.items():
        stream = io.StringIO()
        renderer = make_renderer(mode, "b1", stream)
        renderer.say("a line")
        assert stream.getvalue() == said


def test_who_names_several_steps_is_told_their_numbers() -> None:
    log, views = ListLog(), Views(None, STANDARD)
    story.whole(log)
    views.catch_up(log)
    record = History(views).get("b1")
    views.close()
    steps = whole_view(log, record).steps
    assert find_step(steps, record.id, "make").number == 2
    with pytest.raises(InputError, match=r"several steps match 'i' in build b1 \(give the number of one: 1, 4\)"):
        find_step(steps, record.id, "i")
    with pytest.raises(InputError, match="no step matches '9'"):
        find_step(steps, record.id, "9")


@pytest.mark.parametrize("printed", [True, False])
def test_a_failure_names_the_output_only_when_there_is_some(printed: bool) -> None:
    log, step = ListLog(), vertex(Scratch(), (), "RUN make", lines=(1, 1))
    story.begin(log)
    if printed:
        log.add(e.VertexOutput(fd=1, offset=0, text="hello\n"), "b1", "v2")
    error = StepFailed("make", 2)
    vars(error)["vertex"] = step
    text = explain(log, 0, "b1", error, "RUN make\n", "Dockerfile")
    assert "build b1 failed: refledger show b1 tells the story" in text
    assert ("refledger output b1" in text) == printed
