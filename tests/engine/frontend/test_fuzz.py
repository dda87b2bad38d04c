"""Whatever text comes in, either a graph or an error of ours goes out, and that names a line.

REFLEDGER_FUZZ=20000 runs that many Dockerfiles; a plain run a few hundred. Each text is compiled and checked.
"""

from __future__ import annotations

import asyncio
import os

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import ChecksFailed, DockerfileError, RefledgerError
from engine.frontend.check import check_dockerfile
from engine.frontend.compile import FrontendOptions
from engine.frontend.dockerignore import IgnoreMatcher, parse_dockerignore
from engine.stored import graph_from_json
from tests.engine.frontend.support import Images, compile_text

RUNS = int(os.environ.get("REFLEDGER_FUZZ", "700"))
"""Dockerfiles made in all."""

SEED = """\
# syntax=docker/dockerfile:1
# escape=\\
# check=skip=StageNameCasing;experimental=all
ARG V=12 W="a b"
FROM scratch AS build0
FROM --platform=$BUILDPLATFORM debian:${V:-11} AS build
ARG TARGETARCH A='x'
ENV X=a$A Y="b ${W##*x}" Z=${X/a/b}
LABEL a.b="c \\
  d" e='f'
WORKDIR src
RUN --network=none make -j$A \\
  # comment
  all
RUN <<EOF
apt-get update
EOF
RUN ["a", "b"]
COPY --chown=1:2 --chmod=0644 a* b /y/
COPY <<-"F" <<G rel/
\tone
F
$X
G
COPY --link --parents --exclude=*.md --exclude=$V/** x/./y z w/
ADD ["a b", "c/"]
ADD --unpack=false --chmod=u=rwX,go+x a.tar /d
RUN --mount=type=cache,target=/c/$A,id=k,sharing=locked,mode=0700,uid=1,gid=2 \\
  --mount=type=secret,id=s,env=S,required --mount=type=ssh --mount=type=tmpfs,dst=/t,size=1.5m \\
  --mount=from=build0,source=x,target=rel,rw --mount='type=bind,"target=/a,b"' x
ONBUILD COPY --from=build0 <<EOF $X /y/
$Z
EOF
ONBUILD RUN --mount=target=/src make
FROM build AS Web
EXPOSE 80 53/udp 8000-8002
VOLUME ["/a"]
USER $X:0
STOPSIGNAL SIGTERM
SHELL ["/bin/bash", "-c"]
HEALTHCHECK --interval=1m30s --retries=3 CMD curl x
ENTRYPOINT e
CMD ["c"]
MAINTAINER me
FROM scratch
COPY --from=build /a /b
COPY --from=0 /a /b
COPY --from=busybox:1 /a /b
FROM triggered
"""

_TOKENS = [
    "", " ", "\n", "\\", "\\\n", "`", "$", "${", "}", "'", '"', "#", "<<EOF", "<<-'E'", "EOF\n", "[", "]", '["', '"]',
    ",", "=", "--", "--from=", "--platform=", "\0", "\ufeff", "\u2028", "\udc80", "é", "\t", "\r", "\x1b", "FROM ",
    "RUN ", "COPY ", "ENV ", "ARG ", "ONBUILD ", "HEALTHCHECK ", "AS ", "/", "..", "*", "?", ":-", "9" * 30, "9" * 5000,
    "%%*", "//",
]  # fmt: skip

_EDITS = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 40), st.one_of(st.sampled_from(_TOKENS), st.text(max_size=5))),
    min_size=1,
    max_size=6,
)


def _mutated(edits: list[tuple[int, int, str]]) -> str:
    text = SEED
    for position, length, token in edits:
        at = position % (len(text) + 1)
        text = text[:at] + token + text[at + length :]
    return text


