"""How BuildKit names a result: by a record whose inputs are records again. Plain data.

A cache record of BuildKit (moby/buildkit cache/remotecache/v1/spec.go, CacheRecord) matches when its digest is that of
the step and, for each input, one of its links matches what the step's input was recorded under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.record import Record
from storage.digest import Digest


class CacheChain(Record):
    """One way to come to a result. `inputs`: for each input the records it may have had, each with the selector (a
    path, or a digest of content; "" for none) that was taken of it. A record without inputs stands for itself."""

    digest: str
    inputs: tuple[tuple[tuple[CacheChain, str], ...], ...] = ()


class ChainKeys(Protocol):
    """Whoever knows which records BuildKit has for the steps of a build."""

    def chains(self) -> Mapping[Digest, Sequence[CacheChain]]:
        """By vertex: the records that BuildKit would keep or look for, the most general first. Vertices that it would
        name otherwise, or that cannot be named, are left out. Chains share what they have in common."""
        ...
