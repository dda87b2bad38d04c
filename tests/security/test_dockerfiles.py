"""A Dockerfile of a stranger: it reads of this machine what it was given, and names files as files are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builder import Builder
from tests.web_fixture import WebServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "builds")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of somebody else on this machine."""
    place = tmp_path_factory.mktemp("private")
    private = Builder(place)
    private.write({"a": "of somebody else"})
    private.must_build("FROM scratch\nCOPY a /secret\n", "-o", f"type=oci,dest={place / 'layout'},tar=false")
    return place / "layout"


def refused(builder: Builder, dockerfile: str, said: str) -> None:
    done = builder.build(dockerfile)
    assert done.code == 2, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert said in line
    assert "internal error" not in line


@pytest.mark.parametrize(
    "dockerfile",
    ["FROM oci-layout://{layout}\nCOPY a /b\n", "FROM scratch\nCOPY --from=oci-layout://{layout} /secret /s\n",
     "ARG X=oci-layout://{layout}\nFROM $X\nWORKDIR /w\n"],
)  # fmt: skip
def test_a_layout_is_read_only_where_the_user_names_it(builder: Builder, layout: Path, dockerfile: str) -> None:
    builder.write({"a": "mine"})
    refused(builder, dockerfile.format(layout=layout), "a Dockerfile names no OCI layout (--build-context")


def test_a_layout_that_the_user_names_is_read(builder: Builder, layout: Path) -> None:
    builder.must_build("FROM mine\nWORKDIR /w\n", "--build-context", f"mine=oci-layout://{layout}")


@pytest.mark.parametrize("dockerfile", ["FROM context://x\n", "FROM scratch\nCOPY --from=context://x a /b\n"])
def test_what_stands_for_a_context_within_is_nothing_to_write(builder: Builder, dockerfile: str) -> None:
    refused(builder, dockerfile, "there is no context of that name")


def test_a_file_gets_a_name_that_files_have(builder: Builder) -> None:
    refused(builder, "FROM scratch\nCOPY <<'..' /x/\ntext\n..\n", "'..' cannot be a file's name")
    with WebServer() as web:
        url = web.put(f"/{'a' * 300}", b"x")
        refused(builder, f"FROM scratch\nADD {url} /x/\n", "cannot be a file's name")
