"""What stands for values that were erased, also in logs and bundles that somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest

from storage.interfaces.log import redacted, worded

SAID = {"digest": "sha256:x", "seq": 5, "time": 1_700_000_000 * 10**9, "by": "ann", "reason": "a token"}
WORDS = "[redacted by ann on 2023-11-14: a token]"


def test_words_stand_for_what_was_erased_wherever_it_is() -> None:
    erased = {"$redacted": SAID}
    assert redacted(erased) == WORDS
    assert worded({"a": {"b": erased, "c": 1}, "d": [2]}) == {"a": {"b": WORDS, "c": 1}, "d": [2]}


@pytest.mark.parametrize("time", ["x", None, [], 1e30, 10**30, 1 << 63, -1, True])
def test_what_no_log_of_ours_says_is_no_erased_value(time: Any) -> None:
    value = {"$redacted": {**SAID, "time": time}}
    assert redacted(value) == ""
    assert worded(value) == value


@pytest.mark.parametrize("value", ["x", 5, None, [], {}, {"$redacted": 7}, {"$redacted": SAID, "more": 1}])
def test_other_values_are_themselves(value: Any) -> None:
    assert redacted(value) == ""
    assert worded(value) == value
