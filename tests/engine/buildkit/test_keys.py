"""Steps have the names that BuildKit has for them, or none: golden files are what dockerd 20.10 exported
(tests/differential/caches.py makes them, test_buildkit_cache.py compares with a running one)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.buildkit.contenthash import content_digest
from engine.buildkit.keys import chains
from engine.buildkit.steps import image_digests, mkdir_digests, run_digests
from engine.cache.chain import CacheChain
from engine.errors import DiskError, InputError
from engine.graph import ContextSource, Copy, ImageLayer, ImageSource, Mkdir, Run
from engine.ops.select import select
from engine.record import changed
from storage.digest import Digest, sha256
from storage.interfaces.images import Descriptor, Provider
from tests.engine.buildkit.cases import CASES, GOLDEN, dockerfile, lay
from tests.engine.buildkit.comparing import compare, compiled, named

BASE = "golden.invalid/base"


def golden(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return data


def images() -> dict[str, Any]:
    return {f"golden.invalid/{base}": image for base, image in golden("run")["images"].items()}


def names_of(text: str, context: Path) -> tuple[CacheChain, ...]:
    """The names of the last step of a Dockerfile on the base."""
    graph = compiled(text.replace("@base", BASE), images(), context)
    return named(graph, context).get(graph.results[0].vertex, ())


def spelled(chain: CacheChain) -> str:
    """A chain in full: equal for what BuildKit takes for one."""
    links = [sorted(f"{spelled(link)}:{selector}" for link, selector in links) for links in chain.inputs]
    return f"{chain.digest}{links}"


def name_of(text: str, context: Path) -> str:
    first, *_ = names_of(text, context)
    return spelled(first)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    lay(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_in_the_cache_that_dockerd_exported(name: str, context: Path) -> None:
    text = dockerfile(name, {"base": BASE, "rich": "golden.invalid/rich"})
    (context / "Dockerfile").write_text(dockerfile(name, _references(name)))
    (context / "Dockerfile").chmod(0o644)
    graph = compiled(text, images(), context)
    assert compare(graph, named(graph, context), golden(name)["records"]) == []


def _references(name: str) -> dict[str, str]:
    """Those of the capture: its Dockerfile was in the context."""
    return {base: image["reference"] for base, image in golden(name)["images"].items()}


@pytest.mark.parametrize(
    "step",
    [
        "RUN --mount=type=cache,target=/c true",
        "RUN --mount=type=tmpfs,target=/c true",
        "RUN --mount=type=bind,target=/c true",
        "RUN <<E\n#!/bin/sh\ntrue\nE",
        "COPY <<E /f\ntext\nE",
        "COPY --link one.txt /",
        "COPY --parents tree/a /",
        "COPY --exclude=a tree /",
        "COPY --chmod=u+x one.txt /",
        "COPY --chmod=4755 one.txt /",
        "COPY --chown=:app one.txt /",
        "COPY --from=@base /etc/passwd /p",
        "COPY tre* /t/",
        "COPY none* /t/",
        "COPY linkdir/[ab]* /t/",
        'COPY ["one\\\\\\\\.txt", "/t/"]',
        "COPY pipes /t/",
        'RUN ["a", "b\\u0008"]',
    ],
)
def test_what_buildkit_may_name_otherwise_has_no_name_and_so_has_what_stands_on_it(step: str, context: Path) -> None:
    (context / "one\\.txt").write_text("odd")
    (context / "pipes").mkdir()
    os.mkfifo(context / "pipes/one")
    assert names_of("FROM @base\nRUN true\n", context)
    assert not names_of(f"FROM @base\n{step}\n", context)
    assert not names_of(f"FROM @base\n{step}\nRUN true\nWORKDIR /x\n", context)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("RUN a", "RUN b"),
        ("RUN a", "RUN --network=none a"),
        ("RUN a", "ENV X=1\nRUN a"),
        ("RUN a", "USER app\nRUN a"),
        ("RUN a", "WORKDIR /\nWORKDIR /tmp\nRUN a"),
        ("RUN a", "SHELL [\"/bin/ash\", \"-c\"]\nRUN a"),
        ("RUN a", "RUN b\nRUN a"),
        ("COPY one.txt /", "COPY two.txt /"),
        ("COPY one.txt /x", "COPY one.txt /y"),
        ("COPY one.txt /x", "COPY one.txt /x/"),
        ("COPY one.txt /", "COPY --chown=1 one.txt /"),
        ("COPY one.txt /", "COPY --chmod=600 one.txt /"),
        ("COPY tree/a /", "COPY tree/hard /"),
        ("ADD one.txt /", "COPY one.txt /"),
        ("WORKDIR /a", "WORKDIR /b"),
        ("WORKDIR /a", "USER app\nWORKDIR /a"),
    ],
)
def test_steps_that_differ_have_no_name_in_common(one: str, other: str, context: Path) -> None:
    names = [{spelled(name) for name in names_of(f"FROM @base\n{step}\n", context)} for step in (one, other)]
    assert names[0] and names[1] and not names[0] & names[1]


def test_a_copy_counts_by_content_mode_and_names_but_not_by_time_and_owner(context: Path) -> None:
    text = "FROM @base\nCOPY tree /t\n"
    before = name_of(text, context)
    os.utime(context / "tree/a", (1, 1))
    os.chown(context / "tree/a", os.getuid(), os.getgid())
    assert name_of(text, context) == before
    seen = {before}
    for change in (
        lambda: (context / "tree/a").write_text("A"),
        lambda: (context / "tree/a").chmod(0o600),
        lambda: (context / "tree/sub/deep").chmod(0o700),
        lambda: (context / "tree/b.c").rename(context / "tree/b.d"),
        (context / "tree/gone").unlink,
        lambda: (context / "tree/gone").symlink_to("elsewhere"),
        (context / "tree/empty").mkdir,
        lambda: (context / "tree/empty/file").write_text(""),
    ):
        change()
        now = name_of(text, context)
        assert now not in seen
        seen.add(now)


def test_what_dockerignore_hides_does_not_count(context: Path) -> None:
    text = "FROM @base\nCOPY tree /t\n"
    before = name_of(text, context)
    (context / "tree/ignored").write_text("something else")
    assert name_of(text, context) == before


def test_a_tree_may_be_deeper_than_the_stack(context: Path) -> None:
    here = os.open(context / "tree", os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    assert names_of("FROM @base\nCOPY tree /t\n", context)
    remove_deep(context / "tree/d")


def remove_deep(path: Path) -> None:
    """`rm -r` what is deeper than shutil can go: pytest would fail at it."""
    while (path / "d").exists():
        (path / "d").rename(path.with_name("next"))
        path.rmdir()
        path.with_name("next").rename(path)
    path.rmdir()


def test_a_file_that_changes_after_it_was_selected_is_an_error_and_no_name(context: Path) -> None:
    graph = compiled(f"FROM {BASE}\nCOPY one.txt /\n", images(), context)
    source = next(v for v in graph.vertices if isinstance(v.op, ContextSource))
    step = graph.by_digest[graph.results[0].vertex]
    assert isinstance(step.op, Copy)
    selections = {step.digest: select(step.op, context, hash_files=True)}
    directories: dict[Digest, Path] = {source.digest: context}
    (context / "one.txt").write_text("ONE\n")
    with pytest.raises(InputError, match=r"'one\.txt' changed"):
        chains(graph, selections, directories)
    (context / "one.txt").unlink()
    with pytest.raises(InputError, match=r"'one\.txt' changed"):
        chains(graph, selections, directories)


def test_a_pattern_that_leads_to_its_own_name_alone_has_the_name_of_the_file(context: Path) -> None:
    (context / "stars").mkdir()
    for name in ("stars/*", "plain"):
        (context / name).write_text("one")
    pattern, plain, other = (
        content_digest(op, select(op, context, (), hash_files=True), context)
        for op in (Copy((source,), "/", from_context=True) for source in ("stars/*", "plain", "plai?"))
    )
    assert pattern == plain != other


def test_what_nobody_selected_has_no_name(context: Path) -> None:
    graph = compiled(f"FROM {BASE}\nCOPY tree /t\n", images(), context)
    directories = {v.digest: context for v in graph.vertices if isinstance(v.op, ContextSource)}
    assert graph.results[0].vertex not in chains(graph, {}, directories)


def test_the_variant_of_a_platform_counts() -> None:
    run = Run(("a",), (), "/", "", "host", platform="linux/arm/v7")
    assert not set(run_digests(run)) & set(run_digests(changed(run, platform="linux/arm/v6")))


def test_a_directory_of_somebody_that_no_base_knows_has_no_name() -> None:
    assert mkdir_digests(Mkdir("/a", "app"), on_base=False) == ()
    assert mkdir_digests(Mkdir("/a", "7"), on_base=False)


def test_variants_of_a_platform_are_different_images() -> None:
    layer = ImageLayer(sha256(b"diff"), Descriptor("t", sha256(b"blob"), 1))
    provider = Provider.of("h.example", "i")
    seventh, plain = (
        image_digests(ImageSource("i", sha256(b"m"), platform, provider, (layer,)))
        for platform in ("linux/arm/v7", "linux/amd64")
    )
    assert seventh[0] != plain[0]
    assert seventh[1] == plain[1], "what is in them is the same"


def test_a_context_that_went_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    op = Copy(("/f",), "/")
    selection = select(op, tmp_path, hash_files=True)
    with pytest.raises(DiskError, match="reading the files to copy"):
        content_digest(op, selection, tmp_path / "gone")
