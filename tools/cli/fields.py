"""What is in the values of flags. `key=value,key=value` is CSV (Go's encoding/csv), as docker's flags have it, so that
a part with a comma is quoted."""

from __future__ import annotations

import re
from collections.abc import Mapping

from storage.errors import InputError

_PART = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|$)')


def split(flag: str, text: str) -> list[str]:
    """The parts of `text`. Raises InputError for quotes that Go's reader refuses."""
    parts, at = [], 0
    while True:
        found = _PART.match(text, at)
        if found is None:
            raise InputError(f"{flag} {text[:200]!r} is not CSV", hint='quote a whole part, as in "name=a,b"')
        quoted, plain, comma = found.groups()
        parts.append(plain if quoted is None else quoted.replace('""', '"'))
        if not comma:
            return parts
        at = found.end()


def pattern(flag: str, text: str) -> re.Pattern[str]:
    """A regular expression. Raises InputError."""
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{flag} {text[:80]!r}: {error}", hint="give a regular expression") from error


def truth(flag: str, fields: Mapping[str, str], key: str, *, default: bool) -> bool:
    """A boolean, in the spellings that Go's ParseBool knows. Raises InputError."""
    text = fields.get(key)
    if text is None:
        return default
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise InputError(f"{flag}: {key}={text[:20]!r} is neither true nor false")
