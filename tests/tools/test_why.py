"""`refledger why` and `refledger diff` on real builds; test_edits.py has the table of edits."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.builder import Builder, base_image, busybox_layer
from tests.registry_fixture import RegistryProcess, push_image
from tests.tools.test_reading import in_window
from tools.text import cells

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

DOCKERFILE = """\
ARG LEVEL=1
FROM {base} AS tools
ARG LEVEL
RUN echo tool $LEVEL > /tool
FROM {base} AS compile
WORKDIR /src
ENV CC=cc CFLAGS=-O2
COPY src /src
RUN --mount=type=secret,id=token,target=/token cat /src/main.c > /main.o
RUN cat /main.o > /program
FROM {base}
COPY --from=compile /program /program
COPY --from=tools /tool /tool
COPY etc/conf /etc/conf
"""

@dataclass
class Project:
    """A multi-stage project in one builder, which the edits change."""

    builder: Builder
    registry: RegistryProcess
    base: str
    dockerfile: str = ""
    args: list[str] = field(default_factory=list)

    def build(self) -> str:
        """Build it; returns the build's id."""
        secret = f"id=token,src={self.builder.context}/../token"
        done = self.builder.must_build(self.dockerfile, "--secret", secret, *self.args)
        found = re.search("^build ([0-9a-f]{12}) done in ", done.err, re.MULTILINE)
        assert found, done.err
        return found[1]

    def replace(self, old: str, new: str) -> None:
        assert old in self.dockerfile
        self.dockerfile = self.dockerfile.replace(old, new)

    def file(self, name: str) -> Path:
        return self.builder.context / name


@pytest.fixture
def project(tmp_path: Path, registry: RegistryProcess, repository: str) -> Project:
    builder = Builder(tmp_path)
    base = base_image(registry, f"{repository}/base", layers=1)["reference"]
    builder.write({"src/main.c": "main\n", "src/util.c": "util\n", "etc/conf": "x=1\n", "README": "read\n"})
    builder.write({".dockerignore": "**/*.tmp\n"})
    (tmp_path / "token").write_text("one")
    return Project(builder, registry, base, DOCKERFILE.format(base=base))


def _retag(project: Project) -> None:
    name = project.base.partition("/")[2].partition(":")[0]
    layers = [{"etc/release": b"2"}, busybox_layer()]
    push_image(project.registry.host, name, layers, config={"Env": ["PATH=/bin"]})


def test_a_hit_tells_where_its_result_came_from_and_whether_its_layers_were_verified(project: Project) -> None:
    origin, build = project.build(), project.build()
    told = json.loads(project.builder.run("why", build, "RUN echo tool", "--json").out)
    assert told["outcome"] == "hit"
    assert told["origin"]["build"] == origin
    base, made = told["origin"]["layers"]
    assert base["provider"] == project.base.rpartition(":")[0]
    assert base["verified"] == ["digest", "diff_id"]
    assert made["build"] == origin
    assert made["digest"].startswith(origin)
    text = project.builder.run("why", build, "RUN echo tool").out
    assert f"cached: made by build {origin}\n    context, " in text
    assert f"verified here (digest, diff_id)\n      from {project.base.rpartition(':')[0]}" in text
    assert f"8 from build {origin}" in project.builder.run("why", build).out


def test_what_a_step_was_lent_is_told_and_no_value_of_a_secret(project: Project) -> None:
    project.file("../token").write_text("first value")
    project.replace("--mount=type=secret", "--mount=type=cache,id=objects,target=/objects --mount=type=secret")
    project.build()
    project.file("../token").write_text("second value")
    build = project.build()
    told = json.loads(project.builder.run("why", build, "RUN --mount", "--json").out)
    assert told["outcome"] == "hit"  # another value is no miss
    taint = {item["kind"]: (item["id"], item["target"], item["seen"]) for item in told["taint"]}
    assert taint == {
        "network": ("host", "", "used"), "cache": ("objects", "/objects", "empty"),
        "secret": ("token", "/token", "used"),
    }  # fmt: skip
    text = project.builder.run("why", build, "RUN --mount").out
    assert "secret token at /token: its value is no part of the key, another one is no miss" in text
    whole = project.builder.run("why", build)
    assert re.search("network of [0-9, ]+; cache mount objects of 6; secret token of 6$", whole.out, re.MULTILINE)
    assert "value" not in whole.out


