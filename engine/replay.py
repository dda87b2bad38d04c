"""Executing steps of a build that was, on the inputs that it had.

What a step stood on is given where its bytes can be had (here, then from a provider that says it has them); only what
cannot be had is made again. Nothing is taken from the cache, and nothing goes into it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import MaterializationError
from engine.grants import Offered
from engine.graph import Graph, ImageSource, LayerSource, Scratch, Vertex, VertexError
from engine.ledger import Facts
from engine.ops.executor import Executor, Outcome
from engine.record import Record
from engine.refs.ref import Layer, Remote, scratch
from engine.solver.answers import CacheLookup
from engine.solver.contexts import Taken
from engine.solver.plan import Plan
from engine.solver.refused import check_grants, check_platforms
from engine.solver.scheduler import Scheduler
from storage.digest import Digest
from storage.interfaces.blobs import BlobStore

if TYPE_CHECKING:
    from engine.ops.emulation import Emulation

TRIES = 3
"""How often inputs may turn out to be gone after all."""


class Steps(Record):
    """`run`: what is executed, inputs first; `given`: results, by vertex, that are not; `again`: those of `run` that
    only run because their results cannot be had."""

    run: tuple[Vertex, ...]
    given: Mapping[Digest, Remote]
    again: tuple[Vertex, ...] = ()


def plan_replay(
    graph: Graph, wanted: Iterable[Digest], known: Mapping[Digest, Remote], contexts: Iterable[Digest]
) -> Steps:
    """Execute `wanted`, standing on results that are `known` to be obtainable, or on others made anew."""
    asked = set(wanted)
    run, given = set(asked), dict[Digest, Remote]()
    queue, idle = list(asked), set(contexts)
    while queue:
        for digest in graph.by_digest[queue.pop()].inputs:
            if digest in run or digest in given or digest in idle:
                continue
            if digest in known:
                given[digest] = known[digest]
            else:
                run.add(digest)
                queue.append(digest)
    order = tuple(vertex for vertex in graph.vertices if vertex.digest in run)
    return Steps(order, given, tuple(vertex for vertex in order if vertex.digest not in asked))


@dataclass(slots=True)
class Replayer:
    """Executes for the build `build`. `contexts`: the directories that contexts are restored in, by vertex."""

    build: str
    facts: Facts
    executor: Executor
    blobs: BlobStore
    cache: CacheLookup
    contexts: Mapping[Digest, Path]
    jobs: int
    epoch: int | None
    offered: Offered
    emulation: Callable[[], Emulation]
    _taken: Taken = field(init=False)

    async def run(self, graph: Graph, wanted: Sequence[Digest], known: Mapping[Digest, Remote]) -> dict[Digest, Remote]:
        """Execute `wanted`; the results by vertex. A known result whose layers cannot be had after all is made anew.
        Raises VertexError, InputError, LogError."""
        known = dict(known)
        for _ in range(TRIES):
            steps = plan_replay(graph, wanted, known, self.contexts)
            try:
                return await self._execute(graph, steps)
            except VertexError as error:
                lost = _lost(graph, steps, error.cause)
                if not lost:
                    raise
                for digest in lost:
                    known.pop(digest, None)
        return await self._execute(graph, plan_replay(graph, wanted, known, self.contexts))

    async def _execute(self, graph: Graph, steps: Steps) -> dict[Digest, Remote]:
        self._taken = Taken(self.contexts, self.facts, self.blobs, self.cache)
        check_grants(steps.run, self.offered)
        needed = {digest for vertex in steps.run for digest in vertex.inputs} & self.contexts.keys()
        part = [v for v in graph.vertices if v.digest in needed or v in steps.run]
        await self._taken.read(Graph(tuple(part), ()))
        await check_platforms(steps.run, self.facts, self.emulation)
        refs = dict(steps.given)
        refs |= {vertex.digest: scratch() for vertex in steps.run if isinstance(vertex.op, Scratch)}
        run = tuple(v for v in steps.run if not isinstance(v.op, Scratch) and v.digest not in self.contexts)
        scheduler = Scheduler(self.facts, self._step, _recall, lambda _: False, self.jobs)
        await scheduler.run(Plan(run, (), frozenset(), ()), refs)
        return refs

    async def _step(self, vertex: Vertex, inputs: tuple[Remote, ...], attempt: int) -> Outcome:
        task = self._taken.task(self.build, vertex, inputs, attempt, self.epoch)
        return await self.executor.execute(task)


async def _recall(_vertex: Vertex, _inputs: tuple[Remote, ...]) -> None:
    """Nothing is known: that is what a replay is for."""


def _lost(graph: Graph, steps: Steps, error: Exception) -> list[Digest]:
    """Given results that hold the layer which `error` tells is gone, and that can be made anew."""
    if not isinstance(error, MaterializationError) or not error.layer or error.kind == "disk":
        return []
    holders = [digest for digest, ref in steps.given.items() if any(item.name == error.layer for item in ref.layers)]
    return [digest for digest in holders if not isinstance(graph.by_digest[digest].op, ImageSource | LayerSource)]


# ---------------------------------------------------------------- where inputs come from


class Place(Record):
    """Where one layer comes from: `here`, `bundle`, `provider` or, when it cannot be had, `nowhere`."""

    layer: Layer
    kind: str


class Survey(Record):
    """Where the layers of one result come from."""

    ref: str
    places: tuple[Place, ...]

    @property
    def obtainable(self) -> bool:
        """Can all of them be had?"""
        return all(place.kind != "nowhere" for place in self.places)

    @property
    def remote(self) -> Remote:
        """The result as a pointer."""
        return Remote(self.ref, tuple(place.layer for place in self.places))


async def survey(
    ref: str,
    layers: Sequence[Layer],
    bundled: Mapping[str, Layer],
    mountable: Callable[[Layer], bool],
    stored: Callable[[Layer], bool],
    absent: Callable[[Sequence[Layer]], Awaitable[Mapping[str, str]]],
) -> Survey:
    """Ask for each layer: mountable or stored here, in the bundle (`bundled`, by name), or at a provider that says so
    when asked for its existence. No layer byte moves."""
    places = []
    asked = [layer for layer in layers if not mountable(layer) and not stored(layer) and layer.name not in bundled]
    missing = await absent(asked)
    for layer in layers:
        if mountable(layer) or stored(layer):
            places.append(Place(layer, "here"))
        elif layer.name in bundled:
            own = bundled[layer.name]
            places.append(Place(own, "here" if mountable(own) else "bundle"))
        else:
            places.append(Place(layer, "nowhere" if layer.name in missing else "provider"))
    return Survey(ref, tuple(places))
