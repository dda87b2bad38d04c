"""Which vertices a Dockerfile makes: stages, steps, their names, and what is never made."""

from __future__ import annotations

import json

import pytest

from engine.graph import ContextSource, Copy, ImageSource, InlineFile, Mkdir, Run, Scratch
from engine.stored import graph_from_json
from tests.engine.frontend.support import (
    DEFAULT_ENV,
    Images,
    compile_text,
    history_of,
    last,
    last_copy,
    last_mkdir,
    last_run,
    names,
)

MULTI = """\
FROM golang AS build
WORKDIR /src
COPY . .
RUN make
FROM node AS web
RUN npm build
FROM debian:12
COPY --from=build /src/app /bin/
COPY --from=busybox:1 /bin/sh /bin/
"""


def test_names_read_as_docker_users_know_them() -> None:
    assert names(compile_text("FROM debian:12\nWORKDIR /w\nRUN  make \\\n  all\nCOPY a  b\n")) == [
        "[1/4] FROM docker.io/library/debian:12",
        "[2/4] WORKDIR /w",
        "[3/4] RUN make all",
        "[internal] load build context",
        "[4/4] COPY a b",
    ]


def test_names_in_several_stages_carry_the_stage() -> None:
    graph = compile_text(MULTI)
    assert names(graph) == [
        "[build 1/4] FROM docker.io/library/golang:latest",
        "[build 2/4] WORKDIR /src",
        "[internal] load build context",
        "[build 3/4] COPY . .",
        "[build 4/4] RUN make",
        "[stage-2 1/3] FROM docker.io/library/debian:12",
        "[stage-2 2/3] COPY --from=build /src/app /bin/",
        "FROM docker.io/library/busybox:1",
        "[stage-2 3/3] COPY --from=busybox:1 /bin/sh /bin/",
    ]


def test_numbers_are_aligned_when_there_are_ten() -> None:
    graph = compile_text("FROM x\n" + "".join(f"RUN echo {n}\n" for n in range(9)))
    assert names(graph)[0] == "[ 1/10] FROM docker.io/library/x:latest"
    assert names(graph)[-1] == "[10/10] RUN echo 8"


def test_run_names_show_set_variables_and_keep_the_rest() -> None:
    assert last("FROM scratch\nENV V=1\nRUN echo \"$V\" $UNSET '\\$x'\n").name == "[1/1] RUN echo \"1\" $UNSET '\\$x'"


def test_unused_stages_are_neither_resolved_nor_built() -> None:
    images = Images()
    graph = compile_text(MULTI, images)
    assert images.asked == [
        [("golang", "linux/amd64"), ("debian:12", "linux/amd64"), ("busybox:1", "linux/amd64")]
    ]  # one batch, without node
    assert not any("npm" in name for name in names(graph))


def test_an_unused_stage_may_hold_what_is_not_supported_yet() -> None:
    assert len(compile_text("FROM a AS x\nRUN --mount=type=cache,target=/c make\nFROM scratch\n").vertices) == 1


def test_a_label_only_build_has_the_image_as_its_only_vertex() -> None:
    graph = compile_text("FROM debian\nLABEL a=b\nEXPOSE 80\n")
    assert [type(vertex.op) for vertex in graph.vertices] == [ImageSource]


@pytest.mark.parametrize(
    ("target", "name"), [("build", "RUN make"), ("BUILD", "RUN make"), ("0", "RUN make"), ("web", "RUN npm build")]
)
def test_a_target_is_named_or_numbered(target: str, name: str) -> None:
    assert last(MULTI, target=target).name.endswith(name)


def test_a_stage_begins_with_what_its_base_stage_ended_with() -> None:
    text = "FROM debian AS Base\nARG A=1\nENV B=2\nWORKDIR /w\nUSER me\nCMD x\nFROM BASE\nRUN env\n"
    op = last_run(text)
    assert dict(op.env) == {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "B": "2", "A": "1"}
    assert (op.cwd, op.user) == ("/w", "me")
    assert names(compile_text(text)) == [
        "[base 1/2] FROM docker.io/library/debian:latest", "[base 2/2] WORKDIR /w", "[stage-1 1/1] RUN env",
    ]  # fmt: skip
    assert history_of(text)[:2] == ["ARG A=1", "ENV B=2"]
    assert history_of(text)[-1] == "RUN |1 A=1 /bin/sh -c env"


