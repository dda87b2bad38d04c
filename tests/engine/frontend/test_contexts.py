"""What contexts are written as, and where named ones stand in a graph."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from engine.errors import DockerfileError, InputError
from engine.frontend.contexts import (
    ImageContext,
    NamedContext,
    StageContext,
    context_name,
    is_archive,
    named_context,
    remote_context,
)
from engine.graph import ArchiveSource, ContextSource, Copy, GitSource, HttpSource, ImageSource, Merge
from engine.stored import graph_from_json
from tests.engine.frontend.support import Images, compile_text, history_of, names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker-image://debian:12", ImageContext("debian:12")),
        ("docker-image:debian", ImageContext("debian")),
        ("oci-layout:///a/b:v1", ImageContext("oci-layout:///a/b:v1")),
        ("target:build", StageContext("build")),
        ("https://h/x.tar", ArchiveSource("https://h/x.tar")),
        ("https://h/x.git#v1", GitSource("https://h/x.git", "v1")),
        ("git@h:x", GitSource("git@h:x")),
        ("some/dir", None), ("github.com/a/b", None), (".", None),
    ],
)  # fmt: skip
def test_named_contexts(text: str, expected: NamedContext | None) -> None:
    assert named_context(text) == expected


def test_the_builds_own_context_may_be_written_without_a_scheme() -> None:
    assert remote_context("github.com/a/b") == GitSource("https://github.com/a/b")


@pytest.mark.parametrize(
    ("name", "spelling"),
    [("alpine", "alpine"), ("alpine:latest", "alpine"), ("docker.io/library/alpine", "alpine"), ("a/b:1", "a/b:1"),
     ("localhost:5000/x", "localhost:5000/x")],
)  # fmt: skip
def test_names_of_contexts_are_those_of_images(name: str, spelling: str) -> None:
    assert context_name(name) == spelling


def test_a_tar_is_told_from_a_dockerfile() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("x"))
    plain = out.getvalue()
    old = bytearray(plain)
    old[257:265] = bytes(8)  # a header without magic
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + sum(old[156:512]) + 8 * 32)
    assert is_archive(plain[:512])
    assert is_archive(bytes(old[:512]))
    assert is_archive(gzip.compress(plain)[:512])
    assert not is_archive(b"FROM scratch\n")
    assert not is_archive(b"# ustar\nFROM x\n".ljust(600, b"#"))
    assert not is_archive(b"")


# ---------------------------------------------------------------- in the graph


def test_a_context_goes_before_the_image_of_that_name() -> None:
    images = Images()
    named = {"alpine": ImageContext("reg.example/mine:1")}
    graph = compile_text("FROM alpine:latest\nCOPY --from=docker.io/library/alpine /a /b\n", images, named=named)
    assert [op.reference for v in graph.vertices if isinstance(op := v.op, ImageSource)] == ["reg.example/mine:1"]
    assert images.asked == [[("reg.example/mine:1", "linux/amd64")]]


def test_a_context_replaces_the_stage_of_that_name_with_all_it_does() -> None:
    text = "FROM x AS deps\nRUN never\nFROM deps\nLABEL a=b\n"
    graph = compile_text(text, named={"deps": ImageContext("y")})
    assert [type(v.op) for v in graph.vertices] == [ImageSource]


def test_a_directory_under_from_is_the_first_layer() -> None:
    graph = compile_text("FROM base\nLABEL a=b\n", named={"base": ContextSource("base", ("ignored",))})
    copy = graph.by_digest[graph.results[0].vertex]
    assert isinstance(copy.op, Copy)
    assert copy.op.from_context
    assert graph.by_digest[copy.inputs[1]].op == ContextSource("base", ("ignored",))
    assert "[context base] load" in names(graph)
    assert graph.results[0].history[0].vertex == copy.digest


def test_files_of_a_repository_or_an_archive_keep_their_owners() -> None:
    for tree in (GitSource("git://h/x"), ArchiveSource("https://h/x.tar")):
        own = compile_text("FROM scratch\nCOPY a /\n", context=tree)
        other = compile_text("FROM scratch\nCOPY --from=lib a /\n", named={"lib": tree})
        for graph in (own, other):
            copy = graph.by_digest[graph.results[0].vertex]
            assert isinstance(copy.op, Copy)
            assert not copy.op.from_context
            assert graph.by_digest[copy.inputs[1]].op == tree


def test_a_context_that_is_a_stage() -> None:
    text = "FROM x AS one\nRUN a\nFROM y\nCOPY --from=z /a /b\n"
    graph = compile_text(text, named={"y": StageContext("one"), "z": StageContext("one")})
    assert [type(v.op).__name__ for v in graph.vertices] == ["ImageSource", "Run", "Copy"]
    with pytest.raises((InputError, DockerfileError), match="no stage of that name"):
        compile_text("FROM y\nFROM x AS one\n", named={"y": StageContext("one")}, target="0")


def test_the_stored_graph_has_all_that_is_needed_to_do_it_again() -> None:
    text = "FROM scratch\nCOPY a /\nADD git@h:b?subdir=d&submodules=false https://h/c /d/\n"
    graph = compile_text(text, context=ArchiveSource("https://h/x.tar"))
    assert graph_from_json(graph.to_json()).vertices == graph.vertices


# ---------------------------------------------------------------- ADD


def test_add_of_urls_is_a_vertex_of_its_own_below_the_copy() -> None:
    graph = compile_text("FROM scratch\nADD --chmod=755 https://h/a/tool?x=1 /bin/\n")
    copy = graph.by_digest[graph.results[0].vertex]
    assert copy.op == Copy(sources=("tool",), dest="/bin/", chmod="755", from_context=False)
    assert graph.by_digest[copy.inputs[1]].op == HttpSource("https://h/a/tool?x=1", "tool")
    assert history_of("FROM scratch\nADD --chmod=755 https://h/a /b\n") == ["ADD --chmod=755 https://h/a /b"]


def test_add_of_several_lays_them_over_one_another() -> None:
    graph = compile_text("FROM scratch\nADD https://h/a git@h:b https://h/c /d/\n")
    copy = graph.by_digest[graph.results[0].vertex]
    assert isinstance(copy.op, Copy)
    assert copy.op.sources == (".",)
    assert isinstance(graph.by_digest[copy.inputs[1]].op, Merge)


def test_a_file_whose_name_looks_like_a_pattern_is_taken_literally() -> None:
    graph = compile_text("FROM scratch\nADD https://h/a%5B1%5D%2A /d/\n")
    op = graph.by_digest[graph.results[0].vertex].op
    assert isinstance(op, Copy)
    assert op.sources == ("a[[]1][*]",)


def test_I9_credentials_are_in_no_name_and_no_history() -> None:
    text = "FROM scratch\nADD https://u:hunter22@h/a /b\n"
    graph = compile_text(text)
    assert not any("hunter22" in name for name in names(graph))
    assert history_of(text) == ["ADD https://h/a /b"]


# ---------------------------------------------------------------- several platforms


def test_steps_say_their_platform_when_there_are_several() -> None:
    text = "FROM --platform=$BUILDPLATFORM x AS build\nRUN a\nFROM y\nCOPY --from=build /a /b\n"
    graph = compile_text(text, platform="linux/arm64", several=True)
    assert names(graph) == [
        "[linux/amd64->arm64 build 1/2] FROM docker.io/library/x:latest", "[linux/amd64->arm64 build 2/2] RUN a",
        "[linux/arm64 stage-1 1/2] FROM docker.io/library/y:latest",
        "[linux/arm64 stage-1 2/2] COPY --from=build /a /b",
    ]  # fmt: skip
    alone = compile_text("FROM x\nRUN a\n", platform="linux/arm/v7", several=True)
    assert names(alone)[-1] == "[linux/arm/v7 2/2] RUN a"


@pytest.mark.parametrize(
    "mount", ["type=bind,from=tools,target=/t", r'\"from=tools\",\"target=/t,1\"', "FROM=tools,target=/t,ro"]
)
def test_a_context_stands_behind_the_from_of_a_mount_however_it_is_quoted(mount: str) -> None:
    tools = ContextSource(name="tools")
    graph = compile_text(f"FROM a\nRUN --mount={mount} b\n", named={"tools": tools})
    assert any(vertex.op == tools for vertex in graph.vertices)


def test_a_mount_that_cannot_be_read_is_told_as_it_is_written() -> None:
    text = 'FROM a\nRUN --mount=\\"from=tools\\"x,target=/t b\n'
    with pytest.raises(DockerfileError, match=r'--mount="from=tools"x,target=/t: '):
        compile_text(text, named={"tools": ContextSource(name="tools")})


def test_a_name_that_is_no_images_is_no_contexts() -> None:
    with pytest.raises(DockerfileError, match="Bad:Tag:x"):
        compile_text("FROM x\nCOPY --from=Bad:Tag:x a b\n", named={"tools": ContextSource(name="tools")})


def test_other_flags_of_a_step_that_takes_from_a_context_stay_as_they_are() -> None:
    text = "FROM scratch\nCOPY --chmod=600 --from=lib a /\n"
    graph = compile_text(text, named={"lib": GitSource("git://h/x")})
    copy = graph.by_digest[graph.results[0].vertex].op
    assert isinstance(copy, Copy)
    assert copy.chmod == "600"
