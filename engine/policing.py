"""When a build asks its policies: before it asks anybody for anything, before a step runs, and before an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.errors import PolicyViolation
from engine.graph import Graph, VertexError
from engine.policy.gate import Gate
from engine.policy.subjects import fetched, imported_cache, of_graph
from engine.refs.materializer import Materializer
from engine.refs.ref import Ref
from storage.digest import Digest

if TYPE_CHECKING:
    from engine.request import BuildRequest


def check_request(gate: Gate, request: BuildRequest) -> None:
    """What is known before anything is read: where results go, which caches are believed, where the context is. Raises
    PolicyViolation."""
    pushed = [name for one in request.outputs if one.kind == "image" and one.push for name in one.names]
    caches = [one.reference for one in request.cache_to if one.reference is not None]
    gate.targets([*pushed, *caches], [one.kind for one in request.outputs if one.kind != "image"])
    gate.check(imported_cache(one.reference) for one in request.cache_from)
    if request.frontend.context is not None and (context := fetched(request.frontend.context)) is not None:
        gate.check([context])


def check_steps(gate: Gate, graph: Graph) -> None:
    """What the steps fetch and ask for, whether the cache has their results or not. Raises VertexError."""
    for vertex, subject in of_graph(graph):
        try:
            gate.check([subject], str(vertex.digest))
        except PolicyViolation as error:
            raise VertexError(vertex, error) from error


async def check_layers(gate: Gate, graph: Graph, refs: Mapping[Digest, Ref], materializer: Materializer) -> None:
    """What is about to be given out. Raises PolicyViolation, and MaterializationError where layers are fetched for
    this."""
    for result in graph.results:
        ref = refs[result.vertex]
        unsure = [layer for layer, sure in zip(ref.layers, gate.verified(ref.layers), strict=True) if not sure]
        if gate.fetches and unsure:
            await materializer.verify(ref, unsure, vertex=str(result.vertex), needed_by="a rule of the policy")
        gate.layers(ref.layers)
