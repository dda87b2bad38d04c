"""Our cache and that of BuildKit are one: dockerd has the names that we give, and each takes what the other made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder
from tests.differential.caches import build_inline, capture, endings, image_config, push_bases
from tests.differential.oracles import BuildKit
from tests.engine.buildkit.cases import CASES, dockerfile, lay
from tests.engine.buildkit.comparing import compare, compiled, named
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE

SHARED = {"copy": 9, "from": 6, "scratch": 7, "variables": 1}
"""Cases that are taken from one builder to the other, and how many steps they have on their bases."""
ALONE = "[stage-3 1/2] WORKDIR /only"
"""A step on nothing, of which BuildKit keeps no result."""


@pytest.fixture(scope="module")
def bases(registry: RegistryProcess) -> dict[str, dict[str, Any]]:
    return push_bases(registry)


@pytest.fixture
def builder(tmp_path: Path, bases: dict[str, dict[str, Any]], request: pytest.FixtureRequest) -> Builder:
    """A fresh root, and the context of the case `name`."""
    name = request.getfixturevalue("name")
    made = Builder(tmp_path)
    lay(made.context)
    text = dockerfile(name, {base: image["reference"] for base, image in bases.items()})
    (made.context / "Dockerfile").write_text(text)
    (made.context / "Dockerfile").chmod(0o644)
    return made


@pytest.mark.parametrize("name", CASES)
def test_every_step_has_the_name_that_dockerd_exports(
    name: str, registry: RegistryProcess, docker: BuildKit, tmp_path: Path, bases: dict[str, dict[str, Any]]
) -> None:
    records = capture(registry.host, docker, name, tmp_path, bases)
    images = {image["reference"]: image for image in bases.values()}
    graph = compiled((tmp_path / "Dockerfile").read_text(), images, tmp_path)
    assert compare(graph, named(graph, tmp_path), records) == []


@pytest.mark.parametrize("name", SHARED)
def test_what_dockerd_built_is_not_built_again_here(
    name: str, registry: RegistryProcess, docker: BuildKit, builder: Builder
) -> None:
    theirs, ours = f"{registry.host}/shared/theirs-{name}", f"{registry.host}/shared/taken-{name}"
    build_inline(docker, builder.context, theirs)
    mark = registry.mark()
    done = builder.run(
        "build", str(builder.context), "--progress", "plain", "--cache-from", f"type=registry,ref={theirs}",
        "-t", ours, "--push",
    )  # fmt: skip
    assert done.code == 0, done.err
    steps = endings(done.err)
    assert steps and set(steps.values()) == {"CACHED"}
    diff_ids = image_config(theirs)["rootfs"]["diff_ids"]
    assert image_config(ours)["rootfs"]["diff_ids"] == diff_ids
    layers = [line for line in registry.requests()[mark:] if line.method == "GET" and line.blob]
    assert len(layers) <= 4, "configs only"


@pytest.mark.skipif(os.geteuid() != 0, reason="a RUN needs root here")
@pytest.mark.parametrize(("name", "kind"), list(zip(SHARED, ("inline", "registry") * 2, strict=True)))
def test_what_was_built_here_is_not_built_again_by_dockerd(
    name: str, kind: str, registry: RegistryProcess, docker: BuildKit, builder: Builder
) -> None:
    image = f"{registry.host}/shared/ours-{name}"
    source = image if kind == "inline" else f"{registry.host}/shared/cache-{name}"
    # reason: BuildKit before 0.12 reads a cache in the form of an index only
    target = "type=inline" if kind == "inline" else f"type=registry,ref={source},mode=max,image-manifest=false"
    command = ("build", str(builder.context), "--progress", "plain", "-t", image, "--push", "--cache-to", target)
    done = builder.run(*command)
    assert done.code == 0, done.err
    docker.forget()
    # reason for the network: a RUN goes out under the name of one that asks for none
    process = docker.start(builder.context, ["--network", "default", "--cache-from", source], "taken")
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    steps = endings(said)
    assert len(steps) == SHARED[name], said
    assert {step for step, end in steps.items() if end != "CACHED"} <= {ALONE}, said
    assert docker.diff_ids("taken") == image_config(image)["rootfs"]["diff_ids"]


@pytest.mark.parametrize("name", ["copy"])
def test_what_changed_is_built_again_by_either_and_so_is_what_stands_on_it(
    name: str, registry: RegistryProcess, docker: BuildKit, builder: Builder, tmp_path: Path
) -> None:
    theirs, ours = f"{registry.host}/shared/theirs-before", f"{registry.host}/shared/ours-before"
    build_inline(docker, builder.context, theirs)
    build = ("build", str(builder.context), "--progress", "plain")
    done = builder.run(*build, "-t", ours, "--push", "--cache-to", "type=inline")
    assert done.code == 0, done.err
    (builder.context / "tree/a").write_text("A")
    docker.forget()
    process = docker.start(builder.context, ["--cache-from", ours], "taken")
    said, _ = process.communicate(timeout=PATIENCE)
    env = {"REFLEDGER_ROOT": str(tmp_path / "fresh")}
    done = builder.run(*build, "--cache-from", f"type=registry,ref={theirs}", env=env)
    assert (process.returncode, done.code) == (0, 0), said + done.err
    for steps in (endings(said), endings(done.err)):
        assert {step for step, end in steps.items() if end == "CACHED"} == {
            "[ 2/10] COPY one.txt /one.txt", "[ 3/10] COPY one.txt two.txt /both/",
        }  # fmt: skip
        assert len(steps) == SHARED[name]
