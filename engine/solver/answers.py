"""What is known under a key, and who may know it. Plain data and protocols; the effects are behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.graph import Graph
from engine.ops.selection import Selection
from engine.record import Record
from engine.refs.ref import Layer, Remote
from engine.solver.cache import CacheKey
from storage.digest import Digest


class Found(Record):
    """A result that somebody recorded: `ref`, made by `origin_build`. `resolved`: its key by content, "" when that is
    the key it was found under; `importer`: the cache source that knew it, "" for this root."""

    ref: Remote
    origin_build: str
    resolved: str = ""
    importer: str = ""


class CacheLookup(Protocol):
    """What earlier builds of this root recorded: a projection answers."""

    def lookup(self, key: Digest) -> Found | None:
        """The latest record. Its layers have every provider that the log knows of, and the blob of a layer that a step
        made where it was packed."""
        ...

    def let_go(self, name: str) -> bool:
        """Were the bytes of `name` (a digest, a diff ID, the id of a snapshot) removed here on purpose?"""
        ...

    def keeps(self, listing: Digest) -> bool:
        """Is there a ContextKept for the files of `listing`?"""
        ...

    def packs(self) -> Sequence[Digest]:
        """Packs of contents (ContextKept.packs) that are worth looking into, the newest first."""
        ...


class Asking(Record):
    """All that a build asks for, by vertex: `keys` by definition, `selections` of files from contexts (a Copy's), and
    `mounted` (a Run's, by the mount's number)."""

    graph: Graph
    keys: Mapping[Digest, CacheKey]
    selections: Mapping[Digest, Selection]
    mounted: Mapping[Digest, Mapping[int, Selection]]


class Imports(Protocol):
    """Caches elsewhere that this build was given."""

    async def load(self, asking: Asking) -> None:
        """Read what they know: indexes and metadata, no layer. Failures are in the log, and told as warnings."""
        ...

    def lookup(self, vertex: Digest, key: Digest) -> Sequence[Found]:
        """What they have for `vertex` under `key` (by definition or by content): remotes, the first source's first."""
        ...


class Presence(Protocol):
    """Asks providers."""

    async def absent(self, layers: Sequence[Layer]) -> Mapping[str, str]:
        """Those of `layers` that cannot be had, by name, and why: bytes-lost when every provider says so,
        provider-unreachable when one could not be asked. Bounded, in parallel; each blob is asked for once a build."""
        ...


class Solution(Record):
    """What solving gave, by vertex. `refs` of all that was needed; `known`: results that are recorded, needed or not;
    `keys` by definition, `resolved` by content, where they are known (without components where only their digests are);
    `origins`: the build that made a known result."""

    refs: Mapping[Digest, Remote]
    known: Mapping[Digest, Remote]
    keys: Mapping[Digest, CacheKey]
    resolved: Mapping[Digest, CacheKey]
    origins: Mapping[Digest, str]
