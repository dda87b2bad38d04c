"""What a person reads after a build: its last lines, and the tables of the reading commands in narrow windows."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.builder import PROJECT, Builder, base_image
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE
from tools.text import cells

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def in_window(builder: Builder, columns: int, *args: str) -> list[str]:
    """The lines `refledger ARGS` writes to a terminal that is so wide, without styles."""
    ours, theirs = pty.openpty()
    try:
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {**builder.env, "TERM": "xterm", "PYTHONUTF8": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli.main", *args],
            env=env, cwd=PROJECT, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while chunk := terminal.read(65536):
                written += chunk
        except OSError:  # EIO: nobody holds the other end any more
            pass
    process.wait(PATIENCE)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode()).replace("\r", "").splitlines()


def test_the_last_line_of_a_build_says_what_it_took_and_pulled(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    target = f"{registry.host}/{repository}/app:1"
    lazy = builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n", "-t", target, "--push").err.splitlines()[-1]
    assert re.fullmatch(r"build [0-9a-f]{12} made sha256:[0-9a-f]{64} in \d+\.\ds, nothing pulled", lazy)
    ran = builder.must_build(f"FROM {image['reference']}\nRUN true\n", "-t", target, "--push").err.splitlines()[-1]
    size = sum(layer["size"] for layer in image["layers"])
    assert ran.endswith(f", {size / 1e6:.1f}MB pulled")


def test_layers_that_an_archive_took_from_the_registry_do_not_count_as_nothing(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    archive = ["--output", f"type=oci,dest={tmp_path / 'image.tar'}"]
    done = builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n", *archive).err.splitlines()[-1]
    assert done.endswith(f"s, {sum(layer['size'] for layer in image['layers']) / 1e6:.1f}MB passed on")


def test_a_failure_names_where_to_look_and_ends_with_the_error(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo not enough widgets; exit 7\n"
    done = builder.build(dockerfile)
    build = builder.builds()[0]["id"]
    *_, pointer, error = done.err.splitlines()
    assert f"refledger show {build}" in pointer
    assert f"refledger output {build}" in pointer
    assert error.startswith("ERROR: ")
    assert error.endswith("exit code 7")
    shown = builder.run("show", build).out.splitlines()
    assert [line.strip() for line in shown].count("not enough widgets") == 1
    assert "Dockerfile:2" in shown
    assert shown[-1] == "error: " + error.removeprefix("ERROR: ")


def test_a_failure_is_told_once_on_a_terminal(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    words = "not enough widgets"
    builder.write({"Dockerfile": f"FROM {image['reference']}\nRUN echo not enough widg''ets; exit 7\n"})
    lines = in_window(builder, 200, "build", str(builder.context))
    # on a busy machine the moving picture has come so far, too, before the one that stays
    final = lines[max(i for i, line in enumerate(lines) if "failed  1/2 steps" in line) :]
    assert sum(words in line for line in final) == 1
    assert final[-1].startswith("ERROR: ")


def test_a_definition_that_fails_has_no_output_to_point_at(builder: Builder) -> None:
    done = builder.build("FROM scratch\nCOPPY a b\n")
    assert done.code == 2
    *_, pointer, error = done.err.splitlines()
    assert "refledger show" in pointer
    assert "refledger output" not in pointer
    assert error == "ERROR: Dockerfile:2: unknown instruction: COPPY (did you mean COPY?)"
    shown = builder.run("show", builder.builds()[0]["id"]).out.splitlines()
    assert "0 steps" not in shown[0]
    assert "steps" not in shown[0]


def test_cached_steps_are_told_in_the_order_of_the_plan(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']} AS a\nRUN echo 1 > /1\nFROM a\nRUN echo 2 > /2\nCOPY --from=a /1 /3\n"
    builder.must_build(dockerfile)
    builder.must_build(dockerfile)
    build = builder.builds()[0]["id"]
    (defined,) = builder.events("GraphDefined", build=build)
    cached = [event["vertex"] for event in builder.events("VertexCached", build=build)]
    assert cached == [step["vertex"] for step in defined["data"]["plan"]]
    assert len(cached) == 4


def test_ids_in_the_table_of_refs_are_short_and_can_be_looked_up(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nRUN true\n")
    rows = [line.split() for line in builder.run("refs").out.splitlines()[1:]]
    remote = next(row[0] for row in rows if row[1] == "remote")
    assert re.fullmatch("sha256:[0-9a-f]{12}", remote)
    for row in rows:
        life = builder.run("refs", row[0])
        assert life.code == 0, life.err
        assert life.out.startswith(row[0])
    whole = builder.run("refs", remote).out.split()[0]
    assert len(whole) == len("sha256:") + 64
    assert whole in builder.run("refs", "--json").out


def test_a_type_that_no_event_has_is_told_of(builder: Builder) -> None:
    builder.build("FROM\n")
    done = builder.run("events", "--type", "BuildFailed", "--type", "LayerPuled")
    assert (done.code, done.out) == (2, "")
    assert done.err == "ERROR: no event has the type 'LayerPuled' (did you mean LayerPulled?)\n"
    assert builder.run("events", "--type", "LayerPulled").out == ""


def test_a_path_that_no_system_takes_is_wrong_input(builder: Builder) -> None:
    builder.write({"Dockerfile": "FROM scratch\n"})
    here, long = str(builder.context), "a" * 70_000
    for arguments in ([here, "--output", f"dest={long}"], [here, "--build-context", f"a={long}"], [long]):
        done = builder.run("build", *arguments)
        assert (done.code, done.out) == (2, ""), done.err
        assert re.fullmatch(r"ERROR: no path can be as long: (a|/)[^ ]{1,200} \(name a shorter one\)\n", done.err)


def test_a_place_that_is_no_path_is_not_told_whole(builder: Builder) -> None:
    done = builder.run("build", ".", "-f", "b" * 70_000)
    assert done.code == 2
    assert re.fullmatch(r"ERROR: [^ ]{1,400}…: cannot be read: File name too long\n", done.err), done.err[-100:]


@pytest.mark.parametrize("columns", [60, 120])
def test_tables_fit_the_window_and_keep_the_name(
    builder: Builder, registry: RegistryProcess, repository: str, columns: int
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    name = f"{registry.host}/a/{'long-' * 30}name:1"
    builder.must_build(f"FROM {image['reference']}\nRUN echo {'x' * 200}\n", "-t", name)
    remote = next(line.split()[0] for line in builder.run("refs").out.splitlines() if " remote " in line)
    for args in (["history"], ["refs"], ["refs", remote], ["events"]):
        lines = in_window(builder, columns, *args)
        if args[-1] == remote:
            assert re.match("sha256:[0-9a-f]{64} ", lines.pop(0))  # the whole id, to be copied: never cut
        assert lines, args
        assert max(cells(line) for line in lines) <= columns, args
    titles, row = in_window(builder, columns, "history")
    assert ("STARTED" in titles) == (columns == 120)
    assert titles.startswith("BUILD")
    assert f"{registry.host}/a/" in row[titles.index("NAME") :]
    assert row.endswith("…")
    assert name in builder.run("history").out
