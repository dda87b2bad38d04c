"""Whatever text comes in, either a graph or an error of ours goes out."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.errors import DockerfileError, RefledgerError
from engine.frontend.dockerignore import IgnoreMatcher, parse_dockerignore
from engine.graph import Graph
from tests.engine.frontend.support import compile_text

SEED = """\
# syntax=docker/dockerfile:1
# escape=\\
ARG V=12 W="a b"
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
ADD ["a b", "c/"]
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


def _survives(text: str, **options: object) -> None:
    try:
        graph = compile_text(text, **options)  # type: ignore[arg-type]
    except DockerfileError as error:
        assert 1 <= error.line <= error.end
        assert error.what
    except RefledgerError:
        pass
    else:
        assert Graph.from_json(graph.to_json()).vertices == graph.vertices
        assert all("\n" not in vertex.name for vertex in graph.vertices)


def test_the_seed_itself_compiles() -> None:
    for target in ("", "build", "web"):
        assert compile_text(SEED, target=target).vertices


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_EDITS)
@example([(0, 10_000, "")])
def test_mutated_dockerfiles_give_a_graph_or_an_error_with_a_line(edits: list[tuple[int, int, str]]) -> None:
    _survives(_mutated(edits))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(SEED.splitlines(keepends=True)), max_size=12).map("".join), st.text(max_size=4))
def test_shuffled_lines_and_targets_do_too(text: str, target: str) -> None:
    _survives(text, target=target)


def test_every_prefix_of_a_dockerfile_is_survived() -> None:
    for end in range(0, len(SEED), 3):
        _survives(SEED[:end])


@settings(max_examples=200, deadline=None)
@given(st.text("ab*?[]^-\\!/.#\n ", max_size=30), st.text("ab/.", min_size=1, max_size=8))
def test_any_dockerignore_decides_or_is_an_input_error(text: str, path: str) -> None:
    try:
        matcher = IgnoreMatcher(parse_dockerignore(text))
    except RefledgerError:
        return
    assert matcher.excluded(path) in (True, False)
    assert matcher.may_contain_included(path) in (True, False)
