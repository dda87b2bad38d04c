"""Parts of the Dockerfile language whose point is what the image has in the end, in whole builds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.fixture
def base(registry: RegistryProcess, repository: str) -> str:
    reference: str = base_image(registry, f"{repository}/base", layers=1)["reference"]
    return reference


def _printed(builder: Builder, text: str, *args: str) -> list[str]:
    """The lines that RUN printed."""
    builder.must_build(text, *args)
    build = builder.builds()[0]["id"]
    return "".join(event["data"]["text"] for event in builder.events("VertexOutput", build=build)).splitlines()


def test_parents_excludes_and_symbolic_modes_make_the_files_they_say(builder: Builder, base: str) -> None:
    builder.write({"src/a/x.c": "1", "src/a/x.md": "2", "src/b/deep/y.c": "3", "src/z.c": "4", "other/q.c": "5"})
    (builder.context / "src/a").chmod(0o700)
    text = (
        f"FROM {base}\n"
        "COPY --parents --exclude=**/*.md --chmod=u=rwX,go=rX src/./**/*.c other /d/\n"
        "RUN cd /d && busybox find . -exec stat -c '%n %a' {} ';' | busybox sort\n"
    )
    assert _printed(builder, text) == [
        ". 755", "./a 755", "./a/x.c 644", "./b 755", "./b/deep 755", "./b/deep/y.c 644", "./other 755",
        "./other/q.c 644", "./z.c 644",
    ]  # fmt: skip
    builder.write({"src/a/x.md": "changed", "src/new.md": "n"})
    assert _printed(builder, text) == []
    builder.write({"src/b/deep/y.c": "changed"})
    assert len(_printed(builder, text)) == 9


def test_parents_of_a_stage_are_kept_too(builder: Builder, base: str) -> None:
    text = (
        f"FROM {base} AS made\nRUN mkdir -p /out/p/q /out/r && echo 1 > /out/p/q/f && echo 2 > /out/r/g\n"
        f"FROM {base}\nCOPY --from=made --parents /out/./**/f /out/r /d/\nRUN cd /d && busybox find . | busybox sort\n"
    )
    assert _printed(builder, text) == [".", "./out", "./out/r", "./out/r/g", "./p", "./p/q", "./p/q/f"]


def test_triggers_of_a_pushed_image_run_in_the_next_build(
    builder: Builder, base: str, registry: RegistryProcess, repository: str
) -> None:
    name = f"{registry.host}/{repository}/onbuild:1"
    builder.must_build(
        f"FROM {base}\nONBUILD ARG WHO=nobody\nONBUILD COPY <<EOF /hello\nhello $WHO\nEOF\nONBUILD RUN cat /hello\n",
        "-t", name, "--push",
    )  # fmt: skip
    assert _printed(builder, f"FROM {name}\nRUN echo mine\n", "--build-arg", "WHO=you") == ["hello you", "mine"]


def test_names_are_the_same_files_in_every_locale(builder: Builder, tmp_path: Path) -> None:
    builder.write({"Dockerfile": "FROM scratch\nCOPY grün /\nCOPY <<x /größe\n1\nx\n", "grün": "x"})
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = []
    for number, locale in enumerate((ascii_only, {"LC_ALL": "C.UTF-8"})):
        out = tmp_path / str(number)
        process = builder.start("build", str(builder.context), "--no-cache", "-o", str(out), env=locale)
        assert process.wait(PATIENCE) == 0
        told.append(sorted(path.name for path in out.iterdir()))
    assert told[0] == told[1] == ["größe", "grün"]
    assert len({scanned["data"]["listing"] for scanned in builder.events("ContextScanned")}) == 1
