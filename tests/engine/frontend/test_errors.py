"""Every mistake is one error that says what, in which line, and what to do."""

from __future__ import annotations

import pytest

from engine.errors import DockerfileError, InputError
from engine.frontend.source import Source, locate
from tests.engine.frontend.support import Images, compile_text


def _error(text: str, **options: object) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        compile_text(text, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        # the file as a whole
        ("", 1, "no instructions"),
        ("# only a comment\n", 1, "no instructions"),
        ("ARG A\n", 1, "no FROM"),
        ("\nRUN x\nFROM y\n", 2, "RUN comes before the first FROM"),
        ("FROM x\nRUN a\0b\n", 2, "NUL byte"),
        ("FROM x\n\nRUN \udcff\n", 3, "not UTF-8"),
        ("# escape=x\nFROM a\n", 1, "invalid escape character 'x'"),
        ("# syntax=me/mine:1\nFROM a\n", 1, "'me/mine:1' (syntax directive) is not supported yet"),
        # the parser's own errors, which name no line
        ("FROM a\nRUN ok\nENV a\n", 3, "ENV must have two arguments"),
        ("FROM a\nENV x=y \\\n# c\n z\nRUN b\n", 2, "can't find = in"),
        ("FROM a\nRUN <<EOF\nENV\nEOF\nRUN b\nRUN <<E2\nEOF\n", 6, "unterminated heredoc"),
        ("# escape=`\nFROM a\nRUN x `\n y\nLABEL `\n  a\n", 5, "LABEL must have two arguments"),
        # instructions and flags
        ("FROM x\nRUNN y\n", 2, "unknown instruction: RUNN"),
        ("FROM x\nUSER a\n  \\\n", 3, "no instruction is in it"),
        ("FROM x\nCOPY --form=a b c\n", 2, "unknown flag --form for COPY"),
        ("FROM x\nENV --a=b c=d\n", 2, "unknown flag"),
        ("FROM x\nCOPY --chown a b\n", 2, "flag --chown needs a value"),
        ("FROM x\nCOPY --from= a b\n", 2, "flag --from needs a value"),
        ("FROM x\nCOPY --chown=1 --chown=2 a b\n", 2, "given twice"),
        # FROM
        ("FROM\n", 1, "FROM requires either one or three arguments"),
        ("FROM a b\n", 1, "FROM requires either one or three arguments"),
        ("FROM a as 1x\n", 1, "invalid name for build stage: '1x'"),
        ("FROM $UNSET\n", 1, "base name ($UNSET) should not be blank"),
        ("ARG T\nFROM debian:$T\n", 2, "debian:"),
        ("FROM UPPER\n", 1, "UPPER"),
        ("FROM ${x:?needed}\n", 1, "x: needed"),
        ("FROM --platform=nonsense a\n", 1, "--platform=nonsense"),
        ("FROM --platform=$P a\n", 1, "--platform=$P"),
        # ADD of what is elsewhere
        ("FROM x\nADD https:///file /\n", 2, "it names no host"),
        ("FROM x\nADD https://[::1/file /\n", 2, "not a URL"),
        (f"FROM x\nADD --checksum=sha512:{'a' * 128} https://h/file /\n", 2, "only sha256 is supported for files"),
        ("FROM x\nADD --checksum=abcdef0 https://h/r.git?checksum=1234567 /\n", 2, "conflicts with '1234567'"),
        # RUN
        ("FROM x\nRUN --mount=type=secret,target=/ true\n", 2, "has no name"),
        ("FROM x\nRUN <<.\n#!/bin/sh\n.\n", 2, "cannot be the name of a script"),
        # ARG, ENV, LABEL
        ("FROM x\nARG e='='\nENV a${e}b=c\n", 3, "a character that cannot be in one"),
        ("FROM x\nARG\n", 2, "ARG requires at least one argument"),
        ("FROM x\nARG =a\n", 2, "ARG names can not be blank"),
        ("ARG A=${B:?no}\nFROM x\n", 1, "B: no"),
        ("FROM x\nENV\n", 2, "ENV requires at least one argument"),
        ("FROM x\nENV $A=b\n", 2, "ENV names can not be blank"),
        ("FROM x\nENV a='b\n", 2, "matching single-quote"),
        ("FROM x\nLABEL\n", 2, "LABEL requires at least one argument"),
        # the other metadata
        ("FROM x\nEXPOSE\n", 2, "EXPOSE requires"),
        ("FROM x\nEXPOSE http\n", 2, "invalid port"),
        ("FROM x\nVOLUME []\n", 2, "VOLUME requires"),
        ("FROM x\nVOLUME $A\n", 2, "empty string"),
        ("FROM x\nUSER\n", 2, "USER requires exactly one argument"),
        ("FROM x\nSTOPSIGNAL SIGNOPE\n", 2, "invalid signal 'SIGNOPE'"),
        ("FROM x\nSTOPSIGNAL 0\n", 2, "invalid signal"),
        ("FROM x\nSHELL bash\n", 2, "JSON form"),
        ("FROM x\nSHELL []\n", 2, "SHELL requires"),
        ("FROM x\nCMD\n", 2, "CMD requires"),
        ("FROM x\nHEALTHCHECK\n", 2, "unknown type '' in HEALTHCHECK"),
        ("FROM x\nHEALTHCHECK curl\n", 2, "unknown type 'curl'"),
        ("FROM x\nHEALTHCHECK х y\n", 2, "must be plain ASCII"),
        ("FROM x\nHEALTHCHECK CMD\n", 2, "missing command"),
        ("FROM x\nHEALTHCHECK NONE a\n", 2, "takes no arguments"),
        ("FROM x\nHEALTHCHECK --interval=5s NONE\n", 2, "no flags"),
        ("FROM x\nHEALTHCHECK --interval=5 CMD a\n", 2, "not a duration"),
        ("FROM x\nHEALTHCHECK --interval=5us CMD a\n", 2, "less than 1ms"),
        ("FROM x\nHEALTHCHECK --retries=-1 CMD a\n", 2, "--retries=-1"),
        # RUN, WORKDIR
        ("FROM x\nRUN\n", 2, "RUN requires"),
        ("FROM x\nRUN []\n", 2, "RUN requires"),
        ('FROM x\nRUN ["a", "b\\u0000c"]\n', 2, "an argument of RUN has a NUL byte"),
        ("FROM x\nRUN --network=slow a\n", 2, "unknown network"),
        ("FROM x\nWORKDIR\n", 2, "WORKDIR requires"),
        ("FROM x\nWORKDIR $A\n", 2, "empty once its variables"),
        # COPY
        ("FROM x\nCOPY a\n", 2, "at least two arguments"),
        ("FROM x\nCOPY a b c\n", 2, "must be a directory and end with a /"),
        ("FROM x\nCOPY --chmod=u+y a b\n", 2, "not an octal mode"),
        ("FROM x\nCOPY --chmod=u+x, a b\n", 2, "not an octal mode"),
        ("FROM x\nCOPY --link=maybe a b\n", 2, "neither true nor false"),
        ("FROM x\nCOPY --exclude=a[ a b\n", 2, "malformed pattern"),
        ("FROM x\nCOPY --chmod=10000 a b\n", 2, "not an octal mode"),
        ("FROM x\nCOPY http://a/b /c\n", 2, "can't be a URL for COPY"),
        ("FROM x\nCOPY a <<EOF\nx\nEOF\n", 2, "heredoc as a destination"),
        ("FROM x\nCOPY $A /b\n", 2, "empty once its variables"),
        ("FROM x\nCOPY --from=1 a b\n", 2, "there is no stage 1"),
        ("FROM x\nCOPY --from=$S a b\n", 2, "variables are not expanded here"),
        ("FROM x AS me\nCOPY --from=me a b\n", 2, "cannot copy from itself"),
        ("FROM x\nCOPY --from=0 a b\n", 2, "cannot copy from itself"),
        ("FROM x\nCOPY --from=Bad:Tag:x a b\n", 2, "Bad:Tag:x"),
        # RUN flags
        ("FROM x\nRUN --security=insecure b\n", 2, "--security=insecure is not allowed in this build"),
        ("FROM x\nRUN --security=much b\n", 2, "unknown security mode"),
        ("FROM x\nRUN --device=vendor.com/gpu b\n", 2, "RUN --device is not supported yet"),
        ("FROM x\nRUN --mount=from=b,target=/a c\nFROM x AS b\nCOPY --from=0 / /\n", 2, "cannot mount from stage 'b'"),
        ("FROM x AS me\nRUN --mount=from=me,target=/a b\n", 2, "a stage cannot mount from itself"),
        ("FROM x\nRUN --mount=from=7,target=/a b\n", 2, "there is no stage 7"),
        ("FROM x\nRUN --mount=from=BAD:x:y,target=/a b\n", 2, "BAD:x:y"),
        ("FROM x\nRUN --mount=from=$S,target=/a b\n", 2, "variables are not expanded here"),
        # ADD flags
        ("FROM x\nADD --keep-git-dir=1 a b\n", 2, "neither true nor false"),
        ("FROM x\nADD --from=a b c\n", 2, "unknown flag --from for ADD"),
        # ONBUILD
        ("FROM x\nONBUILD\n", 2, "ONBUILD requires at least one argument"),
        ("FROM x\nONBUILD ONBUILD RUN a\n", 2, "ONBUILD is not allowed as an ONBUILD trigger"),
        ("FROM x\nONBUILD FROM a\n", 2, "FROM is not allowed as an ONBUILD trigger"),
        ("FROM x\nonbuild maintainer a\n", 2, "MAINTAINER is not allowed as an ONBUILD trigger"),
        ("FROM x\nONBUILD RUNN a\n", 2, "unknown instruction: RUNN"),
        ("FROM x\nONBUILD COPY --form=a b c\n", 2, "unknown flag --form for COPY"),
        ("FROM x\nONBUILD ENV a\n", 2, "ENV must have two arguments"),
        # directives
        ("# check=sloppy\nFROM x\n", 1, "invalid check option 'sloppy'"),
        ("# syntax=docker/dockerfile:1\n# check=error=perhaps\nFROM x\n", 2, "invalid value 'perhaps'"),
        ("# escape=\\\n# escape=`\nFROM x\n", 2, "only one escape parser directive can be used"),
        ("# syntax=docker/dockerfile:2\nFROM x\n", 1, "the language 'docker/dockerfile:2'"),
        # what lies elsewhere
        ("FROM x\nADD --checksum=sha256:1 a b\n", 2, "requires an HTTP(S) or git source"),
        ("FROM x\nADD --checksum=sha256:1 https://a/b c\n", 2, "not a digest"),
        ("FROM x\nADD --checksum=sha256:1 https://a/b https://a/c d/\n", 2, "several sources"),
        ("FROM x\nADD --checksum=xyz https://a/b.git c\n", 2, "not the beginning of a commit"),
        ("FROM x\nADD --unpack=perhaps a b\n", 2, "neither true nor false"),
        ("FROM x\nADD file:///etc/passwd /c\n", 2, "file: URLs are not fetched"),
        ("FROM x\nADD https://a/b.git?branch=x&tag=y /c\n", 2, "branch conflicts with tag"),
        ("FROM x\nADD https://a/b.git?color=x /c\n", 2, "unexpected query 'color'"),
        ("FROM x\nCOPY git@github.com:a/b.git /c\n", 2, "can't be a URL for COPY"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, line: int, what: str) -> None:
    error = _error(text)
    assert what in error.what
    assert (error.line, error.filename, error.exit_code) == (line, "Dockerfile", 2)
    assert "\n" not in str(error)


def test_the_excerpt_is_the_instruction_as_written() -> None:
    error = _error("FROM x\r\nRUN --device=a \\\r\n  b\r\nRUN c\r\n", filename="sub/my.Dockerfile")
    assert (error.line, error.end, error.excerpt) == (2, 3, "RUN --device=a \\\n  b")
    assert str(error) == "sub/my.Dockerfile:2: RUN --device is not supported yet"


@pytest.mark.parametrize(
    ("text", "line", "marked"),
    [
        ("FROM x\nRUNN y\n", 2, "RUNN"),
        ("FROM x\nCOPY a \\\n  --form=a b c\nCOPY --form=z a b\n", 4, "--form"),
        ("FROM x\nRUN --mount=type=bind,targt=/a b\n", 2, "targt"),
        ("FROM x\nRUN \\\n  --mount=type=bnd,target=/a b\n", 3, "bnd"),
        ("FROM x\nCOPY --chmod=999 a b\n", 2, "--chmod=999"),
        ("FROM x\nCOPY --from=9 a b\n", 2, "from=9"),
        ("FROM x AS a\nCOPY --from=a a b\n", 2, "from=a"),
        ("FROM x\nSTOPSIGNAL SIGNOPE\n", 2, "SIGNOPE"),
        ("FROM UPPER\n", 1, "UPPER"),
        ("FROM a as 1x\n", 1, "1x"),
    ],
)
def test_the_part_at_fault_is_marked_where_it_is_known(text: str, line: int, marked: str) -> None:
    mark = _error(text).mark
    assert mark is not None
    assert mark[0] == line
    assert text.split("\n")[line - 1][mark[1] : mark[1] + mark[2]] == marked


def test_no_mark_is_made_up_where_the_part_is_not_known() -> None:
    assert _error("FROM x\nENV a\n").mark is None
    assert _error("FROM x\nCMD\n").mark is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("FROM x\nRUNN y\n", "did you mean RUN?"),
        ("FROM x\nentrypiont y\n", "did you mean ENTRYPOINT?"),
        ("FROM x\nCOPY --form=a b c\n", "did you mean --from?"),
        ("FROM x\nCOPY --zzzz=a b c\n", "known: --from, --chown, --chmod, --link, --parents, --exclude"),
        ("FROM x\nUSER --a b\n", "USER has no flags"),
        ("ARG T\nFROM debian:$T\n", "--build-arg T="),
        ("FROM x\nCOPY a b c\n", "write c/"),
        ("FROM x\nCOPY --from=7 a b\n", "stages are numbered 0 to 0"),
    ],
)
def test_hints_say_what_to_do(text: str, hint: str) -> None:
    assert hint in _error(text).hint