def test_identical_steps_of_two_stages_are_one_vertex() -> None:
    text = "FROM x AS a\nRUN one\nFROM x AS b\nRUN one\nFROM scratch\nCOPY --from=a /1 /\nCOPY --from=b /2 /\n"
    graph = compile_text(text)
    assert sum(isinstance(vertex.op, Run) for vertex in graph.vertices) == 1
    assert sum(isinstance(vertex.op, ImageSource) for vertex in graph.vertices) == 1


def test_vertices_stand_behind_their_inputs_and_all_serve_the_result() -> None:
    graph = compile_text(MULTI)
    seen: set[str] = set()
    for vertex in graph.vertices:
        assert seen.issuperset(vertex.inputs)
        seen.add(vertex.digest)
    used = {graph.results[0].vertex} | {digest for vertex in graph.vertices for digest in vertex.inputs}
    assert used == seen
    stored = graph_from_json(json.loads(json.dumps(graph.to_json())))
    assert (stored.vertices, stored.results[0].history) == (graph.vertices, graph.results[0].history)


def test_the_same_text_gives_the_same_digests_and_another_command_others() -> None:
    first, again, other = (last(f"FROM x\nRUN {command}\n").digest for command in ("a", "a", "b"))
    assert first == again != other


def test_the_context_carries_the_ignore_patterns_and_is_one_vertex() -> None:
    graph = compile_text("FROM x\nCOPY a /\nCOPY b /\n", ignore=("*.log", "!a.log"))
    contexts = [vertex.op for vertex in graph.vertices if isinstance(vertex.op, ContextSource)]
    assert contexts == [ContextSource("context", ("*.log", "!a.log"))]


def test_an_image_without_layers_is_scratch() -> None:
    graph = compile_text("FROM empty\nRUN x\n", Images(layers=0))
    assert [type(vertex.op) for vertex in graph.vertices] == [Scratch, Run]


def test_lines_cover_the_whole_instruction() -> None:
    graph = compile_text("# c\nFROM x\n\nRUN a \\\n # in between\n b\nRUN <<EOF\nx\nEOF\n")
    assert [vertex.lines for vertex in graph.vertices] == [(2, 2), (4, 6), (7, 9)]


# ---------------------------------------------------------------- platforms and arguments in FROM


def test_from_takes_global_arguments_and_platforms() -> None:
    images = Images()
    text = "ARG R=reg.example/x\nARG T=$R:1\nFROM --platform=$BUILDPLATFORM ${T} AS a\nFROM --platform=linux/arm64 b\n"
    compile_text(text + "COPY --from=a / /\n", images, platform="linux/arm/v7")
    assert images.asked == [[("reg.example/x:1", "linux/amd64"), ("b", "linux/arm64")]]


def test_a_digest_is_a_fine_base() -> None:
    reference = "debian@sha256:" + "ab" * 32
    assert names(compile_text(f"FROM {reference}\n")) == [f"[1/1] FROM docker.io/library/{reference}"]


def test_images_copied_from_are_those_of_the_target_platform() -> None:
    images = Images()
    text = "FROM --platform=linux/amd64 a\nCOPY --from=tools /t /t\n"
    compile_text(text, images, platform="linux/arm64")
    assert images.asked == [[("a", "linux/amd64"), ("tools", "linux/arm64")]]


# ---------------------------------------------------------------- RUN


def test_run_in_shell_form_keeps_the_text_as_written() -> None:
    op = last_run('FROM scratch\nENV V=1\nRUN echo   "$V" \'a b\' \\\n  && true\n')
    assert op.argv == ("/bin/sh", "-c", "echo   \"$V\" 'a b'   && true")


def test_run_in_exec_form_and_after_shell() -> None:
    assert last_run('FROM x\nRUN ["a", "$B c"]\n').argv == ("a", "$B c")
    assert last_run('FROM x\nSHELL ["/bin/bash", "-ec"]\nRUN a b\n').argv == ("/bin/bash", "-ec", "a b")


def test_run_with_a_heredoc_runs_it_in_the_shell() -> None:
    vertex = last("FROM x\nRUN <<EOF\napt-get update\napt-get install -y vim\nEOF\n")
    assert isinstance(vertex.op, Run)
    assert vertex.op.argv == ("/bin/sh", "-c", "apt-get update\napt-get install -y vim\n")
    assert vertex.name == "[2/2] RUN <<EOF (apt-get update...)"


