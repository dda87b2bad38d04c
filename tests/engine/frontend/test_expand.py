"""Variable replacement: facts of the reference and of BuildKit's table, and agreement with a real shell."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.frontend.expand import ExpansionError, Lexer
from engine.frontend.instructions import parse_heredoc
from engine.frontend.source import locate

ENV = {"PWD": "/home", "SHELL": "bash", "KOREAN": "한국어", "NULL": "", "FOO": "xxyy", "P": "/a/b.tar.gz"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        # the reference: "Environment replacement"
        ("$PWD", "/home"),
        ("${PWD}x", "/homex"),
        ("$PWDx", ""),
        ("\\$PWD", "$PWD"),
        ("\\${PWD}", "${PWD}"),
        ("${UNSET:-word}", "word"),
        ("${NULL:-word}", "word"),
        ("${NULL-word}", ""),
        ("${UNSET-word}", "word"),
        ("${PWD:+word}", "word"),
        ("${NULL:+word}", ""),
        ("${NULL+word}", "word"),
        ("${UNSET+word}", ""),
        ("${PWD:?no}", "/home"),
        ("${NULL?no}", ""),
        ("${UNSET:-$PWD}", "/home"),
        ("${UNSET:-${NULL:-${PWD}}}", "/home"),
        ("${P#*/}", "a/b.tar.gz"),
        ("${P##*/}", "b.tar.gz"),
        ("${P%.*}", "/a/b.tar"),
        ("${P%%.*}", "/a/b"),
        ("${P/a/X}", "/X/b.tar.gz"),
        ("${P//a/X}", "/X/b.tXr.gz"),
        ("${P//\\//-}", "-a-b.tar.gz"),
        # quotes and escapes
        ("he'll'o", "hello"),
        ("he'll\\'o", "hell\\o"),
        ("'$PWD'", "$PWD"),
        ('"$PWD"', "/home"),
        ("\"'$PWD'\"", "'/home'"),
        ("'\"$PWD\"'", '"$PWD"'),
        ('"a\\"b"', 'a"b'),
        ('"a\\b"', "a\\b"),
        ('"\\$PWD"', "$PWD"),
        ("a\\b", "ab"),
        ("a\\\\b", "a\\b"),
        ("a\\ b", "a b"),
        ("end\\", "end"),
        ("a b  c", "a b  c"),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$1x", "x"),
        ("안녕$KOREAN", "안녕한국어"),
        # patterns (BuildKit's table)
        ("${FOO#*x*y}", "y"),
        ("${FOO#*}", "xxyy"),
        ("${FOO##*x}", "yy"),
        ("${FOO#}", "xxyy"),
        ("${FOO%}", "xxyy"),
        ("${FOO%x}", "xxyy"),
        ("${FOO#$NULL}", "xxyy"),
        ("${FOO/$NULL/ww}", "wwxxyy"),
        ("${FOO///}", "xxyy"),
        ("${UNSET#x}", ""),
    ],
)
def test_expands_as_the_reference_says(word: str, expected: str) -> None:
    assert Lexer().expand(word, ENV) == expected


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("${V#()[]{\\}^$.\\*\\?|\\\\}", "()[]{}^$.*?|\\x", "x"),
        ("${V%%\\**}", "xx**", "xx"),
        ("${V%%\\**\\*}", "a***yy*", "a"),
        ("${V#?\\?}", "???y", "?y"),
    ],
)
def test_characters_special_to_regular_expressions_are_plain(pattern: str, value: str, expected: str) -> None:
    assert Lexer().expand(pattern, {"V": value}) == expected


@pytest.mark.parametrize(
    "word",
    [
        "'open", '"open', "${", "${PWD", "${}", "${{PWD}", "${:x}", "${PWD:", "${PWD:}", "${PWD=x}", "${PWD:-x",
        "${FOO//ww}", "${FOO//}", "${FOO/x", "${UNSET:?}", "${UNSET?no such}", "${NULL:?empty}", "${FOO#\\x}",
        "${A:-" * 60 + "}" * 60,
    ],
)  # fmt: skip
def test_what_cannot_be_expanded_is_an_error(word: str) -> None:
    with pytest.raises(ExpansionError):
        Lexer().expand(word, ENV)


def test_required_variables_say_the_message() -> None:
    with pytest.raises(ExpansionError, match=r"^UNSET: need bash$"):
        Lexer().expand("${UNSET:?need $SHELL}", ENV)
    with pytest.raises(ExpansionError, match="is not allowed to be empty"):
        Lexer().expand("${NULL:?}", ENV)


def test_the_escape_character_can_be_a_backtick() -> None:
    assert Lexer("`").expand("c:\\$PWD`$PWD", ENV) == "c:\\/home$PWD"


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("a b", ["a", "b"]),
        ("'a b' c", ["a b", "c"]),
        ("a\\ b c", ["a b", "c"]),
        ("$TWO", ["80", "443"]),
        ('"$TWO"', ["80 443"]),
        ("x$TWO", ["x80", "443"]),
        ("$UNSET", []),
        ("  a  ", ["a"]),
    ],
)
def test_words_split_at_unquoted_blanks(word: str, words: list[str]) -> None:
    assert Lexer().words(word, {"TWO": "80 443"}) == words


def test_raw_forms_keep_what_they_are_told_to() -> None:
    assert Lexer(skip_unset=True).expand("$PWD $NOPE ${NOPE:-x}", ENV) == "/home $NOPE ${NOPE:-x}"
    assert Lexer(raw_quotes=True, raw_escapes=True).expand("'a' \"$PWD\" \\$x", ENV) == "'a' \"/home\" \\$x"
    assert Lexer(skip_quotes=True).expand("it's \"$PWD\"", ENV) == "it's \"/home\""


_VALUES = st.dictionaries(st.sampled_from("AB"), st.text("ab./*x", max_size=6), max_size=2)
_PLAIN = st.text("ab./x", min_size=1, max_size=4)
_PATTERNS = st.text("ab./x*?", max_size=4)
_PIECES = st.recursive(
    st.one_of(
        _PLAIN,
        st.sampled_from(["$A", "${B}", "${C}", "'$A b'", "\\$A", "\\\\", '"\\"$B"', "''"]),
        st.builds("${{{0}{1}{2}}}".format, st.sampled_from("ABC"), st.sampled_from(["#", "##", "%", "%%"]), _PATTERNS),
    ),
    lambda inner: st.builds(
        "${{{0}{1}{2}}}".format, st.sampled_from("ABC"), st.sampled_from([":-", "-", ":+", "+"]), inner
    ),
    max_leaves=3,
)


def _in_shell(words: list[str], env: dict[str, str]) -> list[str]:
    """What /bin/sh makes of `words`, as in `V=word`: no splitting, no file names."""
    script = "set -f\n" + "".join(f"V={word}\nprintf '%s\\0' \"$V\"\n" for word in words)
    done = subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, check=True, text=True)
    return done.stdout.split("\0")[:-1]


@settings(max_examples=60)
@given(st.lists(st.lists(_PIECES, max_size=3).map("".join), min_size=1, max_size=20), _VALUES)
def test_agrees_with_the_shell_on_what_both_know(words: list[str], env: dict[str, str]) -> None:
    assert [Lexer().expand(word, env) for word in words] == _in_shell(words, env)


def test_where_unknown_variables_stay_a_word_that_must_be_set_is_no_error() -> None:
    assert Lexer(skip_unset=True).words("${A:?must-be-set}b", {}) == ["${A:?must-be-set}b"]


def test_a_word_that_cannot_be_read_names_no_heredoc() -> None:
    assert parse_heredoc('<<"EOF', [("EOF", "text")]) is None
    assert parse_heredoc("<<EOF", [("EOF", "text")]) is not None


def test_what_no_line_alone_explains_is_said_of_the_first() -> None:
    assert locate("FROM x\nRUN a \\", "\\", lambda _: "") == (1, 1)
