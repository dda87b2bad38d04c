"""Wildcards mean the same with and without backtracking, and no pattern takes for ever."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.frontend.dockerignore import IgnoreMatcher
from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.glob import match_path
from engine.frontend.linear import BELOW, DIRECTORIES, _Automaton
from tests.engine.frontend.support import compile_text

PIECES = st.lists(st.sampled_from(["a", "b", "/", "[^/]", "[^/]*", ".*", ".", "[a-b]", DIRECTORIES]), max_size=9)


@given(PIECES, st.booleans(), st.text("ab/c\n", max_size=12))
@example(["a", DIRECTORIES, "b"], True, "a/b/c")
@settings(max_examples=400)
def test_the_automaton_matches_what_re_does(pieces: list[str], below: bool, text: str) -> None:
    pieces = [*pieces, BELOW] if below else pieces
    assert _Automaton(pieces).fullmatch(text) == bool(re.compile("".join(pieces), re.DOTALL).fullmatch(text))


def test_a_name_that_almost_fits_does_not_take_for_ever() -> None:
    for stars in (6, 40):  # there is another way for a few
        assert not match_path("*a" * stars + "b", "a" * 255)
    assert match_path("*a" * 40 + "*", "a" * 255)
    assert not IgnoreMatcher(["**/a*/" * 20 + "b"]).excluded("a/" * 1000 + "c")


@pytest.mark.parametrize("word", ["${A%" + "*a" * 9 + "b}", "${A#" + "*a" * 9 + "b}", "${A//" + "*a" * 9 + "b/x}"])
def test_a_pattern_in_a_variable_that_would_take_for_ever_is_an_error(word: str) -> None:
    with pytest.raises(ExpansionError, match="would take too long"):
        Lexer().expand(word, {"A": "a" * 300})
    assert Lexer().expand("${A%%*b*c}", {"A": "a" * 300 + "bc"}) == ""


def test_variables_do_not_grow_without_end() -> None:
    env = {"A": "x" * 1000}
    with pytest.raises(ExpansionError, match="more than 64 MiB"):
        for _ in range(40):
            env["A"] = Lexer().expand("$A${A}", env)
    with pytest.raises(ExpansionError, match="more than 64 MiB"):
        Lexer().expand("${A//x/$A}", {"A": "x" * 10_000})


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\n{grow}ENV " + " ".join(f"B{n}=$A" for n in range(70)),  # one instruction
        "FROM a\n{grow}" + "LABEL b=$A\n" * 70,
        "FROM a\n{grow}" + "RUN b\n" * 70,  # its environment is in each of them
        "FROM a\n{grow}" + "COPY <<B /c\n$A\nB\n" * 70,
        "{grow}" + "".join(f"ARG B{n}=$A\n" for n in range(70)) + "FROM a\n",
    ],
)
def test_variables_cannot_make_a_dockerfile_that_fills_the_memory(text: str) -> None:
    word = "ARG" if text.startswith("{grow}") else "ENV"
    grow = f"{word} A={'x' * 1024}\n" + f"{word} A=$A$A\n" * 10  # 1 MiB
    with pytest.raises(InputError, match="more than 64 MiB"):
        compile_text(text.format(grow=grow))


def test_expose_names_no_more_ports_than_there_are() -> None:
    with pytest.raises(InputError, match="more ports than there are"):
        compile_text("FROM a\nEXPOSE " + "0-65535 " * 4)


def test_what_is_remembered_of_names_is_bounded() -> None:
    automaton = _Automaton([".*", "a", ".*", "b", ".*", "c", ".*"])
    assert automaton.fullmatch("".join(map(chr, range(0x4E00, 0x4E00 + 9000))) + "abc")
    assert len(automaton._known) <= 4096