def _survives(text: str, trigger: str = "RUN x", **options: object) -> None:
    config = {"config": {"OnBuild": [trigger], "Env": ["A=1"]}, "architecture": "amd64", "os": "linux"}
    images = Images({"triggered": config})
    try:
        graph = compile_text(text, images, **options)
    except DockerfileError as error:
        assert 1 <= error.line <= error.end
        assert error.what
        assert f":{error.line}: " in str(error)
        assert "\n" not in str(error)
        if error.mark is not None:
            line = text.removeprefix("\ufeff").split("\n")[error.mark[0] - 1]
            assert 0 <= error.mark[1] < error.mark[1] + error.mark[2] <= len(line)
    except ChecksFailed as error:
        assert ":" in error.where
    else:
        assert graph_from_json(graph.to_json()).vertices == graph.vertices
        assert all("\n" not in vertex.name for vertex in graph.vertices)
    report = asyncio.run(check_dockerfile(text, FrontendOptions(**options), images.resolve))  # type: ignore[arg-type]
    last = text.count("\n") + 1
    assert all(1 <= found.lines[0] <= last and "\n" not in str(found) for found in report.findings)


def test_the_seed_itself_compiles() -> None:
    for target in ("", "build", "web", "3"):
        assert compile_text(SEED, target=target).vertices


@settings(max_examples=RUNS * 4 // 7)
@given(_EDITS)
@example([(0, 10_000, "")])
@example([(SEED.index("skip="), 0, "error=true;")])  # what a build check finds ends it
def test_mutated_dockerfiles_give_a_graph_or_an_error_with_a_line(edits: list[tuple[int, int, str]]) -> None:
    _survives(_mutated(edits))


@settings(max_examples=RUNS * 2 // 7)
@given(st.lists(st.sampled_from(SEED.splitlines(keepends=True)), max_size=12).map("".join), st.text(max_size=4))
def test_shuffled_lines_and_targets_do_too(text: str, target: str) -> None:
    _survives(text, target=target)


_WORDS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "--mount=type=", "--mount=", "--from=", "--exclude=", "--chmod=", "--link", "--parents", "--platform=",
                "--security=", "--network=", "cache", "secret", "bind", ",target=", ",id=", ",from=", ",mode=", ",uid=",
                ",size=", ",sharing=", ",required", ",env=", ",rw", "0", "00", "-1", "1g", "x", "/", "./", "/./", "..",
                "**", "*", "[a]", "$X", "${X", "${X:-", "}", "${X//a/b}", "${X##*", " ", " ", " ", "=", '"', "'", "\\",
                "\\\n", "#", "<<A", "\nA\n", "sha256:", "https://x/y", "git@x:y", "AS", "as", "a", "scratch", "NONE",
                "CMD", "80/udp", "é", "\t",
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=8,
).map("".join)
_INSTRUCTIONS = st.sampled_from(
    [
        "FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "LABEL", "WORKDIR", "USER", "EXPOSE", "VOLUME", "CMD", "ENTRYPOINT",
        "HEALTHCHECK", "SHELL", "STOPSIGNAL", "ONBUILD", "MAINTAINER", "from", "copy",
    ]
)  # fmt: skip


@settings(max_examples=RUNS // 7 + 1)
@given(st.lists(st.tuples(_INSTRUCTIONS, _WORDS), max_size=8), _INSTRUCTIONS, _WORDS)
def test_made_up_instructions_and_triggers_do_too(
    lines: list[tuple[str, str]], instruction: str, words: str
) -> None:
    made = "".join(f"{name} {rest}\n" for name, rest in lines)
    _survives(f"FROM triggered AS a\n{made}", trigger=f"{instruction} {words}")


def test_every_prefix_of_a_dockerfile_is_survived() -> None:
    for end in range(0, len(SEED), 7):
        _survives(SEED[:end])


@settings(max_examples=200)
@given(st.text("ab*?[]^-\\!/.#\n ", max_size=30), st.text("ab/.", min_size=1, max_size=8))
def test_any_dockerignore_decides_or_is_an_input_error(text: str, path: str) -> None:
    try:
        matcher = IgnoreMatcher(parse_dockerignore(text))
    except RefledgerError:
        return
    assert matcher.excluded(path) in (True, False)
    assert matcher.may_contain_included(path) in (True, False)
