"""A RUN that mounts the context runs again when what it can see of it changed, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def _ran(builder: Builder, text: str) -> list[str]:
    """The words that RUN printed in this build."""
    before = len(builder.builds())
    builder.must_build(text)
    assert len(builder.builds()) == before + 1
    build = builder.builds()[0]["id"]
    return "".join(event["data"]["text"] for event in builder.events("VertexOutput", build=build)).split()


def test_only_what_a_mount_shows_is_in_the_key(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, f"{repository}/base", layers=1)
    text = (
        f"FROM {image['reference']}\n"
        "RUN --mount=source=a,target=/a echo one\n"
        "RUN --mount=target=/all --mount=source=a/x,target=/x echo two\n"
    )
    builder.write({"a/x": "1", "b": "1", "c.md": "1", ".dockerignore": "*.md\n"})
    assert _ran(builder, text) == ["one", "two"]
    assert _ran(builder, text) == []
    builder.write({"c.md": "2"})
    assert _ran(builder, text) == []
    builder.write({"b": "2"})
    assert _ran(builder, text) == ["two"]
    builder.write({"a/x": "2"})
    assert _ran(builder, text) == ["one", "two"]


def test_a_source_that_is_not_there_is_told_with_the_line_of_the_run(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path)
    image = base_image(registry, f"{repository}/base", layers=1)
    done = builder.build(f"FROM {image['reference']}\nRUN --mount=source=no*,target=/a true\n")
    assert done.code == 2
    assert '"/no*": not found' in done.err
    assert "   2 | >>> RUN --mount=source=no*,target=/a true" in done.err
