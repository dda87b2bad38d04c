"""The projections that every root keeps."""

from __future__ import annotations

from projections import cache_index, history, mentions, names, refs, usage
from projections.audit import index as audit
from projections.runner import Projection

STANDARD: tuple[Projection, ...] = (
    audit.PROJECTION, cache_index.PROJECTION, history.PROJECTION, mentions.PROJECTION, names.PROJECTION,
    refs.PROJECTION, usage.PROJECTION,
)  # fmt: skip

TRAVELLED: tuple[Projection, ...] = (refs.PROJECTION, usage.PROJECTION)
"""Those that are asked for as of an earlier moment, of which snapshots are kept."""
