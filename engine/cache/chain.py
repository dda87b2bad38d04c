"""How BuildKit names a result: by a record whose inputs are records again. Plain data.

A cache record of BuildKit (moby/buildkit cache/remotecache/v1/spec.go, CacheRecord) matches when its digest is that of
the step and, for each input, one of its links matches what the step's input was recorded under.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from engine.record import Record
from storage.digest import Digest

if TYPE_CHECKING:
    from engine.solver.answers import Asking


class CacheChain(Record):
    """One way to come to a result. `inputs`: for each input the records it may have had, each with the selector (a
    path, or a digest of content; "" for none) that was taken of it. A record without inputs stands for itself.

    Compared by identity: what chains share is in each of them, which makes them exponentially long when spelled out."""

    digest: str
    inputs: tuple[tuple[tuple[CacheChain, str], ...], ...] = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"CacheChain({self.digest}, {len(self.inputs)} inputs)"


class ChainKeys(Protocol):
    """Whoever knows which records BuildKit has for the steps of a build."""

    async def chains(self, asking: Asking) -> Mapping[Digest, Sequence[CacheChain]]:
        """By vertex: the records that BuildKit would keep or look for, the most general first. Vertices that it would
        name otherwise, or that cannot be named, are left out. Chains share what they have in common."""
        ...


def upwards(chain: CacheChain, known: Container[CacheChain]) -> Iterator[CacheChain]:
    """`chain` and what it links to, the sources first, each once: what is read is `known` before the next is asked
    for. Without recursion, as a chain is as long as a Dockerfile."""
    todo = [chain]
    while todo:
        one = todo[-1]
        below = [source for links in one.inputs for source, _ in links if source not in known]
        if below:
            todo += below
            continue
        todo.pop()
        if one not in known:
            yield one
