"""JSON is written as Go writes it."""

from __future__ import annotations

import pytest

from engine.buildkit.gojson import go_json


def test_html_and_line_separators_are_escaped_and_other_text_is_kept() -> None:
    assert go_json({"b": "<a&b>\u2028\u2029é", "a": [1, True]}) == (
        '{"b":"\\u003ca\\u0026b\\u003e\\u2028\\u2029é","a":[1,true]}'.encode()
    )


def test_control_characters_are_escaped_as_go_does() -> None:
    assert go_json('\t\n\r\x01"\\b') == b'"\\t\\n\\r\\u0001\\"\\\\b"'


@pytest.mark.parametrize("text", ["\b", "\f", "\\\b", "\udc80"])
def test_what_versions_of_go_write_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        go_json(text)
