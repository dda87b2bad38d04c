"""What is read of JSON that anybody may have written."""

from __future__ import annotations

import copy

import pytest

from storage.digest import canonical_json, parse_json


def test_what_is_read_can_be_copied_and_written_again_as_a_part() -> None:
    value = parse_json(b'{"a":' * 50 + b"[" * 50 + b"]" * 50 + b"}" * 50)
    canonical_json({"more": [[copy.deepcopy(value)] * 20]})
    assert len(parse_json(b"[" + b",".join([b"[{}]"] * 500) + b"]")) == 500  # wide is not deep
    assert parse_json(b'"' + b"[" * 500 + b'"') == "[" * 500


@pytest.mark.parametrize("data", [b"[" * 101 + b"]" * 101, b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 2000])
def test_what_is_nested_too_deep_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"deep|depth|unexpected end"):
        parse_json(data)
