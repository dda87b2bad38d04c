"""What an offline build lacks, as lines: alike things together, nothing that a terminal would obey, never too many."""

from __future__ import annotations

from typing import Any

from tools.cli.missing import missing_lines


def layer(number: int, **more: Any) -> dict[str, Any]:
    plain = {
        "kind": "layer", "name": f"sha256:{number:012x}{'0' * 52}", "bytes": 1_000_000, "needed_by": ["[2/2] RUN make"],
        "elsewhere": ["host/base"], "detail": "",
    }  # fmt: skip
    return {**plain, **more}


def test_layers_for_the_same_step_from_the_same_place_are_told_together() -> None:
    other = layer(3, needed_by=["[1/2] RUN other"], elsewhere=[], detail="nobody is known to have it")
    assert missing_lines([layer(1), layer(2), other]) == [
        "not here:",
        "  2 layers, 2.0MB",
        "    000000000001  1.0MB",
        "    000000000002  1.0MB",
        "    for [2/2] RUN make",
        "    at  host/base",
        "  layer 000000000003  1.0MB",
        "    for [1/2] RUN other",
        "    nobody is known to have it",
    ]


def test_many_are_counted_and_long_names_are_cut() -> None:
    lines = missing_lines([layer(number, needed_by=["x" * 5000] * 5) for number in range(500)])
    assert len(lines) < 30
    assert "    and 480 more" in lines
    assert "    and 2 more" in lines
    assert max(map(len, lines)) <= 110


def test_nothing_that_came_from_elsewhere_moves_the_cursor() -> None:
    evil = "\x1b[2Jevil\r\n"
    (item,) = [layer(1, kind=evil, name=evil, needed_by=[evil], elsewhere=[evil], detail=evil)]
    assert all(text.isprintable() for text in missing_lines([item]))
    assert missing_lines([]) == []
