"""`refledger audit redact`: what was printed or given is gone, and everything that reads says so."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("runc"), reason="builds need root and runc"),
]

DOCKERFILE = """\
FROM {base}
ARG DB_PASSWORD
ARG COLOR
RUN echo "connecting as admin:swordfish-$((4000+711))" && echo harmless-a
RUN echo harmless-b
RUN echo leaving && sleep 0.3 && echo "again swordfish-$((4000+711))" && exit 3
"""
WORDS = re.compile(r"\[redacted by ann on \d{4}-\d\d-\d\d: it told a password\]")
WHY = ("--reason", "it told a password", "--by", "ann", "--yes")


@pytest.fixture
def builder(tmp_path: Path, registry: RegistryProcess) -> Iterator[Builder]:
    base = base_image(registry, "redact/base", size=1000, layers=1)["reference"]
    builder = Builder(tmp_path / "a place")
    done = builder.build(
        DOCKERFILE.format(base=base), "--build-arg", "DB_PASSWORD=hunter2-hunter2", "--build-arg", "COLOR=ultraviolet"
    )
    assert done.code == 1, done.err
    yield builder
    assert builder.leftovers() == []


def holders(builder: Builder, needle: str) -> list[str]:
    """Files of the root that hold `needle`."""
    files = [path for path in builder.root.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(str(path.relative_to(builder.root)) for path in files if needle.encode() in path.read_bytes())


def test_output_is_erased_and_every_reader_says_so(builder: Builder, tmp_path: Path) -> None:
    build = builder.builds()[0]["id"]
    assert builder.run("audit", "keygen").code == 0
    assert builder.run("audit", "checkpoint", "-o", str(tmp_path / "before.cp")).code == 0
    assert "swordfish-4711" in builder.run("output", build).out
    assert holders(builder, "swordfish-4711") == ["log.db"]
    done = builder.run("audit", "redact", build, *WHY)
    assert done.code == 0, done.err
    assert f"of build {build}: event" in done.out

    assert holders(builder, "swordfish-4711") == []
    output = builder.run("output", build).out
    assert len(WORDS.findall(output)) == 3, "once a step"
    assert "harmless" not in output
    told = json.loads(builder.run("output", build, "--json").out.splitlines()[0])
    assert WORDS.fullmatch(told["text"])
    for command in (("show", build), ("show", build, "--play"), ("show", build, "--json")):
        shown = builder.run(*command)
        assert shown.code == 0, shown.err
        assert WORDS.search(shown.out), command
    page = tmp_path / "page.html"
    assert builder.run("report", build, "-o", str(page)).code == 0
    assert "redacted by ann" in page.read_text()
    marks = [event["data"]["text"]["$redacted"] for event in builder.events("VertexOutput")]
    assert {(mark["by"], mark["reason"]) for mark in marks} == {("ann", "it told a password")}
    assert {mark["seq"] for mark in marks} == {event["seq"] for event in builder.events("PayloadRedacted")}
    for words in (("why", build), ("history",), ("rebuild",), ("rebuild", "--check"), ("diff", build, build)):
        assert builder.run(*words).code == 0, words
    replayed = builder.run("replay", build)
    assert replayed.code == 1, replayed.err
    signed = builder.run("audit", "checkpoint", "-o", str(tmp_path / "after.cp"))
    assert signed.code == 0, signed.err  # what was signed before is not contradicted: that would be exit code 4


def test_one_step_and_only_what_matches(builder: Builder) -> None:
    build = builder.builds()[0]["id"]
    assert builder.run("audit", "redact", build, "harmless-b", *WHY).code == 0
    output = builder.run("output", build).out
    assert "harmless-b" not in output
    assert "harmless-a" in output
    done = builder.run("audit", "redact", build, "--match", r"swordfish-\d+", *WHY)
    assert done.code == 0, done.err
    output = builder.run("output", build).out
    assert "swordfish" not in output
    assert "leaving" in output, "another piece, of the same step"
    nothing = builder.run("audit", "redact", build, "--match", r"swordfish-\d+", *WHY)
    assert (nothing.code, "nothing to erase" in nothing.err) == (2, True)


def test_values_of_build_args_are_erased_by_name(builder: Builder, tmp_path: Path) -> None:
    build = builder.builds()[0]["id"]
    args = builder.events("BuildStarted")[0]["data"]["options"]["args"]
    assert args == {"DB_PASSWORD": "hunter2-hunter2", "COLOR": "ultraviolet"}
    done = builder.run("audit", "redact", build, "--args", "COLOR", *WHY)
    assert (done.code, "1 lie in the events themselves and stay" in done.err) == (2, True)
    done = builder.run("audit", "redact", build, "--args", "DB_PASSWORD", *WHY)
    assert done.code == 0, done.err
    assert "not erased: what the blobs of graphs" in done.err
    args = builder.events("BuildStarted")[0]["data"]["options"]["args"]
    assert args["COLOR"] == "ultraviolet"
    assert args["DB_PASSWORD"]["$redacted"]["by"] == "ann"
    left = holders(builder, "hunter2-hunter2")
    assert left, "its graph, and what cache keys were made of"
    assert all(name.startswith("blobs/") for name in left), left
    bundle = tmp_path / "b.bundle"
    for command in (("why", build), ("bundle", build, "-o", str(bundle)), ("rebuild", "--check")):
        done = builder.run(*command)
        assert done.code == 0, (command, done.err)
    assert builder.run("replay", str(bundle)).code == 1


def test_blobs_that_have_the_value_go_when_asked(builder: Builder, tmp_path: Path) -> None:
    build = builder.builds()[0]["id"]
    assert len(holders(builder, "hunter2-hunter2")) > 2
    done = builder.run("audit", "redact", build, "--args", "DB_PASSWORD", "--blobs", *WHY)
    assert done.code == 0, done.err
    assert holders(builder, "hunter2-hunter2") == []
    gone = {event["data"]["name"] for event in builder.events("Pruned") if event["data"]["policy"] == "redaction"}
    assert builder.events("GraphDefined")[0]["data"]["graph"] in gone
    for command in (("why", build), ("show", build), ("output", build), ("rebuild", "--check")):
        done = builder.run(*command)
        assert done.code == 0, (command, done.err)
    for words in (("bundle", build, "-o", str(tmp_path / "b.bundle")), ("replay", build)):
        done = builder.run(*words)
        assert (done.code, "graph of build" in done.err) == (4, True)
        assert "events --type Pruned` says by whom" in done.err


def test_settings_of_the_root_say_which_args(builder: Builder) -> None:
    (builder.root / "audit.toml").write_text('[redaction]\nargs = ["col?r"]\n')
    done = builder.build((builder.context / "Dockerfile").read_text(), "--build-arg", "COLOR=infrared")
    assert done.code == 1, done.err
    build = builder.builds()[0]["id"]
    assert builder.run("audit", "redact", build, "--args", "COLOR", *WHY).code == 0
    assert not [name for name in holders(builder, "infrared") if not name.startswith("blobs/")]
    (builder.root / "audit.toml").write_text("[redaction]\nargs = 3\n")
    done = builder.build((builder.context / "Dockerfile").read_text())
    assert (done.code, "audit.toml" in done.err) == (2, True)


def test_nothing_is_erased_without_a_yes_or_a_reason(builder: Builder) -> None:
    build = builder.builds()[0]["id"]
    assert builder.run("audit", "redact", build, "--reason", "x").code == 130  # nobody is there to say yes
    assert builder.run("audit", "redact", build, "--yes").code == 2
    assert builder.run("audit", "redact", build, "--yes", "--reason", " ").code == 2
    assert builder.events("PayloadRedacted") == []
