"""The projections that every root keeps."""

from __future__ import annotations

from projections import cache_index, history, names, refs, usage
from projections.runner import Projection

STANDARD: tuple[Projection, ...] = (
    cache_index.PROJECTION, history.PROJECTION, names.PROJECTION, refs.PROJECTION, usage.PROJECTION,
)  # fmt: skip