def test_run_with_a_chomped_heredoc_loses_its_leading_tabs() -> None:
    assert last_run("FROM x\nRUN <<-EOF\n\t\ta\n\t b\n\tEOF\n").argv[-1] == "a\n b\n"


def test_run_with_a_shebang_runs_the_script_itself() -> None:
    op = last_run("FROM x\nRUN <<'PY'\n#!/usr/bin/env python3\nprint('$x')\nPY\n")
    assert op.argv == ("/dev/pipes/PY",)
    assert op.scripts == (InlineFile("PY", "#!/usr/bin/env python3\nprint('$x')\n"),)


@pytest.mark.parametrize("command", ["python3 <<EOF", "cat <<EOF > /x", "<<EOF cat", "3<<EOF cat <&3"])
def test_run_with_a_heredoc_for_a_command_leaves_it_to_the_shell(command: str) -> None:
    assert last_run(f"FROM x\nRUN {command}\nprint($x)\nEOF\n").argv[-1] == f"{command}\nprint($x)\nEOF"


def test_run_with_several_heredocs_has_them_in_order() -> None:
    text = "FROM x\nRUN cat <<A <<B\na\nA\nb\nB\n"
    assert last_run(text).argv[-1] == "cat <<A <<B\na\nA\nb\nB"


@pytest.mark.parametrize(
    ("flag", "default", "network"),
    [
        ("", "host", "host"), ("", "none", "none"), ("--network=none", "host", "none"),
        ("--network=default", "host", "host"), ("--network=default", "none", "none"),
        ("--network=host", "host", "host"),
    ],
)  # fmt: skip
def test_run_uses_the_network_it_may(flag: str, default: str, network: str) -> None:
    assert last_run(f"FROM x\nRUN {flag} y\n", network=default).network == network


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "build_args", "value"),
    [
        ("FROM x\nARG A=1\n", {}, "1"),
        ("FROM x\nARG A=1\n", {"A": "2"}, "2"),
        ("FROM x\nARG A\n", {"A": "2"}, "2"),
        ("FROM x\nARG A\n", {}, None),
        ("FROM x\n", {"A": "2"}, None),
        ("ARG A=g\nFROM x\n", {}, None),
        ("ARG A=g\nFROM x\nARG A\n", {}, "g"),
        ("ARG A=g\nFROM x\nARG A=s\n", {}, "s"),
        ("ARG A=g\nFROM x\nARG A\n", {"A": "2"}, "2"),
        ("ARG A\nFROM x\nARG A\n", {}, None),
        ("FROM x\nARG A=1\nENV A=e\n", {"A": "2"}, "e"),
        ("FROM x\nENV A=e\nARG A=1\n", {"A": "2"}, "e"),
        ("FROM x\nARG V=1\nENV A=${V:-none}\n", {"V": "9"}, "9"),
        ("FROM x\nARG B=1 A=$B$B\n", {}, "11"),
        ("FROM x\nARG A='x y'\n", {}, "x y"),
    ],
)
def test_arguments_have_the_scope_the_reference_gives_them(
    text: str, build_args: dict[str, str], value: str | None
) -> None:
    assert dict(last_run(text + "RUN y\n", build_args=build_args).env).get("A") == value


def test_an_argument_ends_with_its_stage() -> None:
    assert "A" not in dict(last_run("FROM x AS a\nARG A=1\nFROM x\nRUN y\n").env)


def test_platform_arguments_need_a_declaration() -> None:
    text = "FROM x\nARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM\nRUN y\n"
    env = dict(last_run(text, platform="linux/arm/v7").env)
    assert env["TARGETPLATFORM"] == "linux/arm/v7"
    assert (env["TARGETOS"], env["TARGETARCH"], env["TARGETVARIANT"]) == ("linux", "arm", "v7")
    assert env["BUILDPLATFORM"] == "linux/amd64"
    assert "TARGETOS" not in dict(last_run("FROM x\nRUN y\n").env)


def test_I9_proxy_arguments_stay_out_of_the_graph_and_the_history() -> None:
    text = "FROM x\nRUN y\n"
    assert last_run(text, build_args={"HTTP_PROXY": "http://p:1"}) == last_run(text)
    assert history_of(text, build_args={"HTTP_PROXY": "http://p:1"}) == ["RUN /bin/sh -c y"]