def test_an_unknown_target_lists_the_stages() -> None:
    error = _error("FROM x AS build\nFROM x AS web\n", target="biuld")
    assert error.what == "target stage 'biuld' could not be found"
    assert error.hint == "did you mean build? stages: build, web"
    assert _error("FROM x\nFROM y\n", target="2").hint == "stages have no names: use 0 to 1"


def test_a_later_stage_cannot_be_copied_from() -> None:
    error = _error("FROM x AS a\nCOPY --from=b / /\nFROM x AS b\nCOPY --from=a / /\n")
    assert (error.line, error.what) == (
        2, "cannot copy from stage 'b': it must come before the stage that copies",
    )  # fmt: skip


def test_a_run_cannot_have_more_network_than_the_build() -> None:
    assert "not allowed" in _error("FROM x\nRUN --network=host y\n", network="none").what


def test_nothing_is_resolved_for_a_dockerfile_with_a_bad_name() -> None:
    images = Images()
    with pytest.raises(DockerfileError):
        compile_text("FROM good\nCOPY --from=BAD a b\n", images)
    assert images.asked == []


@pytest.mark.parametrize("options", [{"platform": "x"}, {"build_platform": ""}, {"ignore": ("a[",)}])
def test_bad_options_are_input_errors(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        compile_text("FROM x\n", **options)  # type: ignore[arg-type]


def test_what_resolving_raises_passes_through() -> None:
    class Refusing(Images):
        async def resolve(self, wanted: object) -> dict[object, object]:  # type: ignore[override]
            raise InputError("no such image", where=str(wanted))

    with pytest.raises(InputError, match="no such image"):
        compile_text("FROM x\n", Refusing())


def test_known_syntax_directives_are_fine() -> None:
    for name in (
        "docker/dockerfile:1", "docker.io/docker/dockerfile:1.7-labs", "docker/dockerfile-upstream:master",
        "docker/dockerfile:labs", "mirror.example:5000/docker/dockerfile:1.2.3", "dockerfile.v0",
        "docker/dockerfile:1@sha256:" + "a" * 64,
    ):  # fmt: skip
        graph = compile_text(f"# syntax={name}\n# check=skip=all\n# escape=`\nFROM x\nRUN a `\n b\n")
        assert [vertex.lines for vertex in graph.vertices] == [(4, 4), (5, 6)]


def test_an_escape_behind_an_ordinary_comment_is_a_comment() -> None:
    assert _error("# hello\n# escape=`\nFROM x\nRUN a `\n b\n").what == "unknown instruction: b"


@pytest.mark.parametrize("line", ["", "R", "EO"])
def test_the_line_of_a_heredoc_that_nobody_ends_is_found_without_trying_every_line(line: str) -> None:
    text = "FROM a\nRUN <<A <<EOF\nx\nA\n" + f"{line}\n" * 3000
    parsed: list[str] = []

    def failure(chunk: str) -> str:
        parsed.append(chunk)
        return "unterminated heredoc" if "EOF" in chunk else ""

    assert locate(text, "\\", failure)[0] == 2
    assert len(parsed) == 3


def test_an_excerpt_shows_the_beginnings_of_long_lines() -> None:
    error = Source("Dockerfile", "FROM a\nRUN " + "x" * 100_000).error("wrong", (1, 2))
    assert len(error.excerpt) < 400
    assert error.excerpt.startswith("FROM a\nRUN xxx")


@pytest.mark.parametrize("between", ["", "\\\n", "\\ \t\r\n"])
def test_substitutions_are_not_nested_without_end(between: str) -> None:
    deep = f"${{A:-{between}" * 3000 + "}" * 3000
    assert _error(f"FROM a\nRUN {deep}\n").what == "more than 200 substitutions in one another"
    images = Images({"base": {"architecture": "amd64", "os": "linux", "config": {"OnBuild": [f"RUN {deep}"]}}})
    with pytest.raises(DockerfileError, match=r"ONBUILD trigger .*: more than 200 substitutions"):
        compile_text("FROM base\n", images)
    assert compile_text("FROM a\nRUN <<E\n" + "${x\n" * 1000 + "E\nRUN " + "${x}" * 1000)  # one after the other
