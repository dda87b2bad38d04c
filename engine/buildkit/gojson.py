"""JSON as Go's encoding/json writes it: BuildKit's keys are digests of such text."""

from __future__ import annotations

import json
from typing import Any

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def go_json(value: Any) -> bytes:
    """`value` of dicts (in their order), lists, text, numbers and booleans as Go marshals it: no blanks, HTML escaped.

    Raises UnicodeEncodeError for text that is not Unicode, ValueError for control characters that versions of Go write
    differently.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if "\\b" in text.replace("\\\\", "") or "\\f" in text.replace("\\\\", ""):
        raise ValueError("Go 1.22 began to write backspace and form feed in another way")
    for char, escaped in _ESCAPED.items():
        text = text.replace(char, escaped)
    return text.encode()
