"""`refledger build --check`, from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


DOCKERFILE = "FROM nowhere.invalid/x as web\nCMD a\nWORKDIR /a\n"


def test_check_shows_each_finding_with_its_place(builder: Builder) -> None:
    done = builder.build(DOCKERFILE, "--check")
    assert done.code == 0, done.err
    assert done.out == """\
Check complete, 2 warnings have been found!

WARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/
'as' and 'FROM' keywords' casing do not match: write AS in the case of FROM
Dockerfile:1
--------------------
   1 | >>> FROM nowhere.invalid/x as web
     |                            ^^
   2 |     CMD a
   3 |     WORKDIR /a
--------------------

WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
JSON arguments recommended for CMD to prevent unintended behavior related to OS signals: write the command as a JSON \
list, as in ["executable", "argument"]
Dockerfile:2
--------------------
   1 |     FROM nowhere.invalid/x as web
   2 | >>> CMD a
   3 |     WORKDIR /a
--------------------
"""


def test_check_as_json_has_the_same(builder: Builder) -> None:
    done = builder.build(DOCKERFILE, "--check", "--json")
    facts = json.loads(done.out)
    assert facts["error"] is None
    assert facts["findings"][0] == {
        "rule": "FromAsCasing", "file": "Dockerfile", "line": 1, "end": 1, "excerpt": "FROM nowhere.invalid/x as web",
        "message": "'as' and 'FROM' keywords' casing do not match", "hint": "write AS in the case of FROM",
        "url": "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
    }  # fmt: skip


def test_check_of_a_good_dockerfile_says_so_and_leaves_nothing(builder: Builder) -> None:
    done = builder.build("FROM nowhere.invalid/x AS web\n", "--check")
    assert (done.code, done.out, done.err) == (0, "Check complete, no warnings found.\n", "")
    assert not builder.root.exists()


def test_check_exits_as_docker_does(builder: Builder) -> None:
    failing = builder.build(f"# check=error=true\n{DOCKERFILE}", "--check")
    assert failing.code == 1
    assert "lint violation found for rules: FromAsCasing, JSONArgsRecommended" in failing.err
    broken = builder.build(f"{DOCKERFILE}RUNN x\n", "--check")
    assert broken.code == 2
    assert broken.err.startswith("ERROR: Dockerfile:4: unknown instruction: RUNN (did you mean RUN?)")
    assert "   4 | >>> RUNN x\n     |     ^^^^\n" in broken.out
    as_json = builder.build(f"{DOCKERFILE}RUNN x\n", "--check", "--json")
    assert json.loads(as_json.out)["error"]["line"] == 4


def test_check_reads_dockerignore(builder: Builder) -> None:
    builder.write({".dockerignore": "*.log\n"})
    done = builder.build("# check=experimental=all\nFROM scratch\nCOPY a.log /\n", "--check")
    assert "CopyIgnoredFile" in done.out


def test_check_reads_the_dockerignore_of_its_dockerfile_first(builder: Builder) -> None:
    builder.write({
        ".dockerignore": "b.log\n", "sub/My.Dockerfile.dockerignore": "\ufeff# own\n/a.log/\n",
        "sub/My.Dockerfile": "# check=experimental=all\nFROM scratch\nCOPY a.log b.log /x/\n",
    })  # fmt: skip
    done = builder.run("build", str(builder.context), "-f", str(builder.context / "sub/My.Dockerfile"), "--check")
    assert 'Attempting to COPY file "a.log" that is excluded by .dockerignore' in done.out
    assert '"b.log"' not in done.out


def test_check_asks_an_image_for_its_variables_only(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    mark = registry.mark()
    text = f"FROM {image['reference']}\nWORKDIR ${{PATH}}\nUSER $NOBODY_SET_IT\n"
    done = builder.build(text, "--check")
    assert "Usage of undefined variable '$NOBODY_SET_IT'" in done.out
    assert "'$PATH'" not in done.out
    assert registry.layer_gets([layer["digest"] for layer in image["layers"]], since=mark) == []
    assert not builder.root.exists()


def test_check_without_network_says_what_it_could_not_know(builder: Builder) -> None:
    done = builder.build("FROM 127.0.0.1:1/x\nWORKDIR /$SOMETHING\n", "--check")
    assert done.code == 0, done.err
    assert "UndefinedVar" not in done.out
    assert "Variables that 127.0.0.1:1/x may set were not checked" in done.out


def test_json_is_for_check(builder: Builder) -> None:
    done = builder.build("FROM scratch\n", "--json")
    assert done.code == 2
    assert "--json is for --check" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
def test_a_build_ends_with_its_warnings_and_shows_marks(builder: Builder) -> None:
    done = builder.must_build("FROM scratch as a\nCMD b\n")
    assert "WARNING: FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)" in done.err
    failed = builder.build("FROM scratch\nCOPY --from=9 a /b\n")
    assert "   2 | >>> COPY --from=9 a /b\n     |            ^^^^^^\n" in failed.err
    strict = builder.build("# check=error=true\nFROM scratch\nCMD b\n")
    assert strict.code == 1
    assert "lint violation found for rules: JSONArgsRecommended" in strict.err
