"""The cache records that BuildKit keeps or looks for, for the steps of a build.

Source: moby/buildkit solver (cachekey.go, edge.go, exporter.go): a step is known by the digest of its op on the records
of its inputs, and where an input can be known by what is taken from it, by that as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.buildkit.contenthash import content_digest
from engine.buildkit.steps import (
    CONTENT,
    copy_digests,
    image_digests,
    mkdir_digests,
    record_digest,
    run_digests,
    selector,
)
from engine.cache.chain import CacheChain
from engine.graph import ContextSource, Copy, Graph, ImageSource, Mkdir, Run, Scratch, Vertex
from engine.ops.selection import Selection
from storage.digest import Digest
from storage.threads import in_thread

if TYPE_CHECKING:
    from engine.solver.answers import Asking

Links = tuple[tuple[CacheChain, str], ...]


def chains(
    graph: Graph, selections: Mapping[Digest, Selection], directories: Mapping[Digest, Path]
) -> dict[Digest, tuple[CacheChain, ...]]:
    """The records of each vertex that BuildKit would name; the others are left out. Blocking: reads what is copied.

    `selections`: what each Copy takes from a context, by vertex; `directories`: the contexts, by vertex. Raises
    InputError (a file is not what it was) and DiskError.
    """
    found: dict[Digest, tuple[CacheChain, ...]] = {}
    known = _Known(graph, selections, directories, found)
    for vertex in graph.vertices:
        try:
            names = known.of(vertex)
        except ValueError:  # text that not every version of BuildKit writes alike
            names = ()
        if names:
            found[vertex.digest] = names
    return found


@dataclass(frozen=True, slots=True)
class BuildKitKeys:
    """Implements ChainKeys. `directories`: the contexts of the build, by vertex."""

    directories: Mapping[Digest, Path]

    async def chains(self, asking: Asking) -> Mapping[Digest, tuple[CacheChain, ...]]:
        """See ChainKeys.chains. Raises InputError (a file is not what it was) and DiskError."""
        return await in_thread(lambda: chains(asking.graph, asking.selections, self.directories))


class _Known:
    def __init__(
        self,
        graph: Graph,
        selections: Mapping[Digest, Selection],
        directories: Mapping[Digest, Path],
        found: Mapping[Digest, tuple[CacheChain, ...]],
    ) -> None:
        self._graph = graph
        self._selections = selections
        self._directories = directories
        self._found = found

    def of(self, vertex: Vertex) -> tuple[CacheChain, ...]:
        op = vertex.op
        if isinstance(op, ImageSource):
            return tuple(CacheChain(record_digest(digest)) for digest in image_digests(op))
        if not isinstance(op, Run | Mkdir | Copy):
            return ()
        base = self._base(vertex)
        if base is None:
            return ()
        match op:
            case Run():
                return _on(run_digests(op), base) if base else ()
            case Mkdir():
                return _on(mkdir_digests(op, on_base=bool(base)), base)
            case _:  # a Copy
                return self._copy(vertex, op, base)

    def _base(self, vertex: Vertex) -> tuple[Links, ...] | None:
        """The links to input 0: none for an empty tree, which is no input to BuildKit. None when it has no name."""
        if isinstance(self._graph.by_digest[vertex.inputs[0]].op, Scratch):
            return ()
        names = self._found.get(vertex.inputs[0])
        return None if names is None else (tuple((name, "") for name in names),)

    def _copy(self, vertex: Vertex, op: Copy, base: tuple[Links, ...]) -> tuple[CacheChain, ...]:
        if len(vertex.inputs) != 2 or vertex.inputs[0] == vertex.inputs[1]:  # one input to BuildKit, without selector
            return ()
        digests = copy_digests(op, on_base=bool(base))
        taken = self._taken(vertex, op) if digests else ()
        return _on(digests, (*base, taken)) if taken else ()

    def _taken(self, vertex: Vertex, op: Copy) -> Links:
        """The links to what is copied from. A context has no name that lasts: it counts by what is taken from it."""
        source = vertex.inputs[1]
        if source not in self._directories:
            chosen = selector(op)
            return tuple((name, chosen) for name in self._found.get(source, ()))
        selection = self._selections.get(vertex.digest)
        if selection is None or not op.from_context or not isinstance(self._graph.by_digest[source].op, ContextSource):
            return ()
        content = content_digest(op, selection, self._directories[source])
        return () if content is None else ((CacheChain(record_digest(content, CONTENT)), ""),)


def _on(digests: tuple[str, ...], inputs: tuple[Links, ...]) -> tuple[CacheChain, ...]:
    return tuple(CacheChain(record_digest(digest), inputs) for digest in digests)
