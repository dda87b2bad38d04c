"""Wildcards mean what Go's filepath.Match means; the table is of its documented grammar."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.frontend.glob import compile_glob, has_wildcard, match_path
from storage.errors import InputError


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("abc", "abc", True),
        ("abc", "abcd", False),
        ("*", "abc", True),
        ("*", ".hidden", True),
        ("*", "a/b", False),
        ("*c", "abc", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("a?b", "a☺b", True),
        ("a?b", "a/b", False),
        ("a???b", "a☺b", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("[a-ζ]*", "α", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("[\\]a]", "]", True),
        ("[\\-x]", "-", True),
        ("[x\\-]", "z", False),
        ("[z-a]", "m", False),
        ("[^z-a]", "m", True),
        ("[!a]", "!", True),
        ("*.go", "x\n.go", True),
        ("a.c", "abc", False),
        ("", "", True),
    ],
)
def test_matches_as_go_does(pattern: str, path: str, matches: bool) -> None:
    assert match_path(pattern, path) is matches


@pytest.mark.parametrize(
    "pattern", ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "[a", "a\\", "[\\"]
)
def test_malformed_patterns_are_input_errors(pattern: str) -> None:
    with pytest.raises(InputError, match="malformed pattern"):
        compile_glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "wild"),
    [("a*", True), ("a?", True), ("a[b]", True), ("a\\*", False), ("a\\\\*", True), ("plain", False)],
)
def test_an_escaped_wildcard_is_none(pattern: str, wild: bool) -> None:
    assert has_wildcard(pattern) is wild


@given(st.text("ab*?.", max_size=8), st.text("ab.", max_size=8))
@settings(deadline=None)
def test_agrees_with_fnmatch_without_slashes_and_classes(pattern: str, path: str) -> None:
    assert match_path(pattern, path) is fnmatch.fnmatchcase(path, pattern)
