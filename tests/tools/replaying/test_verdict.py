"""What a replay is called: the same failure, another one, none any more, or another result."""

from __future__ import annotations

import pytest

from storage.tar.filelist import FileFact
from tools.replaying.verdict import End, diff_output, judge


def file(path: str, content: str = "c", *, mtime: int = 0, mode: int = 0o644) -> FileFact:
    return FileFact(path, "file", mode, "0:0", 1, mtime, content)


FAILED = End(1, "v", "'make' did not complete successfully: exit code 2", 2)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (FAILED, "same failure"),
        (End(1, "v", "'make' did not complete successfully: exit code 3", 3), "different failure"),
        (End(1, "w", FAILED.error, 2), "different failure"),
        (End(3, "v", "layer 12ab cannot be had"), "different failure"),
        (End(0, "v"), "passes now"),
    ],
)
def test_a_command_fails_the_same_when_the_same_step_ends_with_the_same_code(now: End, verdict: str) -> None:
    assert judge(FAILED, now, None).kind == verdict


def test_what_is_no_command_fails_the_same_when_it_says_the_same() -> None:
    before = End(3, "v", "layer aaaaaaaaaaaa cannot be had: 404, needed by build 0123456789ab")
    assert judge(before, End(3, "v", before.error.replace("0123456789ab", "ba9876543210")), None).kind == "same failure"
    assert judge(before, End(3, "v", before.error.replace("404", "500")), None).kind == "different failure"


def test_streams_are_compared_each_by_itself() -> None:
    assert diff_output({1: ["a", "b"], 2: ["x"]}, {2: ["x"], 1: ["a", "b"]}) == ()
    assert "-b" in diff_output({1: ["a", "b"]}, {1: ["a"]})


def test_results_differ_by_what_the_first_step_that_differs_made() -> None:
    before = End(0, files={"one": [file("a"), file("gone")], "two": [file("b")]})
    now = End(0, files={"one": [file("a", mode=0o755), file("new")], "two": [file("b", "d")]})
    verdict = judge(before, now, None)
    assert verdict.kind == "different result"
    assert [change.vertex for change in verdict.changed] == ["one", "two"]
    assert [(f.path, f.how) for f in verdict.changed[0].files] == [
        ("a", ("mode",)), ("gone", ("only before",)), ("new", ("only now",)),
    ]  # fmt: skip


def test_times_count_below_the_epoch_only() -> None:
    second = 1_000_000_000
    before, now = End(0, files={"v": [file("a", mtime=5 * second)]}), End(0, files={"v": [file("a", mtime=9 * second)]})
    assert judge(before, now, None).kind == "same result"
    assert judge(before, now, 5).kind == "same result"
    assert judge(before, now, 7).kind == "different result"


def test_no_result_is_called_the_same_unseen() -> None:
    assert judge(End(0), End(0, files={"v": [file("a")]}), None).kind == "nothing to compare with"


def test_what_only_stacks_layers_is_compared_by_them() -> None:
    before, same = End(0, merges={"v": "merge-1"}), End(0, merges={"v": "merge-1"})
    assert judge(before, same, None).kind == "same result"
    assert judge(before, same, None).compared == 1
    other = judge(before, End(0, merges={"v": "merge-2"}), None)
    assert (other.kind, [step.vertex for step in other.changed]) == ("different result", ["v"])
