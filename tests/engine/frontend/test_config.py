"""The image config and the history a Dockerfile gives."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import DockerfileError, InputError
from engine.frontend.values import format_duration, parse_duration, parse_port
from tests.engine.frontend.support import BASE_ENV, DEFAULT_ENV, Images, compile_text, config_of, history_of, image_of


def test_scratch_begins_as_docker_begins_it() -> None:
    assert image_of("FROM scratch\n", platform="linux/arm/v7", build_platform="linux/arm/v7") == {
        "architecture": "arm", "os": "linux", "variant": "v7", "config": {"WorkingDir": "/", "Env": DEFAULT_ENV},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("instructions", "key", "value"),
    [
        ("ENV A=1 B=\"b c\" C=d\\ e", "Env", [*BASE_ENV, "A=1", "B=b c", "C=d e"]),
        ("ENV old style  value", "Env", [*BASE_ENV, "old=style  value"]),
        ("ENV LANG=C", "Env", ["PATH=/usr/bin:/bin", "LANG=C"]),
        ("ENV A=1\nENV A=2 B=$A", "Env", [*BASE_ENV, "A=2", "B=1"]),  # values see the state before the instruction
        ("ENV A=\\$LANG B='$LANG' C=\"$LANG\"", "Env", [*BASE_ENV, "A=$LANG", "B=$LANG", "C=C.UTF-8"]),
        ("LABEL a=b \"c.d\"='e f' g=$LANG", "Labels", {"a": "b", "c.d": "e f", "g": "C.UTF-8"}),
        ("LABEL multi=\"a \\\n b\"", "Labels", {"multi": "a  b"}),
        ("WORKDIR /a\nWORKDIR b", "WorkingDir", "/a/b"),
        ("USER $LANG:0", "User", "C.UTF-8:0"),
        ("EXPOSE 80 53/UDP 8000-8002", "ExposedPorts",
         {"53/udp": {}, "80/tcp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}),
        ("ENV P='1 2/sctp'\nEXPOSE $P 127.0.0.1:80:81", "ExposedPorts", {"1/tcp": {}, "2/sctp": {}, "81/tcp": {}}),
        ("EXPOSE 1.2.3.4::80 8080:81 [::1]:1:82", "ExposedPorts", {"80/tcp": {}, "81/tcp": {}, "82/tcp": {}}),
        ("VOLUME /a $LANG\nVOLUME [\"/b c\"]", "Volumes", {"/a": {}, "C.UTF-8": {}, "/b c": {}}),
        ("CMD echo $LANG", "Cmd", ["/bin/sh", "-c", "echo $LANG"]),
        ("CMD [\"a\", \"$LANG\"]", "Cmd", ["a", "$LANG"]),
        ("SHELL [\"/bin/bash\", \"-c\"]\nENTRYPOINT a", "Entrypoint", ["/bin/bash", "-c", "a"]),
        ("ENTRYPOINT [\"a\", \"b\"]", "Entrypoint", ["a", "b"]),
        ("SHELL [\"/bin/bash\", \"-c\"]", "Shell", ["/bin/bash", "-c"]),
        ("STOPSIGNAL SIGTERM", "StopSignal", "SIGTERM"),
        ("ENV S=9\nSTOPSIGNAL $S", "StopSignal", "9"),
        ("HEALTHCHECK NONE", "Healthcheck", {"Test": ["NONE"]}),
        ("HEALTHCHECK CMD curl -f $X", "Healthcheck", {"Test": ["CMD-SHELL", "curl -f $X"]}),
        ("HEALTHCHECK --interval=5m --timeout=3s --start-period=1m30s --start-interval=500ms --retries=3 CMD [\"c\"]",
         "Healthcheck", {"Test": ["CMD", "c"], "Interval": 300 * 10**9, "Timeout": 3 * 10**9,
                         "StartPeriod": 90 * 10**9, "StartInterval": 500 * 10**6, "Retries": 3}),
    ],
)  # fmt: skip
def test_instructions_set_the_config(instructions: str, key: str, value: Any) -> None:
    assert config_of(f"FROM base\n{instructions}\n")[key] == value


def test_entrypoint_drops_the_base_command_but_not_its_own() -> None:
    assert "Cmd" not in config_of('FROM base\nENTRYPOINT ["e"]\n')
    assert config_of('FROM base\nCMD ["c"]\nENTRYPOINT ["e"]\n')["Cmd"] == ["c"]
    assert "Cmd" not in config_of('FROM base AS a\nCMD ["c"]\nFROM a\nENTRYPOINT ["e"]\n')
    assert config_of("FROM base\n")["Cmd"] == ["sh"]


def test_empty_lists_reset_and_are_left_out() -> None:
    config = config_of("FROM base\nENTRYPOINT []\nCMD []\nUSER $NOBODY\n")
    assert {"Entrypoint", "Cmd", "User", "Labels"}.isdisjoint(config)


def test_labels_of_the_command_line_win() -> None:
    assert config_of("FROM base\nLABEL a=1 b=2\n", labels={"a": "x"})["Labels"] == {"a": "x", "b": "2"}


BASE = {
    "architecture": "arm64", "os": "linux", "variant": "v8", "created": "2024-01-01T00:00:00Z", "author": "them",
    "docker_version": "1", "container": "abc", "x-unknown": 1, "rootfs": {"type": "layers", "diff_ids": []},
    "history": [{"created_by": "ADD file:1 in /"}, {"created_by": "CMD sh", "empty_layer": True}],
    "config": {
        "Env": ["A=b"], "Labels": None, "ArgsEscaped": True, "OnBuild": None, "X-Unknown": [1], "Volumes": {"/v": {}},
        "WorkingDir": "", "User": "me",
    },
}  # fmt: skip


def test_a_base_config_is_inherited_with_what_is_unknown() -> None:
    graph = compile_text("FROM base\nMAINTAINER us and them\n", Images({"base": BASE}), platform="linux/arm64")
    assert graph.results[0].image == {
        "architecture": "arm64", "os": "linux", "author": "us and them", "x-unknown": 1,
        "config": {"Env": ["A=b", *DEFAULT_ENV], "X-Unknown": [1], "Volumes": {"/v": {}}, "User": "me"},
    }  # fmt: skip
    assert [entry["created_by"] for entry in graph.results[0].base_history] == ["ADD file:1 in /", "CMD sh"]
    assert "Labels" in BASE["config"]  # type: ignore[operator]  # the resolver's own copy is not touched


def test_an_image_of_another_platform_is_warned_of() -> None:
    graph = compile_text("FROM base\n", Images({"base": BASE}))
    assert graph.warnings == ("line 1: image base is for linux/arm64/v8, not for linux/amd64",)
    assert graph.results[0].platform == "linux/arm64/v8"


def test_a_platform_asked_for_is_the_results() -> None:
    result = compile_text("FROM --platform=$BUILDPLATFORM base\n", platform="linux/arm64").results[0]
    assert (result.platform, result.image["architecture"]) == ("linux/arm64", "arm64")


@pytest.mark.parametrize(
    "config",
    [{"Env": "A=b"}, {"Env": [1]}, {"Labels": []}, {"WorkingDir": 1}, {"Volumes": "x"}, {"Shell": {}}, [], "x"],
)
def test_a_base_config_that_makes_no_sense_is_an_error_at_its_from(config: Any) -> None:
    with pytest.raises(DockerfileError, match="config") as caught:
        compile_text("# c\nFROM base\n", Images({"base": {"config": config}}))
    assert caught.value.line == 2


def test_history_reads_as_buildkit_writes_it() -> None:
    text = """\
