"""Text from elsewhere (output of steps, names, errors), made safe and made to fit.

Whoever writes to a terminal can move its cursor, rename its window or type on its keyboard; what a build prints must
not. Colour and erase-line sequences are left out, every other control character is shown as an escape.
"""

from __future__ import annotations

import re
import unicodedata

_HARMLESS_STYLE = re.compile(r"\x1b\[[0-9;:]*[mK]")
_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f"  # C0 but tab, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators and what reorders text
    "\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_MOUNTS = re.compile(r"((?:^|\] )RUN )(?:--mount=\S+ )+")

_WIDER = re.compile("[\u2630-\u2637\u268a-\u268f\u4dc0-\u4dff\U0001d300-\U0001d376]")
"""Symbols that Unicode 16 made wide, after the tables of the oldest Python that runs this."""


def clean(text: str) -> str:
    """`text` as one line without control characters; tabs stay."""
    return _UNSAFE.sub(_escape, _HARMLESS_STYLE.sub("", text))


def last_segment(line: str) -> str:
    """What a terminal would show of a line that redraws itself with carriage returns, cleaned."""
    for segment in reversed(line.split("\r")):
        if shown := clean(segment):
            return shown
    return ""


def segments(line: str) -> list[str]:
    """Every state of a line that redraws itself, cleaned; at least one."""
    return [clean(segment) for segment in line.split("\r") if segment] or [""]


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return {0x0A: "\\n", 0x0D: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def cells(text: str) -> int:
    """Columns that cleaned `text` takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if char == "\ufe0f":
        return 1  # the character before it becomes an emoji, two columns wide
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    wide = unicodedata.east_asian_width(char) in "WF" or _WIDER.match(char)
    return 2 if wide else 1


def shortened(name: str, width: int, ellipsis: str = "…") -> str:
    """A step's cleaned name; without the mounts of RUN, which stand before its command, when it is too long for `width`
    columns."""
    return name if cells(name) <= width else _MOUNTS.sub(rf"\g<1>{ellipsis} ", name, count=1)


def fit(text: str, width: int, ellipsis: str = "…") -> str:
    """Cleaned `text` in at most `width` columns, tabs expanded, its end replaced by `ellipsis` when it is too long."""
    text = text.expandtabs(8)
    if cells(text) <= width:
        return text
    room = width - cells(ellipsis)
    if room < 0:
        return ""
    out = []
    for char in text:
        room -= _cells(char)
        if room < 0:
            break
        out.append(char)
    return "".join(out) + ellipsis
