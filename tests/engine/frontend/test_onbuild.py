"""ONBUILD: stored in the image, executed by the one that is built from it, and by no later one."""

from __future__ import annotations

import pytest

from engine.errors import DockerfileError
from engine.graph import Copy, InlineFile, Run
from tests.engine.frontend.support import Images, compile_text, config_of, history_of, last, last_run, names


def _base(*triggers: str) -> Images:
    return Images({"base": {"architecture": "amd64", "os": "linux", "config": {"OnBuild": list(triggers)}}})


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("ONBUILD RUN make  all", "RUN make  all"),
        ("onbuild run --mount=type=cache,target=/c a", "run --mount=type=cache,target=/c a"),
        ("ONBUILD COPY --from=$X a $Y", "COPY --from=$X a $Y"),
        ('ONBUILD CMD ["a", "b"]', 'CMD ["a", "b"]'),
        ("ONBUILD RUN a \\\n  b", "RUN a   b"),
        ("ONBUILD RUN <<EOF\na\n$b\nEOF", "RUN <<EOF\na\n$b\nEOF"),
        ("ONBUILD COPY <<A <<-'B' /x/\n1\nA\n\t2\n\tB", "COPY <<A <<-'B' /x/\n1\nA\n\t2\nB"),
    ],
)
def test_triggers_are_stored_as_written_and_do_nothing_yet(written: str, stored: str) -> None:
    text = f"FROM scratch\n{written}\nONBUILD USER u\n"
    assert config_of(text)["OnBuild"] == [stored, "USER u"]
    assert len(compile_text(text).vertices) == 1
    assert history_of(text) == [f"ONBUILD {stored}", "ONBUILD USER u"]


def test_triggers_of_an_image_run_right_after_from() -> None:
    images = _base("ENV A=1", "RUN make $A", "COPY <<F /f\n$A\nF")
    text = "FROM base\nRUN mine\n"
    graph = compile_text(text, images)
    ops = [vertex.op for vertex in graph.vertices]
    assert [op.argv[-1] for op in ops if isinstance(op, Run)] == ["make $A", "mine"]
    assert [op.files for op in ops if isinstance(op, Copy)] == [(InlineFile("F", "1\n"),)]
    assert graph.results[0].image["config"]["Env"][-1] == "A=1"
    assert [name.split("]")[0] for name in names(graph)] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert {vertex.lines for vertex in graph.vertices} == {(1, 1), (2, 2)}


def test_triggers_are_gone_afterwards_and_own_ones_stay() -> None:
    images = _base("ENV A=1")
    assert "OnBuild" not in config_of("FROM base\n", images)
    assert config_of("FROM base\nONBUILD ENV B=2\n", images)["OnBuild"] == ["ENV B=2"]


def test_triggers_of_a_stage_run_in_its_children_but_not_in_theirs() -> None:
    text = "FROM scratch AS a\nONBUILD RUN one\nONBUILD RUN two\nFROM a AS b\nRUN mine\nFROM b\nRUN last\n"
    ops = [vertex.op for vertex in compile_text(text).vertices]
    assert [op.argv[-1] for op in ops if isinstance(op, Run)] == ["one", "two", "mine", "last"]
    assert "OnBuild" not in config_of(text)


def test_triggers_do_not_run_for_a_copy_or_a_mount() -> None:
    images = _base("RUN x")
    text = "FROM other\nCOPY --from=base / /\nRUN --mount=from=base,target=/m y\n"
    assert len([v for v in compile_text(text, images).vertices if isinstance(v.op, Run)]) == 1


def test_triggers_find_stages_and_images_of_the_dockerfile_that_runs_them() -> None:
    images = _base("COPY --from=build /a /b", "RUN --mount=from=tool:1,target=/t x")
    text = "FROM scratch AS build\nWORKDIR /made\nFROM base\n"
    graph = compile_text(text, images)
    assert images.asked == [[("base", "linux/amd64")], [("tool:1", "linux/amd64")]]
    copy = next(vertex for vertex in graph.vertices if isinstance(vertex.op, Copy))
    assert graph.by_digest[copy.inputs[1]].stage == "build"


def test_triggers_see_the_arguments_of_their_own_stage_only() -> None:
    images = _base("ARG A=1", "ENV B=$A")
    assert dict(last_run("ARG A=0\nFROM base\nRUN y\n", images, build_args={"A": "9"}).env)["B"] == "9"


@pytest.mark.parametrize(
    ("trigger", "what"),
    [
        ("RUN a\nRUN b", "a single instruction"),
        ("FROM x", "FROM is not allowed"),
        ("NOPE x", "unknown instruction: NOPE"),
        ("ENV a", "ENV must have two arguments"),
        ("RUN --what=1 a", "unknown flag --what"),
    ],
)
def test_a_trigger_that_cannot_be_is_told_with_the_image_and_the_from_line(trigger: str, what: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        compile_text("# c\nFROM base\n", _base(trigger))
    assert caught.value.line == 2
    assert "of image base" in caught.value.what
    assert what in caught.value.what


def test_a_trigger_that_fails_when_it_is_read_points_at_from() -> None:
    with pytest.raises(DockerfileError, match="can't be a URL") as caught:
        compile_text("FROM base\n", _base("COPY http://a/b c"))
    assert caught.value.line == 1


def test_the_base_of_a_trigger_free_stage_is_asked_for_once() -> None:
    images = Images()
    last("FROM a\nCOPY --from=b / /\n", images)
    assert len(images.asked) == 1


@pytest.mark.parametrize(
    ("trigger", "what"), [("RUN a\0b", "a NUL byte"), ("RUN \udcff", "not UTF-8"), ("", "file with")]
)
def test_a_trigger_that_the_parser_would_cut_or_die_of_is_an_error(trigger: str, what: str) -> None:
    with pytest.raises(DockerfileError, match=f"ONBUILD trigger .* of image base: .*{what}"):
        compile_text("FROM base\n", _base(trigger))