def test_keys_are_in_the_open(project: Project) -> None:
    build = project.build()
    told = json.loads(project.builder.run("why", build, "RUN --mount", "--json").out)
    (key,) = told["keys"]
    assert key["by"] == "definition"
    assert ["env", "CFLAGS=-O2"] in key["components"]
    assert ["mount 0 id", "token"] in key["components"]
    assert sum(name == "input" for name, _ in key["components"]) == 1
    copied = json.loads(project.builder.run("why", build, "COPY --from=tools", "--json").out)["keys"]
    assert [key["by"] for key in copied] == ["definition", "content"]
    assert [name for name, _ in copied[1]["components"]][-2:] == ["input", "content"]
    text = project.builder.run("why", build, "RUN --mount", "--key").out
    assert f"  key by definition {key['digest']}\n    schema  1\n    op  run\n    argv  /bin/sh\n" in text
    assert project.builder.run("why", build, "--key").code == 2


def test_a_build_of_another_directory_with_the_same_name_is_not_compared_with(project: Project, tmp_path: Path) -> None:
    before = project.build()
    elsewhere = Builder(tmp_path / "elsewhere")
    elsewhere.root, elsewhere.env = project.builder.root, project.builder.env
    shutil.copytree(project.builder.context, elsewhere.context, dirs_exist_ok=True, symlinks=True)
    other = Project(elsewhere, project.registry, project.base, project.dockerfile.replace("-O2", "-O0"))
    (tmp_path / "elsewhere/token").write_text("one")
    other.build()
    project.replace("-O2", "-O3")
    told = json.loads(project.builder.run("why", project.build(), "--json").out)
    assert told["against"] == before


