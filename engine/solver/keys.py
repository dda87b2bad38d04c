"""The two keys of each step. Pure.

The one by *definition* is known before anything runs. The one by *content* is known once the step's inputs are: what a
COPY takes of another result counts in it by its files, and every step by the keys by content of its inputs. So a stage
that was rebuilt to the same files changes nothing behind the COPY that takes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from engine.graph import Copy, Graph, Vertex
from engine.solver.cache import CacheKey, cache_key
from engine.solver.plan import Answer, Hit
from storage.digest import Digest


@dataclass(slots=True)
class Keys:
    """By vertex. `contexts`: sources that stand for directories, which have no key; `contents`: digests of what is
    taken of those, by the mount's number, None for a COPY."""

    contexts: Collection[Digest]
    contents: Mapping[Digest, Mapping[int | None, Digest]]
    defined: dict[Digest, CacheKey] = field(default_factory=dict)
    resolved: dict[Digest, CacheKey] = field(default_factory=dict)
    """Those by content, as far as they are known."""

    def define(self, graph: Graph) -> None:
        """The keys by definition of all its vertices."""
        for vertex in graph.vertices:
            inputs = [self.defined[digest].digest for digest in self._inputs(vertex)]
            self.defined[vertex.digest] = cache_key(vertex.op, inputs, self.contents.get(vertex.digest))

    def resolve(self, vertex: Vertex, content: Digest | None, answers: Mapping[Digest, Answer]) -> CacheKey:
        """The key by content, with the `answers` that its inputs have; `content`: the listing of what a Copy takes of
        another result, where it is known."""
        inputs, contents = self._inputs(vertex), dict(self.contents.get(vertex.digest, {}))
        if content is not None:
            inputs, contents = inputs[:1], {None: content}
        key = cache_key(vertex.op, [self._by_content(digest, answers.get(digest)) for digest in inputs], contents)
        self.resolved[vertex.digest] = key
        return key

    def differ(self, vertex: Vertex) -> bool:
        """Is the key by content, which is known, another than the one by definition?"""
        return self.resolved[vertex.digest].digest != self.defined[vertex.digest].digest

    def takes_of_a_result(self, vertex: Vertex) -> bool:
        """Is it a COPY from a stage or an image?"""
        return isinstance(vertex.op, Copy) and len(vertex.inputs) > 1 and vertex.inputs[1] not in self.contexts

    def _inputs(self, vertex: Vertex) -> list[Digest]:
        return [digest for digest in vertex.inputs if digest not in self.contexts]

    def _by_content(self, vertex: Digest, answer: Answer | None) -> Digest:
        if vertex in self.resolved:
            return self.resolved[vertex].digest
        recorded = answer.found.resolved if isinstance(answer, Hit) else ""
        return Digest(recorded) if recorded else self.defined[vertex].digest
