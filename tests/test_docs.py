"""The documentation's tables name tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.frontend.checks import RULES
from engine.frontend.instructions import FLAGS, NAMES
from engine.policy.rules import SPEAKS
from tools.cli.outputs import KEYS, UNUSED

TESTS = Path(__file__).resolve().parent
_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def _rows(page: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not set(line) <= set("|-")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


PAGE, OUTPUTS, POLICY = (
    (TESTS.parent / f"docs/{name}.md").read_text() for name in ("dockerfile", "outputs", "policy")
)
ROWS = _rows(PAGE)
TABLES = (*ROWS, *_rows(OUTPUTS), *_rows(POLICY))
NAMED = sorted({(file, name) for row in TABLES for file, name in _NAMED.findall(row[-1])})


@pytest.mark.parametrize(("page", "tables"), [(PAGE, 6), (OUTPUTS, 5), (POLICY, 1)])
def test_every_row_names_a_test(page: str, tables: int) -> None:
    rows = _rows(page)
    heads = [row for row in rows if row[-1] == "test"]
    assert len(heads) >= tables
    assert [row for row in rows if row not in heads and not _NAMED.fullmatch(row[-1])] == []
    assert [row for row in rows if not row[0]] == []


def test_every_key_of_an_output_is_in_the_page() -> None:
    cells = " ".join(row[0] for row in _rows(OUTPUTS))
    for kind, keys in KEYS.items():
        assert f"`type={kind}`" in cells
        for key in (*keys, *UNUSED):
            assert re.search(rf"`{re.escape(key)}\b", cells), key


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_is_there(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), f"{file} has no {name}"


def test_every_instruction_flag_and_rule_is_in_the_page() -> None:
    words = set(re.findall(r"[\w-]+", PAGE))
    assert set(NAMES) <= words
    assert {f"--{flag}" for flags in FLAGS.values() for flag in flags} <= words
    assert set(RULES) <= words


def test_every_option_of_a_mount_is_in_the_page() -> None:
    rows = [row[0] for row in ROWS if len(row) == 3 and row[1].startswith("RUN --mount")]
    text = " ".join(rows)
    for option in (
        "type=bind", "type=cache", "type=tmpfs", "type=secret", "type=ssh", "`target`", "`dst`", "`destination`",
        "`source`", "`src`", "`from`", "`rw`", "`readwrite`", "`ro`", "`readonly`", "`id`", "sharing=shared",
        "sharing=private", "sharing=locked", "`required`", "`mode`", "`uid`", "`gid`", "`size`", "`env`",
    ):  # fmt: skip
        assert option in text, option


def test_every_kind_of_rule_is_documented() -> None:
    told = {kind for row in _rows(POLICY) for kind in re.findall(r"`(\w+)`", row[0])}
    assert told == set(SPEAKS)
