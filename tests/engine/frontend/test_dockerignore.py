"""The rules of the Dockerfile reference, section ".dockerignore file", and moby's for what it leaves open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.frontend.dockerignore import IgnoreMatcher, parse_dockerignore
from storage.errors import InputError


def test_parses_comments_blanks_and_slashes() -> None:
    text = "\ufeff# comment\n*/temp*\r\n\n  /abs/  \n!  /keep/./x/..\n   # kept: only column one comments\na//b/\n"
    assert parse_dockerignore(text) == (
        "*/temp*", "abs", "!keep", "# kept: only column one comments", "a/b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "hidden", "visible"),
    [
        # the reference's table
        ("*/temp*", ["somedir/temporary.txt", "somedir/temp", "somedir/temp/x"], ["temp", "a/b/temp"]),
        ("*/*/temp*", ["somedir/subdir/temporary.txt"], ["somedir/temp", "a/b/c/temp"]),
        ("temp?", ["tempa", "tempb", "tempa/x"], ["temp", "tempab", "x/tempa"]),
        ("**/*.go", ["a.go", "x/a.go", "x/y/a.go"], ["a.got", "x/a.g"]),
        ("*.md\n!README.md", ["a.md"], ["README.md", "x/a.md"]),
        ("*.md\n!README*.md\nREADME-secret.md", ["a.md", "README-secret.md"], ["README.md", "README-x.md"]),
        ("*.md\nREADME-secret.md\n!README*.md", ["a.md"], ["README.md", "README-secret.md"]),
        ("foo/bar", ["foo/bar", "foo/bar/x"], ["bar", "x/foo/bar", "foo/barn"]),
        ("/foo/bar/", ["foo/bar", "foo/bar/x"], ["x/foo/bar"]),
        # whole contexts
        ("*\n!src", ["Dockerfile", "a/src"], ["src", "src/a/b"]),
        ("**\n!keep/me", ["a", "keep", "keep/you"], ["keep/me", "keep/me/x"]),
        (".", [], ["a", "a/b"]),
        ("..", [], ["a"]),
        # directory wildcards
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz"]),
        ("**/node_modules", ["node_modules", "x/node_modules/y"], ["node_modules2", "xnode_modules"]),
        ("**.log", ["a.log", "x/y.log"], ["a.logs"]),
        ("**/a**", ["x/a", "a", "x/ab/c"], ["x/b"]),
        # classes, escapes and characters special elsewhere
        ("[a-c]x", ["ax", "cx/y"], ["dx"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("a\\*b", ["a*b"], ["axb"]),
        ("a.b$(c)+{d}|", ["a.b$(c)+{d}|"], ["axb$(c)+{d}|", "a.b"]),
        ("a b", ["a b"], ["a"]),
    ],
)
def test_hides_what_the_reference_says(patterns: str, hidden: list[str], visible: list[str]) -> None:
    matcher = IgnoreMatcher(parse_dockerignore(patterns))
    assert [path for path in hidden + visible if matcher.excluded(path)] == hidden


@pytest.mark.parametrize(
    ("patterns", "path", "hidden"),
    [
        ("**", "file", True), ("**/", "file", True), ("**", "dir/file", True), ("**/", "dir/file", True),
        ("**/**", "dir/file", True), ("dir/**", "dir/file", True), ("dir/**", "dir/dir2/file", True),
        ("**/dir", "dir", True), ("**/dir", "dir/file", True), ("**/dir2/*", "dir/dir2/file", True),
        ("**/dir2/**", "dir/dir2/dir2/file", True), ("**file", "file", True), ("**file", "dir/file", True),
        ("**/file", "dir/file", True), ("**file*", "dir/file.txt", True), ("**/file*txt", "dir/file.txt", True),
        ("**/file*.txt*", "dir/file.txt", True), ("**/**/*.txt", "dir/file.txt", True),
        ("**/*.txt2", "dir/file.txt", False), ("*.txt", "file.txt", True), ("**/*.txt", "file.txt", True),
        ("a**", "a", True), ("a**/b", "a/b", True), ("a**/b", "a", False), ("a*/b", "a/b", True),
        ("a[a-d]e", "ae", False), ("a[^a-d]e", "aze", True), ("a[\\^a-d]e", "abe", True),
        ("a[\\^a-d]e", "aze", False), (".*", ".foo", True), (".*", "foo", False), ("abc.def", "abcdef", False),
        ("abc.def", "abcZdef", False), ("abc?def", "abcZdef", True), ("a\\*b", "a*b", True), ("a\\b", "ab", True),
        ("a**/b", "a/x/b", True), ("/foo", "foo", True), ("foo/", "foo", True), ("foo/", "foo/x", True),
        ("./foo", "foo", True), ("../foo", "foo", False), ("foo/../bar", "bar", True), ("#x\nfoo", "foo", True),
        ("\ufefffoo", "foo", True), (" foo ", "foo", True), ("*\n!a", "a", False), ("*\n!a/b", "a/b", False),
        ("*\n!a/b", "a/c", True), ("*\n! a", "a", False), ("a\r\n", "a", True), (" #x", "#x", True),
        ("dir1\n!dir1/x\ndir1/x", "dir1/x", True), ("/", "a", False), (".", "a", False), ("", "a", False),
        ("!a\na", "a", True), ("a**/b", "ab", True), ("**file", "pile", False), ("/a", "a", True),
    ],
)  # fmt: skip
def test_decides_as_moby_does(patterns: str, path: str, hidden: bool) -> None:
    assert IgnoreMatcher(parse_dockerignore(patterns)).excluded(path) is hidden


@pytest.mark.parametrize("pattern", ["!", "a[", "x\\", "[]"])
def test_malformed_patterns_are_input_errors(pattern: str) -> None:
    with pytest.raises(InputError):
        IgnoreMatcher([pattern])


@pytest.mark.parametrize(
    ("patterns", "directory", "enter"),
    [
        ("node_modules", "node_modules", False),
        ("*\n!src/main.c", "src", True),
        ("*\n!src/main.c", "docs", False),
        ("*\n!src/*/x", "src/a", True),
        ("*\n!src/*/x", "src/a/b", False),
        ("*\n!**/x", "any/thing", True),
        ("*\n!src", "srcs", False),
        ("!src\nsrc", "src", False),
        ("*\n!s\\rc/x", "src", True),
    ],
)
def test_a_walk_skips_what_no_exception_can_reach(patterns: str, directory: str, enter: bool) -> None:
    assert IgnoreMatcher(parse_dockerignore(patterns)).may_contain_included(directory) is enter


_NAMES = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4).map("/".join)
_PATTERNS = st.lists(
    st.tuples(
        st.sampled_from(["", "!"]),
        st.lists(st.sampled_from(["a", "b", "*", "**", "?", "a*", "[ab]", "**b", "a**"]), min_size=1, max_size=3),
    ).map(lambda item: item[0] + "/".join(item[1])),
    max_size=5,
)


@given(_PATTERNS, _NAMES, _NAMES)
def test_a_skipped_directory_holds_nothing_visible(patterns: list[str], directory: str, below: str) -> None:
    matcher = IgnoreMatcher(patterns)
    if matcher.excluded(directory) and not matcher.may_contain_included(directory):
        assert matcher.excluded(f"{directory}/{below}")
