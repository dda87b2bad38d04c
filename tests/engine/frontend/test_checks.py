"""The build checks: what each rule finds, what it leaves alone, and who decides whether it is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.errors import ChecksFailed, DockerfileError, InputError
from engine.frontend.check import Report, check_dockerfile
from engine.frontend.checks import RULES
from engine.frontend.compile import FrontendOptions
from tests.engine.frontend.support import Images, compile_text


def _check(text: str, images: Any = None, **options: Any) -> Report:
    return asyncio.run(check_dockerfile(text, FrontendOptions(**options), (images or _Offline()).resolve))


class _Offline:
    async def resolve(self, _wanted: object) -> Any:
        raise InputError("the network is not there")


def _found(text: str, **options: Any) -> list[tuple[str, int]]:
    report = _check(text, **options)
    assert report.error is None, report.error
    return [(found.rule, found.lines[0]) for found in report.findings]


EXAMPLES = [
    ("StageNameCasing", "FROM x AS Web\n", 1, "Stage name 'Web' should be lowercase"),
    ("FromAsCasing", "FROM x as web\n", 1, "'as' and 'FROM' keywords' casing do not match"),
    ("NoEmptyContinuation", "FROM x\nRUN a \\\n\n  b\n", 3, "Empty continuation line"),
    ("ConsistentInstructionCasing", "FROM x\nRUN a\nrun b\n", 3,
     "Command 'run' should match the case of the command majority (uppercase)"),
    ("ConsistentInstructionCasing", "from x\nrun a\nRun b\n", 3,
     "Command 'Run' should match the case of the command majority (lowercase)"),
    ("DuplicateStageName", "FROM x AS a\nFROM a AS a\n", 2, 'Duplicate stage name "a", stage names should be unique'),
    ("ReservedStageName", "FROM x AS context\n", 1,
     'Stage name should not use the same name as reserved stage "context"'),
    ("JSONArgsRecommended", "FROM x\nCMD a b\n", 2,
     "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals"),
    ("JSONArgsRecommended", "FROM x\nENTRYPOINT a b\n", 2,
     "JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals"),
    ("MaintainerDeprecated", "FROM x\nMAINTAINER me\n", 2,
     "Maintainer instruction is deprecated in favor of using label"),
    ("UndefinedArgInFrom", "FROM debian${FLAVOUR}\n", 1, "FROM argument 'FLAVOUR' is not declared"),
    ("UndefinedArgInFrom", "ARG FLAVOUR=a\nFROM debian${FLAVUOR}\n", 2,
     "FROM argument 'FLAVUOR' is not declared (did you mean FLAVOUR?)"),
    ("WorkdirRelativePath", "FROM x\nWORKDIR a\n", 2,
     'Relative workdir "a" can have unexpected results if the base image changes'),
    ("UndefinedVar", "FROM scratch\nARG FOO=1\nCOPY $FO /\n", 3,
     "Usage of undefined variable '$FO' (did you mean $FOO?)"),
    ("UndefinedVar", "FROM scratch\nENV a=$b\n", 2, "Usage of undefined variable '$b'"),
    ("UndefinedVar", "FROM scratch\nCOPY <<F /f\n$uri\nF\n", 2, "Usage of undefined variable '$uri'"),
    ("UndefinedVar", "FROM scratch\nRUN --mount=type=cache,target=$nowhere a\n", 2,
     "Usage of undefined variable '$nowhere'"),
    ("MultipleInstructionsDisallowed", 'FROM x\nCMD ["a"]\nCMD ["b"]\n', 2,
     "Multiple CMD instructions should not be used in the same stage because only the last one will be used"),
    ("MultipleInstructionsDisallowed", "FROM x\nHEALTHCHECK CMD a\nHEALTHCHECK NONE\n", 2,
     "Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one will be used"),
    ("LegacyKeyValueFormat", "FROM x\nENV a b\n", 2,
     '"ENV key=value" should be used instead of legacy "ENV key value" format'),
    ("LegacyKeyValueFormat", "FROM x\nLABEL a b=c\n", 2,
     '"LABEL key=value" should be used instead of legacy "LABEL key value" format'),
    ("RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM x\n", 1,
     "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"),
    ("SecretsUsedInArgOrEnv", "FROM x\nARG AWS_SECRET_ACCESS_KEY\n", 2,
     'Do not use ARG or ENV instructions for sensitive data (ARG "AWS_SECRET_ACCESS_KEY")'),
    ("SecretsUsedInArgOrEnv", "FROM x\nENV ok=1 db_password=x\n", 2,
     'Do not use ARG or ENV instructions for sensitive data (ENV "db_password")'),
    ("InvalidDefaultArgInFrom", "ARG TAG\nFROM x:$TAG\n", 2,
     "Default value for ARG x:$TAG results in empty or invalid base image name"),
    ("FromPlatformFlagConstDisallowed", "FROM --platform=linux/arm64 x\n", 1,
     'FROM --platform flag should not use constant value "linux/arm64"'),
    ("CopyIgnoredFile", "FROM x\nCOPY a.txt /\n", 2,
     'Attempting to COPY file "a.txt" that is excluded by .dockerignore'),
    ("CopyIgnoredFile", "FROM x\nADD ./b/a.txt /\n", 2,
     'Attempting to ADD file "./b/a.txt" that is excluded by .dockerignore'),
    ("InvalidDefinitionDescription", "# builds it\nFROM x AS web\n", 1,
     "Comment for build stage should follow the format: `# web <description>`"),
    ("InvalidDefinitionDescription", "FROM x\n# which one\nARG v=1\n", 2,
     "Comment for argument should follow the format: `# v <description>`"),
    ("ExposeProtoCasing", "FROM x\nEXPOSE 80/TCP\n", 2,
     "Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"),
    ("ExposeInvalidFormat", "FROM x\nEXPOSE 127.0.0.1:80:80\n", 2,
     "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'"),
    ("UnusedStage", "FROM x AS a\nFROM y AS b\n", 1, "Stage 'a' is not needed for 'b', which is built"),
    ("UnusedStage", "FROM x\nFROM y\n", 1, "Stage 'stage-0' is not needed for 'stage-1', which is built"),
]  # fmt: skip
_EVERYTHING = {
    "build_args": {"BUILDKIT_DOCKERFILE_CHECK_EXPERIMENTAL": "all", "TAG": "1"}, "ignore": ("**/a.txt",),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "text", "line", "message"), EXAMPLES)
def test_each_rule_finds_what_docker_says_it_does(rule: str, text: str, line: int, message: str) -> None:
    (found,) = _check(text, Images(), **_EVERYTHING).findings
    assert (found.rule, found.lines[0], found.message) == (rule, line, message)
    assert found.hint


def test_every_rule_has_an_example() -> None:
    assert {rule for rule, *_ in EXAMPLES} == set(RULES)


@pytest.mark.parametrize(
    "text",
    [
        "from x as web\nrun a\n",
        "FROM x AS web\nRUN a \\\n  # comment\n  b\nRUN <<EOF\n\nx \\\n\nEOF\n",
        'FROM x\nSHELL ["/bin/bash", "-c"]\nCMD a\nENTRYPOINT b\n',
        "FROM x\nWORKDIR /a\nWORKDIR b\n",
        "FROM x AS a\nWORKDIR /a\nFROM a\nWORKDIR b\n",
        'FROM x AS a\nCMD ["a"]\nFROM a\nCMD ["b"]\n',
        "FROM scratch\nARG a\nENV b=$a c=${d:-e} f=${g:+h} \"i i\"=j\n",
        "FROM scratch\nARG a=1 b=$a\nCOPY $PATH \\$x '$y' /z/\n",
        "FROM scratch\nRUN echo $anything\nCMD [\"$x\"]\nHEALTHCHECK CMD [\"$y\"]\n",
        "FROM scratch\nCOPY <<'F' /f\n$uri\nF\n",
        "FROM --platform=$BUILDPLATFORM x AS build\nFROM x\nCOPY --from=build /a /b\n",
        "FROM --platform=linux/arm64 x AS base_arm64\nFROM base_arm64\n",
        "ARG BASE=scratch\nFROM $BASE\n",
        "FROM x AS a\nFROM a\n",
        "FROM x AS a\nFROM y\nRUN --mount=from=a,target=/a b\n",
        "FROM x\nENV PUBLIC_KEY=1 MONKEY=2 TOKENS=3\n",
        "FROM x\nEXPOSE 80 53/udp 8000-8010\n",
        "# web serves\nFROM x AS web\n# a comment\n\nARG v=1\n# v two\nARG v=2\n",
        "# syntax=docker/dockerfile:1\nFROM x AS web\n",
        "FROM x\nCOPY --from=y a.txt /\nCOPY *.txt /\n",
    ],
)
def test_what_is_fine_is_left_alone(text: str) -> None:
    assert _check(text, Images(), **_EVERYTHING).findings == ()


def test_experimental_rules_are_off_until_asked_for() -> None:
    text = "# builds it\nFROM x AS web\nCOPY a.txt /\n"
    assert _found(text, ignore=("a.txt",)) == []
    asked = {"BUILDKIT_DOCKERFILE_CHECK": "experimental=CopyIgnoredFile"}
    assert _found(text, ignore=("a.txt",), build_args=asked) == [("CopyIgnoredFile", 3)]
    assert len(_found("# check=experimental=all\n" + text, ignore=("a.txt",))) == 2


def test_rules_can_be_skipped_by_directive_and_by_argument() -> None:
    text = "FROM x as Web\nCMD a\n"
    assert _found(text) == [("FromAsCasing", 1), ("StageNameCasing", 1), ("JSONArgsRecommended", 2)]
    assert _found(f"# check=skip=fromascasing, JSONArgsRecommended\n{text}") == [("StageNameCasing", 2)]
    assert _found(f"# check=skip=all\n{text}") == []
    skip = {"BUILDKIT_DOCKERFILE_CHECK": "skip=StageNameCasing"}
    assert _found(f"# check=skip=all\n{text}", build_args=skip) == [("FromAsCasing", 2), ("JSONArgsRecommended", 3)]


def test_findings_of_a_build_are_its_warnings() -> None:
    graph = compile_text("FROM scratch as web\nCOPY $missing /a/\n".replace("$missing", "$missing/b"))
    assert graph.warnings == (
        "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
        "UndefinedVar: Usage of undefined variable '$missing' (line 2)",
    )


def test_a_build_does_not_speak_of_stages_it_does_not_need() -> None:
    assert compile_text("FROM x AS a\nWORKDIR a\nFROM scratch\n").warnings == ()


def test_error_true_fails_the_build_and_the_check() -> None:
    text = "# check=skip=StageNameCasing;error=true\nFROM scratch AS Web\nCMD a\nMAINTAINER me\n"
    with pytest.raises(ChecksFailed) as caught:
        compile_text(text)
    assert caught.value.what == "lint violation found for rules: JSONArgsRecommended, MaintainerDeprecated"
    assert caught.value.exit_code == 1
    assert _check(text).failing == ("JSONArgsRecommended", "MaintainerDeprecated")
    assert compile_text("# check=error=true\nFROM scratch\n").warnings == ()


def test_rules_that_docker_does_not_have_fail_nothing() -> None:
    assert _check("# check=error=true\nFROM scratch AS a\nFROM scratch\n").failing == ()


def test_checking_asks_for_images_only_when_a_variable_depends_on_them() -> None:
    images = Images({"x": {"architecture": "amd64", "os": "linux", "config": {"Env": ["HOME_OF_X=/x"]}}})
    assert _check("FROM x\nRUN a\nCOPY --from=y a /b\n", images).findings == ()
    assert images.asked == []
    report = _check("FROM x\nWORKDIR $HOME_OF_X\nUSER $HOME_OF_Y\n", images)
    assert [(found.rule, found.lines) for found in report.findings] == [("UndefinedVar", (3, 3))]
    assert images.asked == [[("x", "linux/amd64")]]


def test_without_a_network_what_an_image_may_set_is_not_called_undefined() -> None:
    report = _check("FROM x\nWORKDIR $HOME_OF_X\nCMD a\n")
    assert [found.rule for found in report.findings] == ["JSONArgsRecommended"]
    assert report.unasked == ("x",)
    assert _check("FROM x\nARG A\nWORKDIR /$A\n").unasked == ()


def test_all_stages_are_checked_needed_or_not() -> None:
    text = "FROM scratch AS a\nCMD a\nFROM scratch AS b\nCMD b\n"
    assert _found(text) == [("UnusedStage", 1), ("JSONArgsRecommended", 2), ("JSONArgsRecommended", 4)]
    assert _found(text, target="a")[-2] == ("UnusedStage", 3)


@pytest.mark.parametrize(
    ("text", "line", "rules"),
    [
        ("FROM x as a\nCMD a\nEXPOSE nope\nCMD b\n", 3,
         ["FromAsCasing", "JSONArgsRecommended", "MultipleInstructionsDisallowed"]),
        ("RUNN a\n", 1, []),
        ("FROM x as a\nCOPY --from=a / /\n", 2, ["FromAsCasing"]),
    ],
)  # fmt: skip
def test_what_was_found_before_an_error_is_told_with_it(text: str, line: int, rules: list[str]) -> None:
    report = _check(text)
    assert isinstance(report.error, DockerfileError)
    assert report.error.line == line
    assert [found.rule for found in report.findings] == rules


def test_triggers_are_checked_where_they_stand() -> None:
    assert _found("FROM scratch\nONBUILD ENV SECRET=1\nONBUILD MAINTAINED\n".replace("ONBUILD MAINTAINED\n", "")) == [
        ("SecretsUsedInArgOrEnv", 2)
    ]


def test_an_error_that_the_unasked_image_may_mend_is_not_told() -> None:
    text = "FROM x\nCOPY $A /b\n"  # with A of the image there is a source
    report = _check(text)
    assert (report.error, report.unasked) == (None, ("x",))
    known = Images({"x": {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"]}}})
    assert _check(text, known).error is None
    assert _check(text, Images()).error is not None


@pytest.mark.parametrize("text", ["FROM x\nCOPY ${A /b\n", "FROM x\nWORKDIR ${A\n", "FROM x\nRUN ${A\n"])
def test_a_word_that_cannot_be_read_ends_no_check_in_a_traceback(text: str) -> None:
    report = _check(text, Images(), ignore=("c",))
    assert (report.error is None) == text.startswith("FROM x\nRUN")  # the shell may know what to do with it


def test_a_default_that_asks_for_its_build_arg_is_no_finding_when_that_is_given() -> None:
    text = "ARG A=${B:?which}\nFROM debian:$A\n"
    assert _check(text, Images(), build_args={"A": "12"}).findings == ()
    failed = _check(text, Images()).error
    assert failed is not None
    assert "which" in str(failed)


def test_an_error_that_an_images_variables_may_mend_is_none_while_nobody_can_be_asked() -> None:
    report = _check("FROM base\nCOPY $A ${DEST:?must-be-set}\n")
    assert (report.error, report.unasked) == (None, ("base",))
    assert _check("FROM scratch\nCOPY $A ${DEST:?must-be-set}\n").error is not None
