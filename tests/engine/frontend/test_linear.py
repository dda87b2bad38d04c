"""Wildcards mean the same with and without backtracking, and no pattern takes for ever."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.glob import match_path
from engine.frontend.linear import BELOW, DIRECTORIES, _Automaton

PIECES = st.lists(st.sampled_from(["a", "b", "/", "[^/]", "[^/]*", ".*", ".", "[a-b]", DIRECTORIES]), max_size=9)


@given(PIECES, st.booleans(), st.text("ab/c\n", max_size=12))
@example(["a", DIRECTORIES, "b"], True, "a/b/c")
@settings(max_examples=400)
def test_the_automaton_matches_what_re_does(pieces: list[str], below: bool, text: str) -> None:
    pieces = [*pieces, BELOW] if below else pieces
    assert _Automaton(pieces).fullmatch(text) == bool(re.compile("".join(pieces), re.DOTALL).fullmatch(text))


def test_a_name_that_almost_fits_does_not_take_for_ever() -> None:
    assert not match_path("*a" * 40 + "b", "a" * 255)
    assert match_path("*a" * 40 + "*", "a" * 255)
    assert not IgnoreMatcher(["**/a*/" * 20 + "b"]).excluded("a/" * 1000 + "c")


@pytest.mark.parametrize("word", ["${A%" + "*a" * 9 + "b}", "${A#" + "*a" * 9 + "b}", "${A//" + "*a" * 9 + "b/x}"])
def test_a_pattern_in_a_variable_that_would_take_for_ever_is_an_error(word: str) -> None:
    with pytest.raises(ExpansionError, match="would take too long"):
        Lexer().expand(word, {"A": "a" * 300})
    assert Lexer().expand("${A%%*b*c}", {"A": "a" * 300 + "bc"}) == ""


def test_variables_do_not_grow_without_end() -> None:
    env = {"A": "x" * 1000}
    with pytest.raises(ExpansionError, match="of more than 64 MiB"):
        for _ in range(40):
            env["A"] = Lexer().expand("$A${A}", env)
    with pytest.raises(ExpansionError, match="of more than 64 MiB"):
        Lexer().expand("${A//x/$A}", {"A": "x" * 10_000})
