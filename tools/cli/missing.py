"""What an offline build lacks, as people read it: items for the same step that lie in the same place are told together.

It is written for a window of 60 columns; a long name goes on in the next line rather than being cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.format import human_bytes, short_id
from tools.text import clean, fit

Json = dict[str, Any]

_ONE = {
    "image": "image", "layer": "layer", "url": "URL", "git": "git repository", "archive": "context",
}  # fmt: skip
_MANY = {
    "image": "images", "layer": "layers", "url": "URLs", "git": "git repositories", "archive": "contexts",
}  # fmt: skip
_STEPS, _NAMES = 3, 20
"""Steps named for one item, and items named that are alike; JSON and the log name more."""
_TITLE = 100
"""Columns of a step's name."""


def missing_lines(items: Sequence[Json], heading: str = "not here:") -> list[str]:
    """Lines for `items`, as in FoundMissing, below `heading`; none for none."""
    groups: dict[str, list[Json]] = {}
    for item in items:
        same = [item.get(key) for key in ("kind", "needed_by", "elsewhere", "detail")]
        groups.setdefault(str(same), []).append(item)
    return [*([heading] if groups else []), *(line for group in groups.values() for line in _group(group))]


def _group(group: Sequence[Json]) -> list[str]:
    first = group[0]
    kind, alone = str(first.get("kind")), len(group) == 1
    if alone:
        lines = [f"  {_ONE.get(kind, clean(kind))} {_name(first)}"]
    else:
        total = sum(int(item.get("bytes") or 0) for item in group)
        heading = f"  {len(group)} {_MANY.get(kind, clean(kind))}" + (f", {human_bytes(total)}" if total else "")
        lines = [heading, *(f"    {_name(item)}" for item in group[:_NAMES])]
        lines += [f"    and {len(group) - _NAMES} more"] if len(group) > _NAMES else []
    steps = [clean(str(name)) for name in first.get("needed_by") or ()]
    if steps:
        more = len(steps) - _STEPS
        lines += [f"    for {fit(name, _TITLE, '...')}" for name in steps[:_STEPS]]
        lines += [f"    and {more} more"] if more > 0 else []
    if first.get("detail"):
        lines.append(f"    {clean(str(first['detail']))}")
    lines += [f"    at  {clean(str(name))}" for name in first.get("elsewhere") or ()]
    return lines


def _name(item: Json) -> str:
    name = clean(str(item.get("name")))
    size = int(item.get("bytes") or 0)
    return (short_id(name) if name.startswith("sha256:") else name) + (f"  {human_bytes(size)}" if size else "")