FROM base
ARG A=1 B
ENV E="x y"
LABEL l=m
WORKDIR /w
RUN make
RUN ["a", "b"]
COPY --chown=1:1 --chmod=644 $E* d/
COPY <<F /f
F
ADD a.tar /
EXPOSE 80
VOLUME /v
USER u
STOPSIGNAL 9
SHELL ["s", "-c"]
CMD run
ENTRYPOINT ["e", "f\\"g"]
HEALTHCHECK --interval=90s CMD x
MAINTAINER me
WORKDIR /
"""
    assert history_of(text) == [
        "ARG A=1 B",
        "ENV E=x y",
        "LABEL l=m",
        "WORKDIR /w",
        "RUN |2 A=1 B= /bin/sh -c make",
        "RUN |2 A=1 B= a b",
        "COPY --chown=1:1 --chmod=644 x y* d/",
        "COPY <<F /f",
        "ADD a.tar /",
        "EXPOSE [80/tcp]",
        "VOLUME [/v]",
        "USER u",
        "STOPSIGNAL 9",
        "SHELL [s -c]",
        'CMD ["s" "-c" "run"]',
        'ENTRYPOINT ["e" "f\\"g"]',
        "HEALTHCHECK {Test:[CMD-SHELL x] Interval:1m30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
        "MAINTAINER me",
        "WORKDIR /",
    ]
    steps = compile_text(text).results[0].history
    layers = [step.created_by.split()[0] for step in steps if step.vertex]
    assert layers == ["WORKDIR", "RUN", "RUN", "COPY", "COPY", "ADD"]


@pytest.mark.parametrize(
    ("text", "ns", "printed"),
    [
        ("0", 0, "0s"), ("5s", 5 * 10**9, "5s"), ("1.5ms", 1_500_000, "1.5ms"), ("90m", 5400 * 10**9, "1h30m0s"),
        ("1h2m3.5s", 3723_500_000_000, "1h2m3.5s"), (".5s", 500_000_000, "500ms"), ("3us", 3000, "3µs"),
        ("7ns", 7, "7ns"), ("+1m", 60 * 10**9, "1m0s"),
    ],
)  # fmt: skip
def test_durations_read_and_print_as_in_go(text: str, ns: int, printed: str) -> None:
    assert (parse_duration(text), format_duration(ns)) == (ns, printed)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "-1s", "1s ", "1e3s", ".s", "9" * 25 + "s", "9" * 19 + "h"])
def test_other_durations_are_errors(text: str) -> None:
    with pytest.raises(InputError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "x", "80/http", "65536", "2-1", "1-2-3", "/tcp", "-1", "a:80", "1.2.3:1:2", "٣"])
def test_other_ports_are_errors(text: str) -> None:
    with pytest.raises(InputError):
        parse_port(text)


@pytest.mark.parametrize(
    "data",
    [
        {"config": {"WorkingDir": "/a\0b"}},
        {"config": {"Env": ["A=\0"]}},
        {"config": {"Shell": ["/bin/sh\0"]}},
        {"os": ["linux"]},
        {"architecture": 64},
        {"variant": {}, "os": "linux\0"},
    ],
)
def test_a_base_whose_config_no_process_can_be_started_with_is_refused(data: dict[str, Any]) -> None:
    images = Images({"base": {"architecture": "amd64", "os": "linux", "config": {}} | data})
    with pytest.raises(DockerfileError, match=r"image base: its config .* not understood"):
        compile_text("FROM base\nRUN a\n", images)