def test_unused_build_arguments_are_warned_of() -> None:
    graph = compile_text("FROM x\nARG A\n", build_args={"A": "1", "TYPO": "2", "no_proxy": "3"})
    assert graph.warnings == ("--build-arg TYPO was given, but no ARG declares it",)


def test_run_sees_image_variables_first_then_arguments() -> None:
    assert last_run("FROM base\nARG A=1\nRUN y\n").env == (
        ("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("A", "1"),
    )  # fmt: skip
    assert [f"{k}={v}" for k, v in last_run("FROM scratch\nRUN y\n").env] == DEFAULT_ENV


def test_run_sees_env_and_arguments_in_the_order_they_were_last_set() -> None:
    assert last_run("FROM base\nARG A=1\nENV B=2 C=3\nENV B=4\nRUN y\n").env == (
        ("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("A", "1"), ("C", "3"), ("B", "4"),
    )  # fmt: skip
    assert last_run("FROM base AS one\nARG A=1\nENV B=2\nFROM one\nRUN y\n").env == (
        ("A", "1"), ("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("B", "2"),
    )  # fmt: skip


# ---------------------------------------------------------------- COPY, ADD, WORKDIR


@pytest.mark.parametrize(
    ("instruction", "op"),
    [
        ("COPY a b", Copy(("a",), "/w/b")),
        ("COPY a b/", Copy(("a",), "/w/b/")),
        ("COPY a .", Copy(("a",), "/w/")),
        ("COPY a /", Copy(("a",), "/")),
        ("COPY . /x/../y/.", Copy((".",), "/y/")),
        ("COPY /a ../b ./c /d/", Copy(("a", "b", "c"), "/d/")),
        ("COPY $V* ${V}?.txt /d/", Copy(("val*", "val?.txt"), "/d/")),
        ('COPY ["a b", "c d/"]', Copy(("a b",), "/w/c d/")),
        ("COPY --chown=$V:2 --chmod=0755 a /b", Copy(("a",), "/b", chown="val:2", chmod="0755")),
        ("COPY --link=false a /b", Copy(("a",), "/b")),
        ("COPY --link a /b", Copy(("a",), "/b", link=True)),
        ("COPY --chmod=u=rwX,go=rX a /b", Copy(("a",), "/b", chmod="u=rwX,go=rX")),
        ("COPY --chmod=+x a /b", Copy(("a",), "/b", chmod="+x")),
        ("COPY --chmod=g=u,o-rwx+X a /b", Copy(("a",), "/b", chmod="g=u,o-rwx+X")),
        ("COPY --parents ./x/../a /b/./c/./d e/ /f/", Copy(("a", "b/./c/d", "e"), "/f/", parents=True)),
        ("COPY --parents=false a/./b /c", Copy(("a/b",), "/c")),
        ("COPY --exclude=*.md --exclude=$V/** a b /c/", Copy(("a", "b"), "/c/", excludes=("*.md", "val/**"))),
        ("ADD --chown=1 --chmod=600 --link a /b", Copy(("a",), "/b", chown="1", chmod="600", link=True, unpack=True)),
        ("ADD --exclude=x a /b", Copy(("a",), "/b", excludes=("x",), unpack=True)),
        ("ADD --unpack=false a.tar /b", Copy(("a.tar",), "/b")),
        ("ADD --unpack a.tar /b", Copy(("a.tar",), "/b", unpack=True)),
        ("ADD --keep-git-dir a /b", Copy(("a",), "/b", unpack=True)),
        ("ADD a.tar /b", Copy(("a.tar",), "/b", unpack=True)),
        ("COPY <<F /x\n$V \"q\" '\\$V'\nF", Copy((), "/x", files=(InlineFile("F", "val \"q\" '$V'\n"),))),
        ("COPY <<'F' /x\n$V\nF", Copy((), "/x", files=(InlineFile("F", "$V\n"),))),
        ("COPY <<-F /x\n\t$V\n\tF", Copy((), "/x", files=(InlineFile("F", "val\n"),))),
        ("COPY <<A b <<\"B\" /x/\n1\nA\n$2\nB",
         Copy(("b",), "/x/", files=(InlineFile("A", "1\n"), InlineFile("B", "$2\n")))),
        ("ADD <<F /x\n1\nF", Copy((), "/x", files=(InlineFile("F", "1\n"),), unpack=True)),
        ("ADD github.com/x /y", Copy(("github.com/x",), "/y", unpack=True)),
    ],
)  # fmt: skip
def test_copy_means_what_the_reference_says(instruction: str, op: Copy) -> None:
    vertex = last(f"FROM x\nENV V=val\nWORKDIR /w\n{instruction}\n")
    assert vertex.op == op
    assert len(vertex.inputs) == (2 if op.sources else 1)


@pytest.mark.parametrize("origin", ["a", "A", "0", "other:1", "scratch"])
def test_copy_from_a_stage_or_image_is_not_from_the_context(origin: str) -> None:
    text = f"FROM x AS a\nRUN y\nFROM z\nCOPY --from={origin} /p /q\n"
    assert last_copy(text) == Copy(("p",), "/q", from_context=False)
    graph = compile_text(text)
    source = graph.by_digest[graph.by_digest[graph.results[0].vertex].inputs[1]].op
    assert isinstance(source, {"other:1": ImageSource, "scratch": Scratch}.get(origin, Run))


def test_copy_takes_the_nearest_earlier_stage_of_that_name() -> None:
    text = "FROM x AS a\nRUN 1\nFROM x AS a\nRUN 2\nFROM x AS b\nCOPY --from=a / /\nFROM x AS a\nRUN 3\n"
    made = names(compile_text(text, target="b"))
    assert [name[-1] for name in made if "RUN" in name] == ["2"]


def test_copy_flags_are_told_in_the_history() -> None:
    text = "FROM x\nCOPY --from=a --chown=1:2 --chmod=644 --link --parents --exclude=*.md a/./b c /d/\n"
    assert history_of(text) == [
        "COPY --chown=1:2 --chmod=644 --link --parents --exclude=*.md a/./b c /d/"
    ]


def test_insecure_needs_its_entitlement() -> None:
    text = "FROM x\nRUN --security=insecure y\n"
    assert last_run(text, entitlements=frozenset({"security.insecure"})).security == "insecure"
    assert last_run("FROM x\nRUN --security=sandbox y\n").security == "sandbox"


@pytest.mark.parametrize(
    "name",
    ["BUILDKIT_INLINE_CACHE", "BUILDKIT_SYNTAX", "BUILDKIT_MULTI_PLATFORM", "SOURCE_DATE_EPOCH", "BUILDKIT_BUILD_NAME",
     "BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_GIT_ADVICE", "BUILDKIT_CONTEXT_KEEP_GIT_DIR"],
)  # fmt: skip
def test_switches_of_other_engines_do_no_harm(name: str) -> None:
    text = "FROM x\nRUN y\n"
    assert compile_text(text, build_args={name: "1"}) == compile_text(text)


def test_heredocs_alone_need_no_other_input() -> None:
    assert names(compile_text("FROM scratch\nCOPY --from=x <<F /f\nhi\nF\n"))[1:] == [
        "[stage-0 1/1] COPY --from=x <<F /f"
    ]


@pytest.mark.parametrize(
    ("paths", "result"), [("/a", "/a"), ("/a\nWORKDIR b/../c", "/a/c"), ("$P", "/p q"), ("../x", "/x"), ("a b", "/a b")]
)
def test_workdir_makes_the_directory(paths: str, result: str) -> None:
    assert last_mkdir(f'FROM scratch\nENV P="/p q"\nWORKDIR {paths}\n') == Mkdir(result)


def test_workdir_root_makes_nothing() -> None:
    assert [type(vertex.op) for vertex in compile_text("FROM x\nWORKDIR /\n").vertices] == [ImageSource]


@pytest.mark.parametrize("step", ["RUN a $A", "COPY $A /b", "WORKDIR /$A"])
def test_a_name_that_variables_made_long_is_cut_as_events_have_it(step: str) -> None:
    made = last(f"FROM x\nENV A={'y' * 50_000}\nENV A=$A$A\n{step}\n")
    assert len(made.name) < 2100
    assert made.name.endswith("…")


def test_what_looks_like_a_zero_byte_in_json_and_is_none_stays() -> None:
    assert last_run('FROM x\nRUN ["a", "b\\\\u0000c"]\n').argv == ("a", "b\\u0000c")
