"""What a log, a Dockerfile or a registry says never writes to the terminal but as text."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage.interfaces.log import NewEvent
from storage.log.codec import decode
from storage.log.eventlog import SqliteEventLog
from tests.builder import Builder, Done
from tools.cli import main
from tools.cli.writing import print_aside, print_json, print_line

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e\x9b31m\x1b]52;c;aGk=\x07\r\x08"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(done: Done) -> None:
    for text in (done.out, done.err):
        found = RAW.search(text)
        assert found is None, text[max(0, found.start() - 80) : found.end() + 80]
    assert "internal error" not in done.err


def test_every_line_is_cleaned_where_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"a\tline {EVIL}\nanother")
    print_aside(EVIL)
    print_json({"x": f"{EVIL}\n"})
    told = capsys.readouterr()
    assert told.out.count("\n") == 2
    assert told.err.count("\n") == 1
    assert not RAW.search(told.out + told.err)
    assert "\\x1b]0;owned\\x07" in told.out


@pytest.mark.parametrize("error", [ValueError(EVIL), RecursionError(EVIL)])
def test_an_internal_error_is_cleaned_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(main.cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code in {3, 4}
    told = capsys.readouterr().err
    assert told.startswith("ERROR: ")
    assert told.count("\n") == 1
    assert not RAW.search(told)


def test_names_in_a_log_are_text_to_every_reader(tmp_path: Path) -> None:
    """Types, builds, vertices and refs are whatever who wrote the log wanted."""
    builder = Builder(tmp_path)
    builder.root.mkdir()
    ref = f"ref{EVIL}"
    log = SqliteEventLog(builder.root / "log.db")
    started = {"frontend": EVIL, "definition": "x", "options": {}, "context": None, "engine_version": EVIL,
               "host": {"hostname": EVIL}, "name": EVIL}  # fmt: skip
    build = f"b{EVIL}"
    log.append(
        NewEvent(f"build/{build}", "BuildStarted", started, build),
        NewEvent(f"build/{build}", "VertexStarted", {"name": EVIL, "inputs": [], "attempt": 1}, build, EVIL),
        NewEvent(f"build/{build}", "VertexOutput", {"fd": 1, "offset": 0, "text": f"{EVIL}\n"}, build, EVIL),
        NewEvent(f"ref/{ref}", "LocalCreated", {"ref": ref, "parent": None, "bytes": 1, "layers": []}, build, EVIL),
        NewEvent(f"build/{build}", EVIL, {EVIL: EVIL}, build),
        NewEvent(f"build/{build}", "BuildFailed", {"vertex": EVIL, "error": EVIL, "exit_code": 1}, build),
    )
    log.close()
    escape = f"../../{tmp_path.name}-evil"
    log = SqliteEventLog(builder.root / "log.db")
    log.append(NewEvent(f"build/{escape}", "BuildStarted", {**started, "definition": ""}, escape))
    log.close()
    done = builder.run("report", "../")
    assert done.code == 2
    assert "is no name for a file" in done.err
    assert builder.run("report", "../", "-o", str(tmp_path / "page")).code == 0
    clean(Done(0, (tmp_path / "page").read_text().replace("\n", ""), ""))
    for command in (["history"], ["events"], ["refs"], ["refs", "ref"], ["show", "b"], ["output", "b"], ["du"]):
        clean(builder.run(*command))
    with closing(sqlite3.connect(builder.root / "log.db")) as db:
        (row,) = db.execute("SELECT rowid, originator_id, originator_version, topic, state FROM events WHERE rowid = 5")
    assert decode(row).type == EVIL  # that is what was printed
    shutil.rmtree(builder.root)
