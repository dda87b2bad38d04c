"""Which build args' values are stored so that they can be erased: `audit.toml` in the root may say.

    [redaction]
    args = ["*PASSWORD*", "DB_*"]       # instead of the default: patterns of names, in upper or lower case
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from engine.events import SENSITIVE
from storage.errors import DiskError, InputError
from storage.regular import read_regular

FILE = "audit.toml"
_LARGEST = 1 << 20


def sensitive_args(root: Path) -> Sequence[str]:
    """The patterns of `root`. Raises InputError (it is not as above), DiskError."""
    path = root / FILE
    try:
        said = tomllib.loads(read_regular(path, _LARGEST).decode())
    except FileNotFoundError:
        return SENSITIVE
    except OSError as error:
        raise DiskError.of(error, "reading the audit settings") from error
    except ValueError as error:
        raise InputError(f"not TOML: {error}", where=str(path)) from error
    hint = 'it is to say: [redaction] args = ["*PASSWORD*", …]'
    section = said.get("redaction", {})
    if not isinstance(section, dict) or (unknown := section.keys() - {"args"}):
        what = f"[redaction] has no setting {min(unknown)!r}" if isinstance(section, dict) else "redaction is no table"
        raise InputError(what, where=str(path), hint=hint)
    patterns = section.get("args", list(SENSITIVE))
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise InputError("[redaction] args is not a list of patterns", where=str(path), hint=hint)
    return tuple(patterns)
