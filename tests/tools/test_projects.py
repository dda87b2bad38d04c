"""The projects of examples/ that need no package registry, from source to answer; tools/projects runs all of them."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.lab.host_registries import host_registries
from tools.lab.image_runner import BrokenPromise
from tools.lab.loopback_registry import LoopbackRegistry
from tools.lab.peers import workplace
from tools.lab.seed import KINDS
from tools.project_list import PROJECTS, Project
from tools.project_page import Figures, Told, document, figures
from tools.projects import Bench, expect_steps, tell

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICK = [project for project in PROJECTS if set(project.bases.values()) == {"busybox"}]
ANSWERS = ("first\nHello, reader. | 2\n", "Welcome, reader.\n")
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("runc"), reason="builds need root and runc")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as directory:
        yield directory


@pytest.fixture(scope="module")
def registry(place: Path) -> Iterator[LoopbackRegistry]:
    with LoopbackRegistry(place / "registry") as running:
        yield running


def project(name: str) -> Project:
    return next(one for one in PROJECTS if one.name == name)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("one", QUICK, ids=lambda one: one.name)
def test_a_project_runs_warm_is_cached_and_runs_again_what_a_change_asks_for(
    one: Project, place: Path, registry: LoopbackRegistry
) -> None:
    directory = place / one.name
    directory.mkdir()
    told = tell(one, directory, registry.host, {})
    assert one.before in told.answers[0]
    assert one.after in told.answers[1]
    assert len(told.warm.cached) == len(told.cold.ran)
    assert f"examples/{one.name})" in document([told])


@pytest.mark.root
@needs_root
def test_an_expectation_that_does_not_hold_is_told(place: Path, registry: LoopbackRegistry) -> None:
    wrong = dataclasses.replace(project("onbuild"), before="7 apples")
    (place / "wrong").mkdir()
    with pytest.raises(BrokenPromise, match="answered '6 apples', not '7 apples'"):
        tell(wrong, place / "wrong", registry.host, {})


def test_there_are_twelve_each_with_its_dockerfile_and_a_change_that_can_be_made() -> None:
    assert len({one.name for one in PROJECTS}) == 12
    for one in PROJECTS:
        assert (EXAMPLES / one.name / one.context / "Dockerfile").is_file()
        assert (EXAMPLES / one.name / one.change.path).read_text().count(one.change.old) == 1
        assert set(one.bases.values()) <= set(KINDS)


def test_I9_what_was_lent_is_found_wherever_it_lies(tmp_path: Path) -> None:
    bench = Bench(project("signed-release"), tmp_path, "127.0.0.1:1", {})
    (tmp_path / "key").write_text("-----BEGIN\nfirst\nsecond line of the key\n")
    files = {"root/log.db": f"x{bench.token}y", "bundle/rootfs/k": "second line of the key", "root/a": ""}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(data)
    assert sorted(bench.find_lent()) == ["bundle/rootfs/k", "root/log.db"]


def test_steps_that_run_again_without_need_and_steps_that_do_not_are_both_told() -> None:
    expect_steps(["RUN make", "COPY a"], ["COPY a /", "RUN make all"])
    with pytest.raises(BrokenPromise, match="'RUN make' did not run again"):
        expect_steps(["RUN make"], ["COPY a /"])
    with pytest.raises(BrokenPromise, match=r"\['COPY a /'\] ran again without need"):
        expect_steps([], ["COPY a /"])


def test_contexts_and_bases_are_no_steps() -> None:
    events = [
        {"type": kind, "data": {"name": name}}
        for kind, name in (
            ("VertexCompleted", "[internal] load build context"), ("VertexCompleted", "[context settings] load"),
            ("VertexCached", "[build 1/2] FROM base"), ("VertexCached", "[build 2/2] RUN make [all] FROM nothing"),
        )
    ]  # fmt: skip
    found = figures(events, 1.0)
    assert (found.ran, found.cached) == ((), ("RUN make [all] FROM nothing",))


def test_what_pip_takes_from_a_directory_here_is_reached_over_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.request import urlopen

    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "index/simple/page").write_text("found")
    (tmp_path / "authority.pem").write_text("CERTIFICATE")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{tmp_path}/index/simple")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "authority.pem"))
    with host_registries(tmp_path / "lent") as lent:
        config = lent["pip"].read_text()
        matched = re.search(r"^extra-index-url = (http://127\.0\.0\.1:\d+/simple)$", config, re.MULTILINE)
        assert matched, config
        assert urlopen(f"{matched[1]}/page").read() == b"found"
        assert "cert = /run/secrets/ca\n" in config
        assert "CERTIFICATE" in lent["ca"].read_text()
        assert str(tmp_path) not in config


def test_the_page_names_its_command_and_escapes_what_would_break_its_table() -> None:
    step = "RUN --mount=type=cache,target=/c a | b `c`" + 60 * "d"
    done = Figures(1.0, (step,), (), 2_000_000, 1_000_000)
    page = document([Told(project("toolbox"), done, done, done, ANSWERS, "")])
    row = page.splitlines()[-1]
    assert "tools/projects --output" in page
    assert len(re.findall(r"(?<!\\)\|", row)) == 8
    assert "1.0 of 2.0 MB" in row
    assert "`RUN a \\| b 'c'ddd" in row
    assert "greet reader: `Hello, reader. \\| 2`, then `Welcome, reader.`" in row
