"""Progress as text: golden lines, rows that fit, nothing that a build prints reaches the terminal as a command."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import unicodedata
from itertools import chain
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from engine import events as e
from projections.progress import fold
from storage.errors import InputError
from tests.projections import story
from tests.projections.support import SECOND, ListLog, digest
from tools.cli.render import draw, make_renderer
from tools.format import human_bytes, human_duration, short_id
from tools.text import cells, clean, fit, last_segment

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\u2028\x00\x08[red]not markup[/red]"

PLAIN = """\
resolved debian:12 -> {idx}
#1 [1/3] FROM debian:12
#1 DONE 0.2s

#2 [2/3] RUN make
#2 {one} 0B / 10.0MB
#2 {one} 10.0MB 0.5s done
#2 {two} 0B / 20.0MB
#2 {two} 20.0MB 0.5s done
#2 1.500 cc -c main.c
#2 1.600 cc -o main main.o
#2 DONE 1.8s

#3 [3/3] COPY . /src
#3 CACHED

#4 exporting to image 127.0.0.1:5000/app:latest
#4 {one} mounted
#4 {two} mounted
#4 {run} 900B uploaded
#4 digest {img}
#4 DONE 0.2s

"""


def rendered(log: ListLog, mode: str, build: str = "b1", stream: TextIO | None = None) -> str:
    out = stream or io.StringIO()
    renderer = make_renderer(mode, build, out)
    for event in log.events:
        renderer.event(event)
        renderer.tick()
    renderer.close()
    renderer.close()
    return out.getvalue() if isinstance(out, io.StringIO) else ""


def failing(log: ListLog, error: str = "process exited with 2") -> None:
    story.begin(log)
    story.pull(log)
    for n in range(30):
        log.add(e.VertexOutput(fd=1, offset=0, text=f"line {n}\n"), "b1", "v2")
    log.add(e.VertexFailed(name="RUN make", error=error, exit_code=2), "b1", "v2")
    log.add(e.BuildFailed(vertex="v2", error=error, exit_code=1), "b1")


def hostile(log: ListLog) -> None:
    """Every text a stranger controls carries control sequences."""
    log.add(story.started(name="app" + EVIL), "b1")
    log.add(e.SourceResolved(reference="deb" + EVIL, digest=EVIL, platform=EVIL, provider={}, manifest="", config=""),
            "b1")  # fmt: skip
    log.add(e.GraphDefined(graph="", vertices=1, plan=({"vertex": "v" + EVIL, "name": EVIL},)), "b1")
    log.add(e.VertexStarted(name=EVIL, inputs=()), "b1", "v2")
    log.add(e.MaterializationRequested(ref="r", reason="run", layers=(EVIL, "d2"), bytes=1, snapshotter="d"),
            "b1", "v2")  # fmt: skip
    provider = {"registry": EVIL, "repository": EVIL}
    log.add(e.PullStarted(digest=EVIL, total=5, provider=provider), "b1", "v2")
    log.add(e.PullFailed(digest="d2", provider=provider, kind="transport", error=EVIL), "b1", "v2")
    log.add(e.LayerPulled(digest=EVIL, bytes=5, provider=provider, seconds=1, verified=()), "b1", "v2")
    log.add(e.VertexOutput(fd=1, offset=0, text=f"out\n{EVIL}\nred \x1b[31mcolour\x1b[0m\nend"), "b1", "v2")
    log.add(e.VertexFailed(name=EVIL, error=EVIL), "b1", "v2")
    log.add(e.ExportStarted(kind=EVIL, target=EVIL, digest=EVIL), "b1")
    log.add(e.ExportProgressed(target=EVIL, digest="d", bytes=1, total=2, transport=EVIL), "b1")
    log.add(e.BuildFailed(vertex=None, error=EVIL), "b1")


# ---------------------------------------------------------------- plain, json, quiet


def test_plain_output_of_a_whole_build_word_for_word() -> None:
    log = ListLog()
    story.whole(log)
    assert rendered(log, "plain") == PLAIN.format(
        idx=digest("idx"), one=story.BLOBS[0][:19], two=story.BLOBS[1][:19], run=digest("blobr")[:19],
        img=digest("img"),
    )  # fmt: skip
    assert rendered(log, "auto") == rendered(log, "plain")


def test_plain_says_at_most_one_line_a_second_about_a_layer() -> None:
    log = ListLog(step=SECOND // 4)
    story.begin(log)
    story.pull(log, steps=40)
    lines = [line for line in rendered(log, "plain").splitlines() if story.BLOBS[0][:19] in line]
    assert len(lines) == 1 + 40 // 4 + 1
    assert lines[-1].endswith("done")


def test_plain_output_of_steps_that_run_at_once_says_whose_line_it_is() -> None:
    log = ListLog()
    story.begin(log)
    log.add(e.VertexStarted(name="COPY . /src", inputs=()), "b1", "v3")
    log.add(e.VertexOutput(fd=1, offset=0, text="two\n"), "b1", "v2")
    log.add(e.VertexOutput(fd=1, offset=0, text="three\n"), "b1", "v3")
    tail = rendered(log, "plain").splitlines()[-8:]
    assert tail == ["", "#3 [3/3] COPY . /src", "", "#2 ...", "#2 0.300 two", "", "#3 ...", "#3 0.200 three"]


def test_plain_output_of_failure_retry_and_redrawn_lines() -> None:
    log = ListLog()
    failing(log)
    lines = rendered(log, "plain").splitlines()
    assert lines[-2:] == ["#2 ERROR: process exited with 2", ""]
    assert sum(" line " in line for line in lines) == 30
    log = ListLog()
    story.begin(log)
    log.add(e.VertexOutput(fd=1, offset=0, text="10%\r100%\r\nrest"), "b1", "v2")
    log.add(e.VertexFailed(name="RUN make", error="lost"), "b1", "v2")
    log.add(e.VertexStarted(name="RUN make", inputs=(), attempt=2), "b1", "v2")
    assert [line.split(" ", 1)[1] for line in rendered(log, "plain").splitlines()[-7:] if line.startswith("#2 ")] == [
        "0.200 10%", "0.200 100%", "0.200 rest", "ERROR: lost", "...", "attempt 2",
    ]  # fmt: skip


def test_plain_shows_pulls_of_other_builds_but_nothing_else_of_them() -> None:
    log = ListLog()
    story.begin(log, "b1")
    story.whole(log, "b2")
    text = rendered(log, "plain")
    assert f"#2 {story.BLOBS[0][:19]} 10.0MB fetched by another" in text
    assert "cc -c" not in text


def test_json_is_the_events_of_the_build_one_a_line() -> None:
    log = ListLog()
    story.begin(log, "b1")
    story.begin(log, "b2")
    lines = [json.loads(line) for line in rendered(log, "json").splitlines()]
    assert lines == [event.to_json() for event in log.events if event.build == "b1"]
    assert list(lines[0]) == ["seq", "time", "stream", "version", "type", "build", "vertex", "cause", "data"]


def test_quiet_says_nothing_and_other_modes_do_not_exist() -> None:
    log = ListLog()
    story.whole(log)
    assert rendered(log, "quiet") == ""
    with pytest.raises(InputError, match="no progress mode"):
        make_renderer("loud", "b1", io.StringIO())


@pytest.mark.parametrize("mode", ["plain", "json", "tty"])
def test_a_reader_that_went_away_does_not_stop_the_build(mode: str) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    log = ListLog()
    story.whole(log)
    rendered(log, mode, stream=Gone())


def test_a_stream_without_utf8_gets_ascii() -> None:
    log = ListLog()
    story.whole(log, name="naïve ünïcode")
    log.add(story.started("b9", "later"), "b9")
    for mode in ("plain", "tty", "json"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace", write_through=True)
        rendered(log, mode, stream=stream)
        assert b"debian:12" in raw.getvalue()
        assert raw.getvalue().isascii()
    assert draw(fold(log, "b1"), 80, False, unicode=False).isascii()


def test_rich_is_not_imported_unless_the_terminal_is_live() -> None:
    code = (
        "import io, sys; from tools.cli.render import make_renderer;"
        "[make_renderer(mode, 'b', io.StringIO()) for mode in ('auto', 'plain', 'json', 'quiet')];"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- tty and draw


def tty_screens(log: ListLog, monkeypatch: pytest.MonkeyPatch, width: int, height: int = 24) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    now = [0]
    renderer = make_renderer("tty", "b1", stream, lambda: now[0])
    for event in log.events:
        now[0] = event.time
        renderer.event(event)
    renderer.close()
    return stream.getvalue()


def lines_of(screen: str) -> list[str]:
    """What is between two line ends or cursor movements, without styles."""
    return re.split(r"\r|\n|\x1b\[\d*[AK]", re.sub(r"\x1b\[[0-9;?]*[mhl]", "", screen))


@pytest.mark.parametrize("width", [60, 100])
def test_tty_lines_fit_the_window(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    log = ListLog()
    story.begin(log, name="a name " * 10 + "漢字" * 20)
    story.pull(log)
    log.add(e.VertexOutput(fd=1, offset=0, text="宽" * 200 + "\n" + "x" * 500 + "\n10%\r99%\n"), "b1", "v2")
    story.finish(log)
    screen = tty_screens(log, monkeypatch, width)
    assert max(cell_len(line) for line in lines_of(screen)) <= width
    assert "░" in screen
    assert "99%" in screen
    assert "10%" not in screen
    assert "CACHED" in screen.rpartition("[?25h")[2]
    for unicode in (True, False):
        for until in range(1, log.last_seq() + 1):
            text = draw(fold(log, "b1", until=until), width, False, unicode=unicode)
            assert max(cell_len(line) for line in text.splitlines()) <= width


def test_tty_keeps_within_the_height_and_shows_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    plan = tuple({"vertex": f"v{n}", "name": f"RUN step {n}", "lines": [n, n]} for n in range(100))
    log.add(e.GraphDefined(graph="g", vertices=100, plan=plan), "b1")
    for n in range(60):
        log.add(e.VertexStarted(name=f"RUN step {n}", inputs=()), "b1", f"v{n}")
        if n < 59:
            log.add(e.VertexCompleted(name=f"RUN step {n}", outputs=()), "b1", f"v{n}")
    moving = tty_screens(log, monkeypatch, 80, 12).rpartition("\x1b[?25h")[0]
    last = lines_of(moving.split("\x1b[2K")[-1])
    assert len(last) <= 12
    assert any("RUN step 59" in line for line in last)
    assert any("59 steps finished" in line for line in last)
    assert any("40 steps to come" in line for line in last)


@pytest.mark.parametrize("unicode", [True, False])
def test_a_narrow_window_shows_the_command_rather_than_its_mounts(unicode: bool) -> None:
    mounts = "--mount=type=cache,target=/root/.npm,sharing=locked --mount=type=secret,id=npm,required=false "
    log = ListLog()
    log.add(story.started(), "b1")
    name = f"[build 4/4] RUN {mounts}npm ci --mount=x"
    log.add(e.GraphDefined(graph="g", vertices=1, plan=({"vertex": "v1", "name": name, "lines": [1, 1]},)), "b1")
    log.add(e.VertexStarted(name=name, inputs=()), "b1", "v1")
    narrow, wide = (draw(fold(log, "b1"), width, False, unicode=unicode) for width in (60, 160))
    assert f"[build 4/4] RUN {'…' if unicode else '...'} npm ci --mount=x" in narrow
    assert f"[build 4/4] RUN {mounts}npm ci --mount=x" in wide


@pytest.mark.parametrize("mode", ["tty", "plain"])
def test_what_several_platforms_resolve_alike_is_said_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ListLog()
    log.add(story.started(), "b1")
    for platform, found in (("linux/amd64", "i"), ("linux/arm64", "i"), ("linux/s390x", "other")):
        fact = e.SourceResolved(
            reference="golang:1.19", digest=digest(found), platform=platform, provider={}, manifest="m", config="c"
        )
        log.add(fact, "b1")
    said = tty_screens(log, monkeypatch, 200).rpartition("[?25h")[2] if mode == "tty" else rendered(log, mode)
    assert said.count("resolved golang:1.19") == 2
    assert said.count(digest("i")) == 1


def test_draw_of_a_failed_build_shows_the_step_and_its_output() -> None:
    log = ListLog()
    failing(log)
    text = draw(fold(log, "b1"), 100, False)
    assert "✗ [2/3] RUN make" in text
    assert "exit 2" in text
    assert "line 29" in text
    assert "process exited with 2" in text
    assert text.count("process exited with 2") == 1


def test_draw_of_a_killed_build_says_that_the_log_has_no_end() -> None:
    log = ListLog()
    story.begin(log)
    text = draw(fold(log, "b1"), 60, False)
    assert "running?" in text
    assert "no end" in text
    log.add(e.BuildInterrupted(error="process 7 is gone"), "b1")
    text = draw(fold(log, "b1"), 60, False)
    assert "interrupted" in text
    assert "process 7 is gone" in text


def test_draw_is_the_same_for_the_same_log_and_colours_only_when_asked() -> None:
    log = ListLog()
    story.whole(log)
    plain = draw(fold(log, "b1"), 80, False)
    assert plain == draw(fold(log, "b1"), 80, False)
    coloured = draw(fold(log, "b1"), 80, True)
    assert "\x1b" not in plain
    assert [line.rstrip() for line in re.sub(r"\x1b\[\d+m", "", coloured).splitlines()] == plain.splitlines()


# ---------------------------------------------------------------- strangers' text


def dangerous(text: str) -> list[str]:
    return [c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in "\u202e\u2066")]


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_no_control_sequence_gets_through_in_lines(mode: str) -> None:
    log = ListLog()
    hostile(log)
    text = rendered(log, mode)
    assert dangerous(text) == []
    assert "owned" in text


def test_no_control_sequence_gets_through_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ListLog()
    hostile(log)
    screen = tty_screens(log, monkeypatch, 200)
    assert dangerous(re.sub(r"\x1b\[(\?25[hl]|[0-9;]*[mAK]|2K)|\r", "", screen)) == []
    assert "\x1b[2J" not in screen
    assert "[red]not markup[/red]" in screen
    assert "red colour" in screen
    text = draw(fold(log, "b1"), 200, False)
    assert dangerous(text) == []


@given(st.text())
def test_cleaned_text_has_no_control_character_and_is_never_wider_than_thought(text: str) -> None:
    shown = clean(text)
    assert dangerous(shown.replace("\t", "")) == []
    for width in (1, 7, 20):
        assert cell_len(fit(shown, width)) <= width
    assert cell_len(shown.expandtabs()) <= cells(shown.expandtabs())


def test_no_character_is_wider_than_thought() -> None:
    planes = (range(0x40000), range(0x40000, 0xE0000, 0xFF), range(0xE0000, 0xE1000), range(0xE1000, 0x110000, 0xFF))
    shown = (clean(chr(code)) for code in chain(*planes))  # all, but of planes without characters a sample
    assert [hex(ord(char)) for char in shown if len(char) == 1 and cells(char) < cell_len(char)] == []


def test_stripping_colour_cannot_assemble_a_sequence() -> None:
    assert clean("\x1b\x1b[0m[2J") == "\\x1b[2J"
    assert last_segment("10%\r20%\r") == "20%"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0B"), (999, "999B"), (1000, "1.0kB"), (1234, "1.2kB"), (30_100_000, "30.1MB"), (361_400_000, "361MB"),
     (999_999, "1.0MB"), (99_960, "100kB"), (2_500_000_000, "2.5GB")],
)  # fmt: skip
def test_sizes_read_as_docker_prints_them(count: int, said: str) -> None:
    assert human_bytes(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0s"), (1.24, "1.2s"), (59.96, "1m00s"), (65, "1m05s"), (3599.6, "1h00m"), (7380, "2h03m"), (-5, "0.0s")],
)
def test_durations(seconds: float, said: str) -> None:
    assert human_duration(int(seconds * SECOND)) == said


def test_short_ids() -> None:
    assert short_id(digest("x")) == digest("x")[7:19]
    assert short_id("01234567890123456789") == "012345678901"


def test_a_line_that_is_said_while_the_picture_is_drawn_first_is_not_written_into_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    log = ListLog()
    begun = log.add(story.started(), "b1")

    class Terminal(io.StringIO):
        """Has the picture drawn, if it can be, while a line is made of what is said: it is asked for its encoding."""

        saying = False
        drawing = threading.Thread()

        @property
        def encoding(self) -> str:  # type: ignore[override]  # of a stream that is only read
            if self.saying:
                self.saying = False
                self.drawing = threading.Thread(target=renderer.event, args=(begun,))
                self.drawing.start()
                self.drawing.join(0.1)
            return "utf-8"

    screen = Terminal()
    renderer = make_renderer("tty", "b1", screen, lambda: begun.time)
    screen.saying = True
    renderer.say("hello")
    assert not screen.saying
    screen.drawing.join()
    renderer.close()
    assert screen.getvalue().startswith("hello\n")