def test_a_layer_that_was_never_fetched_is_not_called_verified(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    base = base_image(registry, f"{repository}/base", layers=1)["reference"]
    builder.write({"a": "1"})
    for _ in range(2):
        builder.must_build(f"FROM {base}\nCOPY --link a /a\n")
    told = json.loads(builder.run("why", builder.builds()[0]["id"], "COPY", "--json").out)
    assert told["origin"]["layers"][0]["verified"] == []
    assert "never fetched whole here" in builder.run("why", builder.builds()[0]["id"], "COPY").out


def test_a_step_that_failed_or_never_ran_is_compared_all_the_same(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    base = base_image(registry, f"{repository}/base", layers=1)["reference"]
    for command in ("false", "false", "true"):
        builder.build(f"FROM {base}\nRUN {command}\nRUN echo after\n")
    fixed, again, first = (item["id"] for item in builder.builds())
    assert "never built\n    no earlier build of this definition" in builder.run("why", first).out
    assert f"never built\n    build {first} asked for the same, but the step failed" in builder.run("why", again).out
    text = builder.run("why", fixed).out
    assert "was  false\n    now  true" in text
    assert "1 later step followed" in text
    later = json.loads(builder.run("why", fixed, "echo after", "--json").out)
    assert later["follows"]
    assert [change["component"] for change in later["changes"]] == ["input"]
    assert "it followed step 2" in builder.run("why", fixed, "echo after").out


def test_the_build_to_compare_with_can_be_chosen(project: Project) -> None:
    first = project.build()
    project.file("etc/conf").write_text("x=2\n")
    second = project.build()
    project.file("etc/conf").write_text("x=3\n")
    third = project.build()
    was = {}
    for against in (first, second):
        told = json.loads(project.builder.run("why", third, "etc/conf", "--json", "--against", against).out)
        assert told["against"] == against
        was[against] = told["changes"][0]["files"][0]["old"]
    assert was[first] != was[second]
    for args in ([third, "--against", third], [third, "nothing like it"], [third, "COPY"], ["nobody"]):
        done = project.builder.run("why", *args)
        assert (done.code, done.err.count("\n")) == (2, 1)


def test_diff_tells_options_sources_lines_steps_and_results(project: Project) -> None:
    before = project.build()
    project.replace("-O2", "-O3")
    project.file("etc/conf").write_text("x=2\n")
    project.args += ["--build-arg", "LEVEL=3"]
    _retag(project)
    after = project.build()
    told = json.loads(project.builder.run("diff", before, after, "--json").out)
    assert (told["old"], told["new"]) == (before, after)
    assert {"name": "args LEVEL", "old": None, "new": "3"} in told["options"]
    (source,) = told["sources"]
    assert source["name"].startswith(project.base)
    assert source["old"].startswith("sha256:")
    assert source["new"] != source["old"]
    assert "-ENV CC=cc CFLAGS=-O2" in told["definition"]
    assert "+ENV CC=cc CFLAGS=-O3" in told["definition"]
    conf = next(step for step in told["steps"] if "etc/conf" in step["name"])
    assert [file["path"] for change in conf["changes"] for file in change["files"]] == ["etc/conf"]
    assert told["results"][0]["name"] == "linux/amd64"
    text = project.builder.run("diff", before, after).out
    for part in ("args LEVEL", "+ENV CC=cc CFLAGS=-O3", "etc/conf  changed: was ", "variable CFLAGS differs"):
        assert part in text
    assert project.builder.run("diff", before, before).out.splitlines()[-1] == "no difference"
    assert project.builder.run("diff", before, "nobody").code == 2


@pytest.mark.parametrize("columns", [60, 100])
def test_the_text_fits_the_window(project: Project, columns: int) -> None:
    before = project.build()
    project.replace("RUN cat /main.o", "RUN cat /main.o " + "/main.o " * 20)
    project.file("src/main.c").write_text("two")
    after = project.build()
    for args in (["why", after], ["why", after, "COPY src"], ["why", before, "RUN echo tool"], ["diff", before, after]):
        lines = in_window(project.builder, columns, *args)
        assert len(lines) >= 3
        assert max(cells(line) for line in lines) <= columns, args
    assert any("src/main.c  changed: was" in line for line in in_window(project.builder, columns, "why", after))


def test_a_root_that_lost_a_keys_plaintext_says_so(project: Project) -> None:
    project.build()
    project.replace("-O2", "-O3")
    after = project.build()
    asked = next(e for e in project.builder.events("CacheQueried", build=after) if e["data"]["outcome"] == "miss")
    assert asked["data"]["components"] == asked["data"]["key"]
    (project.builder.root / "blobs/sha256" / asked["data"]["components"].partition(":")[2]).unlink()
    done = project.builder.run("why", after)
    assert done.code == 0, done.err
    assert "keeps its key no more" in done.out


def test_an_all_cached_build_writes_no_blob(project: Project) -> None:
    project.build()
    before = {path.name for path in (project.builder.root / "blobs/sha256").iterdir()}
    project.build()
    assert {path.name for path in (project.builder.root / "blobs/sha256").iterdir()} == before


def test_another_platform_is_told_though_its_step_could_not_run(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    base = base_image(registry, f"{repository}/base", layers=1)["reference"]
    builder.must_build(f"FROM {base}\nRUN true\n", "--platform", "linux/amd64")
    builder.build(f"FROM {base}\nRUN true\n", "--platform", "linux/s390x")
    text = builder.run("why", builder.builds()[0]["id"]).out
    assert "platform differs\n    was  linux/amd64\n    now  linux/s390x" in text
